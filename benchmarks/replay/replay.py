"""Replay a corrupted test set through a bundle: no patch, our oracle, the ground truth, all signatures always.

Regret = perfect − trained. Its split goes from one to the other with the bundle's policy and an oracle that knows less
and less: type and severity (`state`), the type, whether the frame is corrupted at all, nothing."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from rws.benchmarks.common.tables import Record, columns, label, terminal
from rws.benchmarks.streams.protocols import Flags, Floats, Ints
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.live.base import PatchableModel
from rws.errors import InputError
from rws.oracle.belief import CLEAN, Belief, certain, per_type
from rws.oracle.policy import ReferencePolicy
from rws.records import Mix
from rws.training.evaluation.evaluator import (
    DEFAULTS,
    EvaluationOptions,
    Evaluator,
    Progress,
    averaged_mix,
    ground_truth_mixes,
    observe,
    silent,
)
from rws.training.evaluation.sets import EvaluationSet, list_sets
from rws.training.jobs.graph import Graph, Job
from rws.training.jobs.store import ARRAYS, Codec, Store

ARMS = {
    "std": "no patch",
    "trained": "trained oracle",
    "perfect": "perfect oracle",
    "best": "best action",
    "always": "all averaged",
}
"""What is printed for each arm."""

REPLAY_VERSION = 1  # raise it when the same bundle and images give other outcomes
PARTIAL_ORACLES = ("state", "type", "corrupted")
STREAM = 8
_COMPARED_PIXELS = 200 * 32**2

SetKey = tuple[str, int]
"""Corruption and severity."""
Accuracies = dict[str, float]
"""Percent by arm."""


@dataclass(frozen=True)
class SetOutcome:
    """What was evaluated on one set of N images; types are indices into clean and the corruptions.

    Args:
        correct: for each arm whether it classifies each image right, bool (N,).
        types, stream_types: the most probable type, int64 (N,); after each 8 frames, taken as a stream, (N // 8,).
        severity_error: absolute error of the expected severity, float (N,).
        samples: the first images, few if they are large, uint8 (n, 3, H, W).
    """

    correct: Mapping[str, Flags]
    types: Ints
    stream_types: Ints
    severity_error: NDArray[np.floating[Any]]
    samples: NDArray[np.uint8]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return all of it as arrays."""
        correct = {f"correct.{arm}": right for arm, right in self.correct.items()}
        rest = ("types", "stream_types", "severity_error", "samples")
        return correct | {name: getattr(self, name) for name in rest}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "SetOutcome":
        """Return the outcome that `to_arrays` gave."""
        correct = {name.removeprefix("correct."): a for name, a in arrays.items() if name.startswith("correct.")}
        return cls(correct, *(arrays[name] for name in ("types", "stream_types", "severity_error", "samples")))


OUTCOME: Codec[SetOutcome] = Codec(
    lambda outcome: ARRAYS.encode(outcome.to_arrays()), lambda content: SetOutcome.from_arrays(ARRAYS.decode(content))
)


class Replayer:
    """Runs evaluation sets through a bundle's model (of another backend if given) under each arm."""

    def __init__(self, bundle: Bundle, threads: int | None = None, model: PatchableModel | None = None) -> None:
        self.model = bundle.model(ModelOptions(threads=threads)) if model is None else model
        self._input, self.oracle = bundle.manifest.input, bundle.oracle(threads=threads)
        self.policy = bundle.policy(independent=True)
        self._filter = bundle.filter()
        self._perfect, self._best = ReferencePolicy(bundle.table, "perfect"), ReferencePolicy(bundle.table, "best")
        self._always = averaged_mix(bundle.signatures.names)

    def run(self, test: EvaluationSet) -> SetOutcome:
        """Evaluate all arms on one set."""
        frames, count = test.frames, len(test.images)
        corruptions, levels = self.oracle.corruptions, self.oracle.levels
        joint = observe(self.oracle, frames.pixels)
        state = certain(corruptions, levels, test.corruption, test.severity).joint[None]
        mixes: dict[str, list[Mix]] = {
            "std": [{}] * count,
            "trained": self.policy.mixes(joint),
            "perfect": ground_truth_mixes(self._perfect, frames),
            "best": ground_truth_mixes(self._best, frames),
            "always": [self._always] * count,
            "state": self.policy.mixes(state) * count,
            "type": self.policy.mixes(self.partial(joint, test.corruption, "type")),
            "corrupted": self.policy.mixes(self.partial(joint, test.corruption, "corrupted")),
        }
        evaluator = Evaluator(self.model, frames, self._input)
        severity = joint[:, 1:].reshape(count, len(corruptions), -1).sum(1) @ np.array(levels, np.float32)
        ends = range(STREAM, count + 1, STREAM)
        return SetOutcome(
            correct={arm: evaluator.right(chosen) for arm, chosen in mixes.items()},
            types=per_type(joint, len(corruptions)).argmax(1),
            stream_types=np.array([self._stream_type(joint[end - STREAM : end]) for end in ends], np.int64),
            severity_error=np.abs(severity - test.severity),
            samples=test.images.pixels[: max(1, min(200, _COMPARED_PIXELS // test.images.size**2))].cpu().numpy(),
        )

    def _stream_type(self, joint: Floats) -> int:
        self._filter.reset()
        for frame in joint:
            belief = self._filter.update(Belief(self.oracle.corruptions, self.oracle.levels, frame))
        return int(belief.probability.argmax())

    def partial(self, joint: Floats, corruption: str, knows: str) -> Floats:
        """Return the beliefs of an oracle that `knows` the true `type`, or only whether the frame is `corrupted`.

        Args:
            joint: our oracle's beliefs, float32 (N, 1 + C·S).
        """
        possible = np.arange(joint.shape[1]) > 0
        if corruption == CLEAN:
            possible = ~possible
        elif knows == "type":
            steps = len(self.oracle.levels)
            first = 1 + self.oracle.corruptions.index(corruption) * steps
            possible[:first] = possible[first + steps :] = False
        # The least of a mass, so that a frame of which the oracle has no idea still gets some action.
        kept: Floats = np.where(possible, np.maximum(joint, np.float32(1e-12)), np.float32(0))
        share: Floats = kept / kept.sum(axis=1, keepdims=True)
        return share


def indistinguishable_pairs(
    samples: Mapping[SetKey, NDArray[np.uint8]], corruptions: Sequence[str], limit: float = 0.5
) -> list[tuple[str, str, int]]:
    """Return (corruption, corruption, severity) of pairs that make the same image: no oracle can tell them apart.

    Args:
        samples: the first images of each set, uint8 (n, 3, H, W).
        limit: largest mean absolute difference, in grey levels.
    """
    found = []
    for severity in sorted({severity for _, severity in samples}):
        here = [name for name in corruptions if (name, severity) in samples]
        for first, second in combinations(here, 2):
            one, other = samples[first, severity], samples[second, severity]
            if one.shape == other.shape and np.abs(one.astype(np.int16) - other).mean() <= limit:
                found.append((first, second, severity))
    return found


@dataclass(frozen=True)
class ReplayOptions:
    """What is replayed; plain data. `source`, `limit` and `seed` are those of `list_sets`.

    `work` is the folder of the finished sets; None keeps none. `threads` of model and oracle; None: the backend's.
    """

    bundle: Path
    source: str
    severities: tuple[int, ...] = (5,)
    limit: int | None = None
    seed: int = 0
    threads: int | None = None
    work: Path | None = None


class Replay:
    """The sets of a replay, each a job; InputError if the source holds no corrupted images, or does not fit."""

    def __init__(self, options: ReplayOptions, bundle: Bundle | None = None) -> None:
        self.options, self.bundle = options, bundle or Bundle.load(options.bundle)
        manifest = self.bundle.manifest
        how = (options.source, manifest.classes, manifest.input.height, options.severities, options.limit, options.seed)
        cache = options.work and options.work / "images"
        self._sets = {f"{found.corruption}-{found.severity}": found for found in list_sets(*how, cache=cache)}
        self._store = Store(options.work, "keep")
        if not any(found.severity for found in self._sets.values()):
            at = ", ".join(map(str, options.severities))
            raise InputError(f"{options.source} holds no corrupted images at severity {at}")

    @cached_property
    def _replayer(self) -> Replayer:
        return Replayer(self.bundle, self.options.threads)

    @cached_property
    def _digest(self) -> str:
        """Of all of the bundle that decides a result."""
        manifest = json.loads(self.bundle.manifest.to_bytes())
        decides = {key: value for key, value in manifest.items() if key not in ("name", "provenance", "measured")}
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()

    def graph(self) -> Graph:
        """Return the jobs."""
        return {f"set-{name}": Job(partial(self.outcome, name)) for name in self._sets}

    def outcome(self, name: str) -> SetOutcome:
        """Return what is kept of a set, `corruption-severity`, or evaluate it."""
        identity = {
            "version": REPLAY_VERSION,
            "bundle": self._digest,
            "images": self._sets[name].digest(),
            "set": name,
            "limit": self.options.limit,
            "seed": self.options.seed,
        }
        return self._store.get(f"{name}.npz", identity, lambda: self._replayer.run(self._sets[name].load()), OUTCOME)

    def summed(self, progress: Progress = silent) -> Record:
        """Return the result over all sets; `progress` gets a line about each."""
        sums = _Sums(self.bundle.table.corruptions)
        for name, found in self._sets.items():
            scores = sums.add((found.corruption, found.severity), self.outcome(name))
            line = "  ".join(f"{label} {scores[arm]:6.2f}" for arm, label in ARMS.items())
            progress(f"{found.corruption:18s} {found.severity}  {line}")
        return sums.result(self.options)


def open_graph(options: ReplayOptions) -> Graph:
    """Open the graph of a replay in another process."""
    return Replay(options).graph()


def replay(
    bundle: Bundle, source: str, severities: Sequence[int] = (5,), options: EvaluationOptions = DEFAULTS
) -> Record:
    """Replay a test set in this process, as `Replay`."""
    how = ReplayOptions(bundle.path, source, tuple(severities), options.limit, options.seed, options.threads)
    return Replay(how, bundle).summed(options.progress)


@dataclass
class _Sums:
    corruptions: Sequence[str]
    scores: dict[SetKey, Accuracies] = field(default_factory=dict)
    named: dict[SetKey, Ints] = field(default_factory=dict)
    named_after: dict[SetKey, Ints] = field(default_factory=dict)
    samples: dict[SetKey, NDArray[np.uint8]] = field(default_factory=dict)
    severity_error: list[float] = field(default_factory=list)
    images: int = 0

    def add(self, key: SetKey, outcome: SetOutcome) -> Accuracies:
        self.scores[key] = {arm: 100 * float(right.mean()) for arm, right in outcome.correct.items()}
        self.named[key] = np.bincount(outcome.types, minlength=1 + len(self.corruptions))
        if len(outcome.stream_types):
            self.named_after[key] = np.bincount(outcome.stream_types, minlength=1 + len(self.corruptions))
        self.samples[key] = outcome.samples
        self.severity_error.append(float(outcome.severity_error.mean()))
        self.images = len(outcome.types)
        return self.scores[key]

    def result(self, options: ReplayOptions) -> Record:
        ra, per_corruption = self.by_corruption()
        ta = self.scores.get((CLEAN, 0))
        return {
            "images": self.images,
            "severities": list(options.severities),
            "seed": options.seed,
            "ta": _rounded(ta) if ta else {},
            "ra": _rounded(ra),
            "regret": round(ra["perfect"] - ra["trained"], 2),
            "regret_split": {
                **_split(ra),
                "clean_frames_patched": round(ta["perfect"] - ta["trained"], 3) if ta else None,
                "per_corruption": {name: _split(scores) for name, scores in per_corruption.items()},
            },
            "oracle": self.oracle_scores(),
            "per_corruption": {name: _rounded(scores) for name, scores in per_corruption.items()},
            "per_severity": self.by_severity(),
        }

    def by_corruption(self) -> tuple[Accuracies, dict[str, Accuracies]]:
        names = dict.fromkeys(name for name, _ in self.scores if name != CLEAN)
        found = {name: _mean_of([scores for key, scores in self.scores.items() if key[0] == name]) for name in names}
        return _mean_of(list(found.values())), found

    def by_severity(self) -> dict[str, Accuracies]:
        at: dict[int, list[Accuracies]] = {}
        for (name, severity), scores in sorted(self.scores.items(), key=lambda item: item[0][1]):
            if name != CLEAN:
                at.setdefault(severity, []).append(scores)
        return {str(severity): _rounded(_mean_of(scores)) for severity, scores in at.items()}

    def oracle_scores(self) -> Record:
        order = [CLEAN, *self.corruptions]
        same = indistinguishable_pairs(self.samples, self.corruptions)
        confusion = np.zeros((len(order), len(order)), np.int64)
        for (name, _), counts in self.named.items():
            confusion[order.index(name)] += counts
        return {
            **_recalls(self.named, order, same),
            "merged": [list(pair) for pair in same],
            "confusion": {"names": order, "counts": confusion.tolist()},
            "after_8_frames": _recalls(self.named_after, order, same),
            "severity_mae": round(float(np.mean(self.severity_error)), 3),
        }


def _rounded(scores: Accuracies) -> Accuracies:
    return {arm: round(scores[arm], 2) for arm in ARMS}


def _mean_of(scores: Sequence[Accuracies]) -> Accuracies:
    return {arm: float(np.mean([each[arm] for each in scores])) for arm in (*ARMS, *PARTIAL_ORACLES)}


def _split(accuracy: Accuracies) -> Accuracies:
    """Return the points of accuracy that each share of the regret costs; they sum to `total`."""
    steps = pairwise(accuracy[arm] for arm in ("perfect", *PARTIAL_ORACLES, "trained"))
    shares = [more - less for more, less in steps]
    names = ("policy", "severity", "type", "clean", "total")
    return {name: round(share, 3) for name, share in zip(names, (*shares, sum(shares)), strict=True)}


def _recalls(named: Mapping[SetKey, Ints], order: Sequence[str], same: Sequence[tuple[str, str, int]]) -> Record:
    raw, merged = (defaultdict[str, dict[int, float]](dict) for _ in range(2))
    for (name, severity), counts in named.items():
        twins = {twin for pair in same if name in pair[:2] and severity == pair[2] for twin in pair[:2]}
        share = 100 / counts.sum()
        raw[name][severity] = share * float(counts[order.index(name)])
        merged[name][severity] = share * float(sum(counts[order.index(twin)] for twin in twins | {name}))

    def mean_at(recall: Mapping[str, Mapping[int, float]], at: Sequence[int]) -> float:
        kinds = [[by[severity] for severity in at if severity in by] for by in recall.values()]
        return round(float(np.mean([np.mean(kind) for kind in kinds if kind])), 2)

    def scores(at: Sequence[int]) -> Record:
        return {"type_accuracy": mean_at(raw, at), "type_accuracy_merged": mean_at(merged, at)}

    severities = sorted({severity for _, severity in named})
    recall = round(raw[CLEAN][0], 2) if CLEAN in raw else None
    per_severity = {str(severity): scores([severity]) for severity in severities if severity}
    return {**(scores(severities) if severities else {}), "clean_recall": recall, "per_severity": per_severity}


_COLUMNS = (label("", "name"), *columns({title: arm for arm, title in ARMS.items()}, ".2f"))


def print_replay(result: Record, console: Console) -> None:
    """Print clean and robust accuracy of the arms, the regret and the oracle's scores on a console."""
    parts = {"clean accuracy": result["ta"], "robust accuracy": result["ra"]}
    console.print(terminal(_COLUMNS, [{"name": name, **scores} for name, scores in parts.items() if scores]))
    scores = result["oracle"]
    recall = "" if scores["clean_recall"] is None else f"clean recall {scores['clean_recall']:.2f} %, "
    known = f"type {scores['type_accuracy']:.2f} %, {recall}severity error {scores['severity_mae']:.2f}"
    console.print(f"regret {result['regret']:.2f}; oracle: {known}")
