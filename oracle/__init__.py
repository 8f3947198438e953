"""The oracle: which corruption does a frame carry, how strong, and which signatures answer it."""

from rws.errors import FormatError, InputError, RwsError
from rws.oracle.belief import CLEAN, Belief, certain
from rws.oracle.classifier import Oracle
from rws.oracle.policy import ExpectedGainPolicy, GainTable, Policy, ToldPolicy, WeightedPolicy
from rws.oracle.temporal_filter import BeliefFilter
from rws.records import Mix

__all__ = [
    "CLEAN",
    "Belief",
    "BeliefFilter",
    "ExpectedGainPolicy",
    "FormatError",
    "GainTable",
    "InputError",
    "Mix",
    "Oracle",
    "Policy",
    "RwsError",
    "ToldPolicy",
    "WeightedPolicy",
    "certain",
]
