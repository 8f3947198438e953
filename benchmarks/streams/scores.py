"""Sums over one method's answers on one stream: accuracies, how often the mix changes, how soon it is right.

The mix in effect is *right* if its accuracy in the true state, by the bundle's gain table (interpolated, and estimated
for compositions), is at most 1 point below that of the action which `perfect` takes."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rws.benchmarks.common.tables import Record
from rws.benchmarks.streams.protocols import SHUFFLED, TYPES, Flags, Floats, Ints, Stream
from rws.oracle.belief import CLEAN, certain, per_type
from rws.oracle.policy import GainTable, ReferencePolicy
from rws.records import Mix
from rws.training.corruptions import CORRUPTIONS

RIGHT_WITHIN = 1.0
NAMES = (CLEAN, *CORRUPTIONS)
"""The types in the order of every list by type: clean, then the corruptions."""


def named_types(joint: Floats, corruptions: Sequence[str]) -> Ints:
    """Return the most probable types, int64 (N,), as in `Stream`.

    `joint`: beliefs over clean and `corruptions`, float32 (N, 1 + C·S).
    """
    places = np.array([-1, *(CORRUPTIONS.index(name) for name in corruptions)])
    found: Ints = places[per_type(joint, len(corruptions)).argmax(1)]
    return found


def mean_by_type(stream: Stream, values: NDArray[Any]) -> NDArray[np.float64]:
    """Return means of bool or float (N,) over the frames of each type, float64 (20,), as `NAMES`; NaN for none."""
    count = np.bincount(stream.type + 1, minlength=TYPES)
    total = np.bincount(stream.type + 1, weights=values, minlength=TYPES)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def perfect_accuracy(stream: Stream, table: GainTable) -> Floats:
    """Return what the table gives in the true state of each frame under the action of `perfect`, float32 (N,).

    Between severity 0 and the lowest level `perfect` takes the lowest level's alpha, where no patch may be better.
    Raises InputError if the table does not know a corruption of the stream.
    """
    truth = ReferencePolicy(table, "perfect")
    states, joints, inverse = _true_states(stream, table)
    found = [(joint @ table.accuracy)[truth.action(*state)] for state, joint in zip(states, joints, strict=True)]
    return np.array(found, np.float32)[inverse]


def _true_states(stream: Stream, table: GainTable) -> tuple[list[tuple[str, float]], list[Floats], Ints]:
    pairs, inverse = np.unique(np.stack([stream.type, stream.severity]), axis=1, return_inverse=True)
    states = [(NAMES[int(kind) + 1], float(severity)) for kind, severity in pairs.T]
    joints = [certain(table.corruptions, table.levels, *state).joint for state in states]
    return states, joints, inverse.reshape(-1)


def mix_accuracy(stream: Stream, table: GainTable, mixes: Sequence[Mix], mix: Ints) -> Floats:
    """Return what the table expects of the mix in force in the true state, percent, float32 (N,); see `estimate` there.

    `mix` says which of `mixes` was in force when the frame was classified, int64 (N,).
    """
    expected = np.stack([table.estimate(each) for each in mixes])
    _, joints, inverse = _true_states(stream, table)
    found: Floats = (expected @ np.stack(joints).T)[mix, inverse]
    return found


def right_mix(stream: Stream, table: GainTable, mixes: Sequence[Mix], mix: Ints) -> Flags:
    """Return whether the mix in force was right, bool (N,). Arguments as in `mix_accuracy`."""
    right: Flags = mix_accuracy(stream, table, mixes, mix) >= perfect_accuracy(stream, table) - RIGHT_WITHIN
    return right


def mix_change_rate(stream: Stream, mix: Ints) -> float:
    """Return the percent of the frames, without cuts, at which the mix differs from that of the frame before."""
    counted = ~stream.cut[1:]
    return 100 * float((mix[1:] != mix[:-1])[counted].mean()) if counted.any() else 0.0


def reaction(right: Flags, starts: Ints, stops: Ints) -> Record | None:
    """Return the frames until the mix is right (0: from the first on), over stretches of one true state; None for none.

    A stretch in which it never got right counts with its whole length, a lower bound; `never_right`: percent of these.
    """
    if len(starts) == 0:
        return None
    found = [np.flatnonzero(right[start:stop]) for start, stop in zip(starts, stops, strict=True)]
    frames = [hits[0] if len(hits) else stop - start for hits, start, stop in zip(found, starts, stops, strict=True)]
    return {
        "median": float(np.median(frames)),
        "mean": round(float(np.mean(frames)), 2),
        "p95": round(float(np.percentile(frames, 95)), 2),
        "never_right": round(100 * float(np.mean([len(hits) == 0 for hits in found])), 2),
        "blocks": len(found),
    }


def delays(stream: Stream, right: Flags, unpatched: Flags) -> tuple[Record | None, Record | None]:
    """Return `reaction` over the blocks of one type, and over the stretches of one rounded severity inside them.

    Both are None for `mixed` and `potpourri`, where every frame may be a change. In `gradual` the block of a
    corruption, which sets in weak, counts from the first frame at which no patch is wrong, and not at all if there is
    none.

    Args:
        right, unpatched: whether the mix in effect was right, and no patch would have been, bool (N,).
    """
    if stream.protocol in SHUFFLED:
        return None, None
    blocks = stream.block_starts()
    rounded = np.round(stream.severity)
    steps = np.union1d(blocks, 1 + np.flatnonzero(rounded[1:] != rounded[:-1]))
    inside = ~np.isin(steps, blocks)
    ends = np.append(steps[1:], len(stream))
    starts, stops = blocks, np.append(blocks[1:], len(stream))
    if stream.protocol == "gradual":
        counted = ~unpatched | (stream.type < 0)
        first = [start + int(counted[start:stop].argmax()) for start, stop in zip(starts, stops, strict=True)]
        kept = counted[first]
        starts, stops = np.array(first)[kept], stops[kept]
    return reaction(right, starts, stops), reaction(right, steps[inside], ends[inside])


def run_lengths(values: Ints) -> list[list[int]]:
    """Return [[value, length], …] of a sequence."""
    return [[value, len(list(run))] for value, run in groupby(values.tolist())]


def running_mean(correct: Flags, window: int, step: int) -> list[int]:
    """Return percent correct, whole, of the last `window` frames (fewer at the start), after every `step`-th one."""
    total = np.concatenate([[0], np.cumsum(correct)])
    stops = np.arange(step, len(correct) + 1, step)
    starts = np.maximum(stops - window, 0)
    return [round(100 * float(value)) for value in (total[stops] - total[starts]) / (stops - starts)]
