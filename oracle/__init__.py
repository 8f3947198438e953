"""The oracle: which corruption does a frame carry, how strong, and which signatures answer it."""

from oracle.belief import CLEAN, Belief, certain
from oracle.errors import FormatError, InputError, RwsError
from oracle.network import Oracle
from oracle.policy import ExpectedGainPolicy, GainTable, Mix, Policy, ToldPolicy, WeightedPolicy
from oracle.temporal import BeliefFilter

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
