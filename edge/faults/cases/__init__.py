"""All faults of the drill."""

from __future__ import annotations

from rws.edge.faults.cases import loop as loop_cases
from rws.edge.faults.cases import real as real_cases
from rws.edge.faults.cases import scripted as scripted_cases
from rws.edge.faults.harness import CASES, Case

_MODULES = [module.__name__ for module in (scripted_cases, real_cases, loop_cases)]


def all_cases() -> list[Case]:
    """Every fault, those with a scripted clock first."""
    return sorted(CASES.values(), key=lambda case: _MODULES.index(case.function.__module__))
