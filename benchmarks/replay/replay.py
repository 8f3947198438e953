"""Replay a corrupted test set through a bundle: never patched, our oracle, told, always patched.

Words of the table: `std` is never patched; `trained` is our oracle with the bundle's policy, each frame on its own;
`perfect` is told type and severity and uses the type's own signature at its calibrated alpha; `best` is told them and
takes the gain table's best action; `always` carries all signatures averaged, on every frame.
Regret = perfect − trained. Its split goes from one to the other by way of the bundle's policy with an oracle that is
told less and less: type and severity, the type, whether the frame is corrupted at all, nothing. What each step costs
is the share of the policy (what it does differently from `perfect` with the same knowledge), of severity, of type and
of missed clean frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.live.base import PatchableModel
from rws.errors import InputError
from rws.oracle.belief import CLEAN, Belief, certain, per_type
from rws.oracle.policy import ToldPolicy
from rws.records import Mix
from rws.training.evaluation.evaluator import Evaluator, averaged_mix, ground_truth_mixes, observe
from rws.training.evaluation.sets import EvaluationSet, evaluation_sets

WAYS = ("std", "trained", "perfect", "best", "always")
PARTLY_TOLD = ("state", "type", "corrupted")
STREAM = 8
_COMPARED_PIXELS = 200 * 32**2


@dataclass(frozen=True)
class SetOutcome:
    """What was evaluated on one set of N images.

    Args:
        correct: for each arm whether it classifies each image right, bool (N,).
        types: the most probable type, int64 (N,), an index into clean and the corruptions.
        stream_types: the same after each 8 frames, taken as a stream, int64 (N // 8,).
        severity_error: absolute error of the expected severity, float (N,).
    """

    correct: Mapping[str, NDArray[np.bool_]]
    types: NDArray[np.int64]
    stream_types: NDArray[np.int64]
    severity_error: NDArray[np.floating]


class Replayer:
    """Runs test sets through a bundle's model under each way of choosing the mix.

    Args:
        bundle: the bundle.
        threads: threads of model and oracle; None leaves the choice to ONNX Runtime.
        model: what runs the bundle's model; None: ONNX Runtime.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, model: PatchableModel | None = None) -> None:
        self.model = bundle.model(ModelOptions(threads=threads)) if model is None else model
        self.oracle = bundle.oracle(threads=threads)
        self.policy = bundle.policy(independent=True)
        self._filter = bundle.filter()
        table = bundle.table
        self._perfect, self._best = ToldPolicy(table, own=True), ToldPolicy(table, own=False)
        self._states = (table.corruptions, table.levels)
        self._always = averaged_mix(bundle.signatures.names)

    def run(self, test: EvaluationSet) -> SetOutcome:
        """Evaluate all arms on one set."""
        frames, count = test.frames, len(test.images)
        joint = observe(self.oracle, frames.pixels)
        told = {arm: self._tell(joint, test.corruption, arm) for arm in ("type", "corrupted")}
        told["state"] = certain(*self._states, test.corruption, test.severity).joint[None]
        mixes: dict[str, list[Mix]] = {
            "std": [{}] * count,
            "trained": self.policy.mixes(joint),
            "perfect": ground_truth_mixes(self._perfect, frames),
            "best": ground_truth_mixes(self._best, frames),
            "always": [self._always] * count,
            "state": self.policy.mixes(told["state"]) * count,
            **{arm: self.policy.mixes(told[arm]) for arm in ("type", "corrupted")},
        }
        evaluator = Evaluator(self.model, frames)
        severity = joint[:, 1:].reshape(count, len(self.oracle.corruptions), -1).sum(1) @ np.array(
            self.oracle.levels, np.float32
        )
        return SetOutcome(
            correct={arm: evaluator.right(chosen) for arm, chosen in mixes.items()},
            types=per_type(joint, len(self.oracle.corruptions)).argmax(1),
            stream_types=np.array([self._stream_type(joint[end - STREAM : end]) for end in _ends(count)], np.int64),
            severity_error=np.abs(severity - test.severity),
        )

    def _stream_type(self, joint: NDArray[np.float32]) -> int:
        """The type that the temporal filter names after these frames."""
        self._filter.reset()
        for frame in joint:
            belief = self._filter.update(Belief(self.oracle.corruptions, self.oracle.levels, frame))
        return int(belief.probability.argmax())

    def _tell(self, joint: NDArray[np.float32], corruption: str, way: str) -> NDArray[np.float32]:
        """The beliefs of an oracle that is told the type, or only whether the frame is clean."""
        possible = np.zeros(joint.shape[1], bool)
        if corruption == CLEAN:
            possible[0] = True
        elif way == "corrupted":
            possible[1:] = True
        else:
            steps = len(self.oracle.levels)
            first = 1 + self.oracle.corruptions.index(corruption) * steps
            possible[first : first + steps] = True
        # The least of a mass, so that a frame of which the oracle has no idea still gets some action.
        told: NDArray[np.float32] = np.where(possible, np.maximum(joint, np.float32(1e-12)), np.float32(0))
        return told / told.sum(axis=1, keepdims=True)


def _ends(frames: int) -> range:
    """Where each whole stream of `STREAM` frames ends."""
    return range(STREAM, frames + 1, STREAM)


class Pictures:
    """Finds pairs of corruptions that make the same picture at one severity: no oracle can tell them apart.

    Args:
        corruptions: the names.
        count: images of each set to compare.
    """

    def __init__(self, corruptions: Sequence[str], count: int = 200) -> None:
        self._corruptions, self._count = tuple(corruptions), count
        self._seen: dict[tuple[str, int], NDArray[np.uint8]] = {}

    def add(self, test: EvaluationSet) -> None:
        """Remember the first images of a set."""
        few = max(1, min(self._count, _COMPARED_PIXELS // test.images.size**2))
        self._seen[test.corruption, test.severity] = test.images.pixels[:few].numpy()

    def same(self, limit: float = 0.5) -> list[tuple[str, str, int]]:
        """(corruption, corruption, severity) whose mean absolute difference is at most `limit` grey levels."""
        found = []
        for severity in sorted({severity for _, severity in self._seen}):
            here = [name for name in self._corruptions if (name, severity) in self._seen]
            for first, second in combinations(here, 2):
                one, other = self._seen[first, severity], self._seen[second, severity]
                if one.shape == other.shape and float(np.abs(one.astype(np.int16) - other).mean()) <= limit:
                    found.append((first, second, severity))
        return found


def replay(
    bundle: Bundle,
    source: str,
    *,
    severities: Sequence[int] = (5,),
    limit: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Replay a test set and sum it up.

    Args:
        bundle: the bundle.
        source, severities, limit, seed: see `evaluation_sets`.
        threads: see `Replayer`.
        progress: called with a line after each set.

    Returns:
        `ta` and `ra` by way, `per_corruption`, `regret`, `oracle` scores with the confusion matrix; numbers in percent.

    Raises:
        InputError: if the source holds no corrupted images, or does not fit the bundle.
    """
    size = bundle.manifest.input.height
    replayer = Replayer(bundle, threads)
    names = replayer.oracle.corruptions
    ta: dict[str, float] = {}
    by_type: dict[str, dict[str, list[float]]] = {}
    by_severity: dict[int, dict[str, list[float]]] = {}
    named: dict[tuple[str, int], NDArray[np.int64]] = {}
    named_after: dict[tuple[str, int], NDArray[np.int64]] = {}
    pictures = Pictures(names)
    severity_error: list[float] = []
    count = 0
    for test in evaluation_sets(source, bundle.manifest.classes, size, severities, limit, seed):
        outcome = replayer.run(test)
        scores = {way: 100 * float(right.mean()) for way, right in outcome.correct.items()}
        named[test.corruption, test.severity] = np.bincount(outcome.types, minlength=1 + len(names))
        if len(outcome.stream_types):
            counts = np.bincount(outcome.stream_types, minlength=1 + len(names))
            named_after[test.corruption, test.severity] = counts
        pictures.add(test)
        severity_error.append(float(outcome.severity_error.mean()))
        count = len(test.images)
        if test.corruption == CLEAN:
            ta = scores
        else:
            for way in scores:
                by_type.setdefault(test.corruption, {}).setdefault(way, []).append(scores[way])
                by_severity.setdefault(test.severity, {}).setdefault(way, []).append(scores[way])
        if progress is not None:
            line = "  ".join(f"{way} {scores[way]:6.2f}" for way in WAYS)
            progress(f"{test.corruption:18s} {test.severity}  {line}")
    if not by_type:
        raise InputError(f"{source} holds no corrupted images at severity {', '.join(map(str, severities))}")
    per_corruption = {name: {way: _mean(values) for way, values in ways.items()} for name, ways in by_type.items()}
    ra = {way: _mean([scores[way] for scores in per_corruption.values()]) for way in (*WAYS, *PARTLY_TOLD)}
    same = pictures.same()
    return {
        "images": count,
        "severities": list(severities),
        "seed": seed,
        "ta": {way: round(ta[way], 2) for way in WAYS} if ta else {},
        "ra": {way: round(ra[way], 2) for way in WAYS},
        "regret": round(ra["perfect"] - ra["trained"], 2),
        "regret_split": {
            **_split(ra),
            "clean_frames_patched": round(ta["perfect"] - ta["trained"], 3) if ta else None,
            "per_corruption": {name: _split(ways) for name, ways in per_corruption.items()},
        },
        "oracle": {
            **_oracle_scores(named, names, same),
            f"after_{STREAM}_frames": _recalls(named_after, names, same),
            "severity_mae": round(float(np.mean(severity_error)), 3),
        },
        "per_corruption": {name: {way: round(ways[way], 2) for way in WAYS} for name, ways in per_corruption.items()},
        "per_severity": {
            str(severity): {way: round(_mean(ways[way]), 2) for way in WAYS}
            for severity, ways in sorted(by_severity.items())
        },
    }


def _split(accuracy: dict[str, float]) -> dict[str, float]:
    """What each step from being told to being on one's own costs, in points; they sum to the regret."""
    steps = pairwise(accuracy[way] for way in ("perfect", "state", "type", "corrupted", "trained"))
    names = ("policy", "severity", "type", "clean")
    shares = {name: told - less for name, (told, less) in zip(names, steps, strict=True)}
    return {name: round(value, 3) for name, value in (shares | {"total": sum(shares.values())}).items()}


Named = dict[tuple[str, int], NDArray[np.int64]]
"""How often each type, in the order of clean and the corruptions, was named for (corruption, severity)."""


def _recalls(named: Named, names: Sequence[str], same: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
    """Type accuracy, percent: every type counts alike, and every severity of it.

    Args:
        named: the counts.
        names: the corruptions.
        same: pairs that are the same picture at a severity: `merged` scores take one for the other as right.
    """
    order = [CLEAN, *names]
    raw: dict[str, dict[int, float]] = {}
    merged: dict[str, dict[int, float]] = {}
    for (name, severity), counts in named.items():
        twins = {twin for pair in same if name in pair[:2] and severity == pair[2] for twin in pair[:2]}
        share = 100 / counts.sum()
        raw.setdefault(name, {})[severity] = share * float(counts[order.index(name)])
        merged.setdefault(name, {})[severity] = share * float(sum(counts[order.index(twin)] for twin in twins | {name}))

    def scores(severities: Sequence[int]) -> dict[str, float]:
        found = {}
        for key, recall in (("type_accuracy", raw), ("type_accuracy_merged", merged)):
            kinds = [[by[s] for s in severities if s in by] for by in recall.values()]
            found[key] = round(_mean([_mean(kind) for kind in kinds if kind]), 2)
        return found

    severities = sorted({severity for _, severity in named})
    return {
        **(scores(severities) if severities else {}),
        "clean_recall": round(raw[CLEAN][0], 2) if CLEAN in raw else None,
        "per_severity": {str(severity): scores([severity]) for severity in severities if severity},
    }


def _oracle_scores(named: Named, names: Sequence[str], same: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
    order = [CLEAN, *names]
    confusion = np.zeros((len(order), len(order)), np.int64)
    for (name, _), counts in named.items():
        confusion[order.index(name)] += counts
    return {
        **_recalls(named, names, same),
        "merged": [list(pair) for pair in same],
        "confusion": {"names": order, "counts": confusion.tolist()},
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
