"""All faults of the drill, those with a scripted clock first."""

from rws.edge.faults.cases import loop, real, scripted

CASES = [*scripted.CASES, *real.CASES, *loop.CASES]
