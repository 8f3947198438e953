"""Compare times on a machine whose speed drifts: interleaved blocks, paired ratios, intervals.

A block of the baseline runs before and after each case's block. The ratio to the mean of these neighbours cancels a
slow drift of the clock. Each repeat rebuilds everything, since two equal sessions differ by where their memory lies.
"""

import gc
import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rws.benchmarks.common.tables import Record

BLOCK_SECONDS = 0.1
FEWEST_FRAMES, MOST_FRAMES = 3, 50
RESAMPLES = 2000

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive frames of one case: milliseconds of each, of its parts, and whether its mix changed; shape (n,)."""

    ms: NDArray[np.float64]
    changed: NDArray[np.bool_]
    parts: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def typical(self, part: str | None = None) -> float:
        """Return milliseconds: medians with and without a change, by share; one median would miss rare patches."""
        ms = self.ms if part is None else self.parts[part]
        share = float(self.changed.mean())
        parts = ((share, self.changed), (1 - share, ~self.changed))
        return sum(weight * float(np.median(ms[chosen])) for weight, chosen in parts if weight > 0)


@dataclass(frozen=True, eq=False)
class Measured:
    """All blocks of one case, by repeat and round; for each the typical milliseconds of the baseline around it."""

    blocks: list[list[Block]] = field(default_factory=list)
    baseline: list[list[float]] = field(default_factory=list)

    def values(self, part: str | None = None) -> NDArray[np.float64]:
        """Return every single frame of every block, milliseconds."""
        return np.concatenate([b.ms if part is None else b.parts[part] for row in self.blocks for b in row])

    def typical(self, part: str | None = None) -> NDArray[np.float64]:
        """Return `Block.typical` by repeat and round, milliseconds, shape (repeats, rounds)."""
        return np.array([[block.typical(part) for block in row] for row in self.blocks])

    def ratio(self, part: str | None = None) -> tuple[float, float, float]:
        """Return the ratio to the baseline and its 95 % interval."""
        return paired_ratio(self.typical(part), np.array(self.baseline))


def paired_ratio(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64], seed: int = 0
) -> tuple[float, float, float]:
    """Return the ratio of two times measured in the same rounds, both (repeats, rounds), and its 95 % interval.

    It is the median over the rounds of a repeat, averaged over the repeats. The interval is a percentile bootstrap on
    two levels, repeats and rounds within them (Davison & Hinkley 1997, Sec. 3.8). So it also covers how two builds of
    the same thing differ.
    """
    ratios = numerator / denominator
    repeats, rounds = ratios.shape
    rng = np.random.default_rng(seed)
    chosen = rng.integers(repeats, size=(RESAMPLES, repeats, 1))
    resampled = ratios[chosen, rng.integers(rounds, size=(RESAMPLES, repeats, rounds))]
    low, high = np.percentile(np.median(resampled, axis=2).mean(axis=1), (2.5, 97.5))
    return float(np.median(ratios, axis=1).mean()), float(low), float(high)


def frames_per_block(frame_ms: float, every: int) -> int:
    """Return how many frames count in one block: about a tenth of a second, and whole periods of the changes."""
    frames = int(np.clip(round(BLOCK_SECONDS * 1e3 / frame_ms), FEWEST_FRAMES, MOST_FRAMES))
    return frames if every < 2 else every * -(-frames // every)


def settling_frames(frame_ms: float) -> int:
    """Return how many frames precede a block and do not count: caches and clock settle for this case."""
    return 2 if frame_ms < 20 else 1


def block_frames(ms: NDArray[np.float64], every: int) -> tuple[int, int]:
    """Return how many frames settle and how many count in a block, from the milliseconds of trial frames, (n,)."""
    frame_ms = float(np.median(ms))
    return settling_frames(frame_ms), frames_per_block(frame_ms, every)


def timed_blocks(
    step: Callable[[], object], frames: int = 1, clock: Callable[[], float] = time.perf_counter
) -> Callable[[], Block]:
    """Return a function that runs a block without changes of mix; a `step` is `frames` frames, times are per frame.

    `clock` gives seconds.
    """

    def once() -> float:
        before = clock()
        step()
        return 1e3 * (clock() - before)

    settle, count = block_frames(np.array([once() for _ in range(5)]), 0)

    def run() -> Block:
        for _ in range(settle):
            once()
        return Block(np.array([once() for _ in range(count)]) / frames, np.zeros(count, np.bool_))

    return run


def interleave(
    baseline: Callable[[], Block],
    cases: Mapping[Key, Callable[[], Block]],
    rounds: int,
    rng: random.Random,
    into: dict[Key, Measured],
) -> list[Block]:
    """Measure one repeat of all cases, in an order that `rng` shuffles, into `into`; return the baseline's blocks."""
    for key in cases:
        measured = into.setdefault(key, Measured())
        measured.blocks.append([])
        measured.baseline.append([])
    with _no_garbage_collection():
        seen = [baseline()]
        for _ in range(rounds):
            for key in rng.sample(list(cases), len(cases)):
                into[key].blocks[-1].append(cases[key]())
                seen.append(baseline())
                into[key].baseline[-1].append((seen[-2].typical() + seen[-1].typical()) / 2)
    return seen


def percentiles(values: NDArray[np.float64]) -> Record:
    """Return `p50_ms`, `p95_ms` and `p99_ms` of milliseconds."""
    return {f"p{q}_ms": round(float(np.percentile(values, q)), 5) for q in (50, 95, 99)}


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
