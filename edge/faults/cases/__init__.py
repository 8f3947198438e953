"""All faults of the drill, those with a scripted clock first."""

from rws.edge.faults.cases import loop, media_time, real, scripted

CASES = [*scripted.CASES, *real.CASES, *media_time.CASES, *loop.CASES]
