"""Our methods over streams, frame by frame as on the device.

`perfect` knows type and severity and patches every corrupted frame: below the lowest level with its alpha; `best` takes
the gain table's best action; `frame`: our oracle, each frame on its own; `trained`: with filter and hysteresis."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from torch import Tensor

from rws.benchmarks.streams.protocols import Floats, Ints, Method, Stream, frames_of
from rws.benchmarks.streams.scores import NAMES, named_types
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.live.base import PatchableModel
from rws.errors import check_known
from rws.oracle.belief import Belief
from rws.oracle.classifier import Oracle
from rws.oracle.policy import ReferencePolicy
from rws.records import Mix
from rws.training.evaluation.evaluator import (
    MixKey,
    Progress,
    as_input,
    averaged_mix,
    classify,
    mix_key,
    observe,
    silent,
)

OURS = ("std", "always", "perfect", "best", "frame", "trained")
_CHUNK = 512
"""Frames corrupted at once."""


class Ours:
    """One of `OURS`, frame by frame as on the device; raises UsageError if the name is unknown."""

    def __init__(self, name: str, bundle: Bundle, model: PatchableModel, oracle: Oracle) -> None:
        check_known("method", [name], OURS)
        self.name, self.model, self.oracle = name, model, oracle
        self.observes = name in ("frame", "trained")
        self._fixed = averaged_mix(bundle.signatures.names) if name == "always" else {}
        self._ground_truth = ReferencePolicy(bundle.table, name) if name in ("perfect", "best") else None
        self._policy = bundle.policy(independent=name == "frame")
        self._filter = bundle.filter()

    def reset(self) -> None:
        """Forget the past, as the frame loop does at a cut."""
        self._policy.reset()
        self._filter.reset()

    def choose(self, joint: Floats, kind: int, severity: float) -> tuple[Mix, Belief | None]:
        """Return the mix for the next frame, and the belief that it was chosen by (None if the method has no oracle).

        The oracle's joint, float32 (1 + C·S,), is read only if the method `observes`; kind and severity, the truth as
        in `Stream`, only by `perfect` and `best`.
        """
        if self._ground_truth is not None:
            return self._ground_truth.mix(NAMES[kind + 1], severity), None
        if not self.observes:
            return self._fixed, None
        belief = Belief(self.oracle.corruptions, self.oracle.levels, joint)
        if self.name == "frame":
            self._policy.reset()
        else:
            belief = self._filter.update(belief)
        return self._policy.choose(belief), belief

    def classify(self, x: Floats, types: Ints, severities: Floats) -> Ints:
        """See `Method`."""
        return np.array([self._one(*frame) for frame in zip(x, types, severities, strict=True)], np.int64)

    def _one(self, x: Floats, kind: int, severity: float) -> int:
        joint = self.oracle.observe_batch(x[None])[0] if self.observes else np.zeros(0, np.float32)
        self.model.apply(self.choose(joint, int(kind), float(severity))[0])
        return int(self.model.predict(x)[0].argmax())


def our_methods(bundle: Bundle, threads: int | None = 1) -> list[Ours]:
    """Return all of `OURS`; they share one model and one oracle, on `threads` (None: ONNX Runtime chooses)."""
    model, observer = bundle.model(ModelOptions(threads=threads)), bundle.oracle(threads=threads)
    return [Ours(name, bundle, model, observer) for name in OURS]


@dataclass(frozen=True)
class Outcome:
    """A method's answers on a stream of N frames.

    Args:
        predicted: int64 (N,), classes.
        mixes: the mixes that occurred; empty for a baseline.
        mix: int64 (N,), which of `mixes` each frame was classified with; empty for a baseline.
        believed: int64 (N,), most probable type, an index into `NAMES`; empty for a method without oracle.
    """

    predicted: Ints
    mixes: tuple[Mix, ...] = ()
    mix: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    believed: Ints = field(default_factory=lambda: np.zeros(0, np.int64))


def run_ours(
    methods: Sequence[Ours], streams: Mapping[str, Stream], pixels: Tensor, progress: Progress = silent
) -> dict[tuple[str, str], Outcome]:
    """Return the answers of `run_method` by (stream's name, method's name), sooner, as frames are shared.

    Args:
        pixels: uint8 (M, 3, H, W), RGB, the clean images.
    """
    if not methods or not streams:
        return {}
    frames, ids = _shared_frames(streams)
    model, observer = methods[0].model, methods[0].oracle
    joint = np.zeros((len(frames), 0), np.float32)
    if any(method.observes for method in methods):
        joint = _observe(observer, frames, pixels)
        progress(f"oracle: {len(frames)} frames")

    keys: dict[MixKey, int] = {}
    chosen: dict[tuple[str, str], tuple[Ints, Ints]] = {}
    for name, stream in streams.items():
        for method in methods:
            chosen[name, method.name] = _choices(method, stream, joint[ids[name]], keys)
    progress(f"policies: {sum(map(len, streams.values()))} frames, {len(keys)} mixes")

    mixes = [dict(key) for key in keys]
    # Each frame once under each mix that a method took for it: mix * frames + frame.
    asked = np.unique(np.concatenate([mix * len(frames) + ids[name] for (name, _), (mix, _) in chosen.items()]))
    answers = np.empty(len(asked), np.int64)
    for start, shown in _parts(frames, pixels):
        frame = asked % len(frames)
        here = np.flatnonzero((frame >= start) & (frame < start + len(shown)))
        chosen_mixes = [mixes[mix] for mix in asked[here] // len(frames)]
        answers[here] = classify(model, shown, chosen_mixes, frame[here] - start)
    model.reset()
    progress(f"model: {len(asked)} answers")

    outcomes = {}
    for (name, method_name), (mix, believed) in chosen.items():
        used, index = np.unique(mix, return_inverse=True)
        outcomes[name, method_name] = Outcome(
            answers[np.searchsorted(asked, mix * len(frames) + ids[name])],
            tuple(mixes[each] for each in used),
            index.reshape(-1),
            believed,
        )
    return outcomes


def observe_streams(observer: Oracle, streams: Mapping[str, Stream], pixels: Tensor) -> dict[str, Floats]:
    """Return the oracle's joint, float32 (N, 1 + C·S), of each stream's frames; pixels as for `run_ours`."""
    frames, ids = _shared_frames(streams)
    joint = _observe(observer, frames, pixels)
    return {name: joint[ids[name]] for name in streams}


def run_method(method: Method, stream: Stream, pixels: Tensor, batch: int) -> Ints:
    """Return a method's answers on a stream, int64 (N,); it is reset at each cut, and no `batch` reaches over one."""
    step = batch * -(-_CHUNK // batch)  # a whole number of batches is corrupted at once
    answers = []
    for first, last in pairwise([*np.flatnonzero(stream.cut).tolist(), len(stream)]):
        method.reset()
        for start in range(first, last, step):
            stop = min(start + step, last)
            x = as_input(frames_of(stream, pixels, start, stop))
            types, severities = stream.type[start:stop], stream.severity[start:stop]
            for begin in range(0, len(x), batch):
                part = slice(begin, begin + batch)
                answers.append(method.classify(x[part], types[part], severities[part]))
    return np.concatenate(answers)


def _shared_frames(streams: Mapping[str, Stream]) -> tuple[Stream, dict[str, Ints]]:
    # All frames that occur, each once, sorted by type, and which of them each stream shows.
    parts = list(streams.values())
    columns = [
        np.concatenate([getattr(part, key).astype(np.float64 if key == "severity" else np.int64) for part in parts])
        for key in ("type", "severity", "image", "seed")
    ]
    # Not as one array: a seed has 64 bits, and a severity is a fraction.
    order = np.lexsort(columns[::-1])
    new = np.arange(len(order)) == 0
    for column in columns:
        new[1:] |= column[order][1:] != column[order][:-1]
    ids = np.empty(len(order), np.int64)
    ids[order] = np.cumsum(new) - 1
    kind, severity, image, seed = (column[order][new] for column in columns)
    frames = Stream("", image, kind, severity.astype(np.float32), seed, np.zeros(len(image), np.bool_))
    stops = np.cumsum([len(part) for part in parts])
    return frames, dict(zip(streams, np.split(ids, stops[:-1]), strict=True))


def _parts(frames: Stream, pixels: Tensor) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(frames), _CHUNK):
        yield start, frames_of(frames, pixels, start, min(start + _CHUNK, len(frames)))


def _observe(observer: Oracle, frames: Stream, pixels: Tensor) -> Floats:
    return np.concatenate([observe(observer, shown) for _, shown in _parts(frames, pixels)])


def _choices(method: Ours, stream: Stream, joint: Floats, keys: dict[MixKey, int]) -> tuple[Ints, Ints]:
    # The number of the mix in `keys` (new ones are added) and the believed type of each frame.
    mix = np.empty(len(stream), np.int64)
    beliefs = np.zeros_like(joint)
    for frame in range(len(stream)):
        if stream.cut[frame]:
            method.reset()
        chosen, belief = method.choose(joint[frame], int(stream.type[frame]), float(stream.severity[frame]))
        mix[frame] = keys.setdefault(mix_key(chosen), len(keys))
        if belief is not None:
            beliefs[frame] = belief.joint
    if not method.observes:
        return mix, np.zeros(0, np.int64)
    return mix, named_types(beliefs, method.oracle.corruptions) + 1
