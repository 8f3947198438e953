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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.live.base import PatchableModel
from rws.errors import InputError
from rws.oracle.belief import CLEAN, Belief, certain
from rws.oracle.policy import ReferencePolicy
from rws.records import Mix
from rws.training.corruptions import CORRUPTIONS
from rws.training.data.images import Images, fitted, load_images
from rws.training.evaluation.judge import corrupted

WAYS = ("std", "trained", "perfect", "best", "always")
PARTLY_TOLD = ("state", "type", "corrupted")
SEVERITIES = (1, 2, 3, 4, 5)
STREAM = 8
_COMPARED_PIXELS = 200 * 32**2
BATCH = 50  # larger ones leave the cache: slower


@dataclass(frozen=True)
class TestSet:
    """Images of one type at one severity; severity 0 is clean."""

    corruption: str
    severity: int
    images: Images

    def to(self, device: str) -> TestSet:
        """The same set with its images on another device."""
        return replace(self, images=self.images.to(device))


def test_sets(
    source: str, classes: Sequence[str], size: int, severities: Sequence[int], limit: int | None, seed: int
) -> Iterator[TestSet]:
    """The sets to replay: clean images and their corruptions, or a set that is corrupted already.

    Args:
        source: a clean folder (`<class>/<image>`, or with `test/` above it) or data set name, resized to the bundle's
            input as frames are, and corrupted here; a folder
            in ImageNet-C's layout `<corruption>/<severity>/<class>/<image>`; or one with CIFAR-10-C's `.npy` files.
            The latter two hold clean images only where there is a `clean/<class>/` folder or a `clean.npy`.
        classes: the bundle's class names.
        size: the bundle's input side in pixels.
        severities: which of 1…5.
        limit: at most this many images of each set, spread over the classes by a seeded shuffle.
        seed: of the shuffle and the corruptions.

    Raises:
        InputError: if classes or sizes do not fit the bundle, or nothing is found.
    """
    folder = Path(source)
    if (folder / "labels.npy").is_file():
        sets = _npy_sets(folder, classes, severities)
    elif any((folder / name / "1").is_dir() or (folder / name / "5").is_dir() for name in CORRUPTIONS):
        sets = _folder_sets(folder, severities)
    else:
        split = "test" if not folder.is_dir() or any((folder / name).is_dir() for name in ("test", "val")) else None
        sets = corrupted_sets(load_images(source, split, size=size), severities, limit, seed)
    for found in sets:
        images = fitted(found.images, classes, size, source)
        yield TestSet(found.corruption, found.severity, _subset(images, limit, seed))


def _subset(images: Images, limit: int | None, seed: int) -> Images:
    if limit is None or limit >= len(images):
        return images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.take(order[:limit].sort().values)


def corrupted_sets(
    clean: Images, severities: Sequence[int], limit: int | None, seed: int, names: Sequence[str] = CORRUPTIONS
) -> Iterator[TestSet]:
    """At most `limit` clean images, then the same ones under every corruption of `names` at every severity."""
    chosen = _subset(clean, limit, seed)
    yield TestSet(CLEAN, 0, chosen)
    for name in names:
        for severity in severities:
            pixels = corrupted(chosen.pixels, ((name, severity),), seed)
            yield TestSet(name, severity, Images(pixels, chosen.labels, chosen.classes))


def _folder_sets(folder: Path, severities: Sequence[int]) -> Iterator[TestSet]:
    if (folder / CLEAN).is_dir():
        yield TestSet(CLEAN, 0, load_images(folder / CLEAN))
    for name in CORRUPTIONS:
        for severity in severities:
            if (folder / name / str(severity)).is_dir():
                yield TestSet(name, severity, load_images(folder / name / str(severity)))


def _npy_sets(folder: Path, classes: Sequence[str], severities: Sequence[int]) -> Iterator[TestSet]:
    labels = torch.from_numpy(_load_array(folder / "labels.npy").astype(np.int64))
    for name in (CLEAN, *CORRUPTIONS):
        file = folder / f"{name}.npy"
        if not file.is_file():
            continue
        array = _load_array(file)
        if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8:
            raise InputError(f"{file}: {array.dtype} {array.shape}, expected uint8 (N, H, W, 3)")
        if len(labels) < len(array):
            raise InputError(f"{file}: {len(array)} images, but labels.npy holds {len(labels)} labels")
        count = len(array) if name == CLEAN else len(array) // len(SEVERITIES)
        for severity in (0,) if name == CLEAN else severities:
            start = 0 if name == CLEAN else (severity - 1) * count
            pixels = torch.from_numpy(np.ascontiguousarray(array[start : start + count].transpose(0, 3, 1, 2)))
            yield TestSet(name, severity, Images(pixels, labels[start : start + count], tuple(classes)))


def _load_array(file: Path) -> NDArray[np.generic]:
    try:
        array: NDArray[np.generic] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{file}: is not a whole NumPy array file ({error})") from error
    return array


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
        self._perfect, self._best = ReferencePolicy(table, "perfect"), ReferencePolicy(table, "best")
        self._states = (table.corruptions, table.levels)
        self._always = {name: 1 / len(bundle.signatures.names) for name in bundle.signatures.names}

    def run(self, test: TestSet) -> dict[str, Any]:
        """Correct answers of each way, the oracle's types and severity errors, for one set.

        Returns:
            `correct`, {way: bool (N,)}; `types`, int (N,), indices into the names; `stream_types`, int (N // 8,), the
            same after each 8 frames, taken as a stream; `severity_error`, float (N,).
        """
        parts = [self._batch(test, start) for start in range(0, len(test.images), BATCH)]
        joint = np.concatenate([part["joint"] for part in parts])
        return {
            "stream_types": np.array([self._stream_type(joint[end - STREAM : end]) for end in _ends(len(joint))], int),
            "correct": {way: np.concatenate([part["correct"][way] for part in parts]) for way in (*WAYS, *PARTLY_TOLD)},
            "types": np.concatenate([part["types"] for part in parts]),
            "severity_error": np.concatenate([part["severity_error"] for part in parts]),
        }

    def _batch(self, test: TestSet, start: int) -> dict[str, Any]:
        x = (test.images.pixels[start : start + BATCH].numpy() / np.float32(255)).astype(np.float32)
        labels = test.images.labels[start : start + BATCH].numpy()
        joint = self.oracle.observe_batch(x)
        mixes: dict[str, list[Mix]] = {"std": [{}] * len(x)}
        for way, policy in (("perfect", self._perfect), ("best", self._best)):
            mixes[way] = [policy.mix(test.corruption, test.severity)] * len(x)
        mixes["trained"] = self.policy.mixes(joint)
        all_told = certain(*self._states, test.corruption, test.severity).joint
        mixes["state"] = self.policy.mixes(all_told[None]) * len(x)
        mixes |= {way: self.policy.mixes(self._tell(joint, test.corruption, way)) for way in ("type", "corrupted")}
        correct = self._correct(x, labels, mixes)
        self.model.apply(self._always)
        correct["always"] = self.model.predict(x).argmax(1) == labels
        per_level = joint[:, 1:].reshape(len(x), len(self.oracle.corruptions), -1)
        types = np.concatenate([joint[:, :1], per_level.sum(2)], axis=1).argmax(1)
        severity = per_level.sum(1) @ np.array(self.oracle.levels, np.float32)
        return {"joint": joint, "correct": correct, "types": types, "severity_error": np.abs(severity - test.severity)}

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

    def _correct(
        self, x: NDArray[np.float32], labels: NDArray[np.int64], mixes: dict[str, list[Mix]]
    ) -> dict[str, NDArray[np.bool_]]:
        """Whether each way's mixes, one a frame, classify each frame right; every frame once under each of them."""
        frames: dict[tuple[tuple[str, float], ...], set[int]] = {}
        keys = {way: [tuple(sorted(mix.items())) for mix in chosen] for way, chosen in mixes.items()}
        for chosen in keys.values():
            for frame, key in enumerate(chosen):
                frames.setdefault(key, set()).add(frame)
        right: dict[tuple[tuple[str, float], ...], NDArray[np.bool_]] = {}
        for key, members in frames.items():
            asked = np.array(sorted(members))
            self.model.apply(dict(key))
            right[key] = np.zeros(len(x), bool)
            right[key][asked] = self.model.predict(x[asked]).argmax(1) == labels[asked]
        return {way: np.array([right[key][frame] for frame, key in enumerate(chosen)]) for way, chosen in keys.items()}


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

    def add(self, test: TestSet) -> None:
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
        source, severities, limit, seed: see `test_sets`.
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
    for test in test_sets(source, bundle.manifest.classes, size, severities, limit, seed):
        outcome = replayer.run(test)
        scores = {way: 100 * float(right.mean()) for way, right in outcome["correct"].items()}
        named[test.corruption, test.severity] = np.bincount(outcome["types"], minlength=1 + len(names))
        if len(outcome["stream_types"]):
            counts = np.bincount(outcome["stream_types"], minlength=1 + len(names))
            named_after[test.corruption, test.severity] = counts
        pictures.add(test)
        severity_error.append(float(outcome["severity_error"].mean()))
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
