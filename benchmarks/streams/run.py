"""Methods over streams, all on the same frames: accuracy by protocol and type, switch rate, reaction delay.

Ours: `std` is never patched; `always` carries all signatures averaged; `perfect` is told type and severity and uses the
type's own signature at its calibrated alpha, which between severity 0 and the lowest level is the lowest level's (in
`gradual` it so patches frames that no patch would serve better); `best` is told them and takes the gain table's best
action; `frame` is our oracle, each frame on its own; `trained` is our oracle with the temporal filter and the policy's
hysteresis. They judge frame by frame whatever the batch, so they have one row, of batch 1. Rivals have a row for each
batch size.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rws.benchmarks.baselines.methods import RIVALS_VERSION, Rival, Sample, measure_cost, rival_methods
from rws.benchmarks.streams.protocols import PROTOCOLS, Method, Stream, frames_of, make_stream
from rws.benchmarks.streams.scores import (
    NAMES,
    delays,
    mean_by_type,
    right_mix,
    run_lengths,
    running_mean,
    switch_rate,
)
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import MODEL
from rws.edge.bundle.options import ModelOptions
from rws.edge.common.files import atomic_write_bytes
from rws.edge.common.provenance import provenance
from rws.edge.live.base import PatchableModel
from rws.errors import InputError
from rws.oracle.belief import Belief, per_type
from rws.oracle.classifier import Oracle
from rws.oracle.policy import ToldPolicy
from rws.records import Mix
from rws.training.corruptions import CORRUPTIONS
from rws.training.data.images import Images, fitted, load_images
from rws.training.evaluation.evaluator import MixKey, as_input, averaged_mix, classify, mix_key, observe
from rws.training.jobs.store import ARRAYS, JSON, Codec, Entry, Store

STREAMS_VERSION = 1
"""Raise it when the same streams and bundle give other frames or answers."""

OURS = ("std", "always", "perfect", "best", "frame", "trained")
TIMELINE_FRAMES, TIMELINE_WINDOW, TIMELINE_STEP = 100, 40, 20

_CHUNK = 512
"""Frames corrupted at once."""

Progress = Callable[[str], None]


class Ours:
    """One of `OURS`, frame by frame as on the device.

    Args:
        name: one of `OURS`.
        bundle: the bundle.
        model, oracle: the bundle's, which several methods may share.

    Raises:
        InputError: if the name is unknown.
    """

    def __init__(self, name: str, bundle: Bundle, model: PatchableModel, oracle: Oracle) -> None:
        if name not in OURS:
            raise InputError(f"unknown method {name!r}; known: {', '.join(OURS)}")
        self.name, self.model, self.oracle = name, model, oracle
        self.observes = name in ("frame", "trained")
        self._fixed: Mix = {}
        if name == "always":
            self._fixed = averaged_mix(bundle.signatures.names)
        self._told = ToldPolicy(bundle.table, own=name == "perfect") if name in ("perfect", "best") else None
        self._policy = bundle.policy(independent=name == "frame")
        self._filter = bundle.filter()

    def reset(self) -> None:
        """Forget the past, as the frame loop does at a cut."""
        self._policy.reset()
        self._filter.reset()

    def choose(self, joint: NDArray[np.float32], kind: int, severity: float) -> tuple[Mix, Belief | None]:
        """The mix for the next frame, and the belief that it was chosen by; None for who does not observe.

        Args:
            joint: the oracle's, float32 (1 + C·S,); read only where `observes`.
            kind, severity: the truth, as in `Stream`; read only by who is told.
        """
        if self._told is not None:
            return self._told.choose_told(NAMES[kind + 1], severity), None
        if not self.observes:
            return self._fixed, None
        belief = Belief(self.oracle.corruptions, self.oracle.levels, joint)
        if self.name == "frame":
            self._policy.reset()
        else:
            belief = self._filter.update(belief)
        return self._policy.choose(belief), belief

    def classify(
        self, x: NDArray[np.float32], types: NDArray[np.int64], severities: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """See `Method`."""
        return np.array([self._one(*frame) for frame in zip(x, types, severities, strict=True)], np.int64)

    def _one(self, x: NDArray[np.float32], kind: int, severity: float) -> int:
        joint = self.oracle.observe_batch(x[None])[0] if self.observes else np.zeros(0, np.float32)
        self.model.apply(self.choose(joint, int(kind), float(severity))[0])
        return int(self.model.predict(x).argmax())


def our_methods(bundle: Bundle, threads: int | None = 1) -> list[Ours]:
    """All of `OURS`; they share one model and one oracle.

    Args:
        bundle: the bundle.
        threads: threads of model and oracle; None leaves the choice to ONNX Runtime.
    """
    model, observer = bundle.model(ModelOptions(threads=threads)), bundle.oracle(threads=threads)
    return [Ours(name, bundle, model, observer) for name in OURS]


@dataclass(frozen=True)
class Outcome:
    """A method's answers on a stream of N frames.

    Args:
        predicted: int64 (N,), classes.
        mixes: the mixes that were in force at one time or another; empty for a method without any.
        mix: int64 (N,), which of `mixes` each frame was classified with; empty for a method without any.
        believed: int64 (N,), most probable type, an index into `stream_scores.NAMES`; empty for who does not observe.
    """

    predicted: NDArray[np.int64]
    mixes: tuple[Mix, ...] = ()
    mix: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    believed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def run_ours(
    methods: Sequence[Ours], streams: Mapping[str, Stream], pixels: Tensor, progress: Progress | None = None
) -> dict[tuple[str, str], Outcome]:
    """Run our methods over streams: what `run_method` gives for each, in a fraction of the time.

    The streams share most frames, and all that depends on one frame alone (pixels, the oracle's joint probabilities,
    the answer under a mix) is computed once. Filter and policy run over each stream frame by frame.

    Args:
        methods: from `our_methods`.
        streams: by a name of the caller's choice.
        pixels: uint8 (M, 3, H, W), RGB, the clean images.
        progress: called with a line now and then.

    Returns:
        Outcomes by (stream's name, method's name).
    """
    if not methods or not streams:
        return {}
    say = progress or (lambda line: None)
    frames, ids = _shared_frames(streams)
    model, observer = methods[0].model, methods[0].oracle
    joint = np.zeros((len(frames), 0), np.float32)
    if any(method.observes for method in methods):
        joint = _observe(observer, frames, pixels)
        say(f"oracle: {len(frames)} frames")

    keys: dict[MixKey, int] = {}
    chosen: dict[tuple[str, str], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    for name, stream in streams.items():
        for method in methods:
            chosen[name, method.name] = _choices(method, stream, joint[ids[name]], keys)
    say(f"policies: {sum(map(len, streams.values()))} frames, {len(keys)} mixes")

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
    say(f"model: {len(asked)} answers")

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


def observe_streams(observer: Oracle, streams: Mapping[str, Stream], pixels: Tensor) -> dict[str, NDArray[np.float32]]:
    """The oracle's joint probabilities, float32 (N, 1 + C·S), of each stream's frames; equal frames are seen once.

    Args:
        observer: the oracle.
        streams: by a name of the caller's choice.
        pixels: uint8 (M, 3, H, W), RGB, the clean images.
    """
    frames, ids = _shared_frames(streams)
    joint = _observe(observer, frames, pixels)
    return {name: joint[ids[name]] for name in streams}


def run_method(method: Method, stream: Stream, pixels: Tensor, batch: int) -> NDArray[np.int64]:
    """A method's answers on a stream, int64 (N,); it is reset at each cut, and no batch reaches over one.

    Args:
        method: any method.
        stream: N frames.
        pixels: uint8 (M, 3, H, W), RGB, the clean images.
        batch: frames that it is given at once.
    """
    cuts = [*np.flatnonzero(stream.cut).tolist(), len(stream)]
    answers = []
    for first, last in pairwise(cuts):
        method.reset()
        # A whole number of batches is corrupted at once.
        step = batch * -(-_CHUNK // batch)
        for start in range(first, last, step):
            stop = min(start + step, last)
            x = as_input(frames_of(stream, pixels, start, stop))
            for begin in range(start, stop, batch):
                part = slice(begin, min(begin + batch, stop))
                here = slice(part.start - start, part.stop - start)
                answers.append(method.classify(x[here], stream.type[part], stream.severity[part]))
    return np.concatenate(answers)


def replay_streams(
    bundle: Bundle,
    source: str,
    *,
    protocols: Sequence[str] = PROTOCOLS,
    frames: int = 500,
    severity: float | Literal["all"] = 5.0,
    seed: int = 0,
    batches: Sequence[int] = (1, 64),
    rivals: Path | None = None,
    parts: Path | None = None,
    resume: bool = True,
    remeasure: bool = False,
    threads: int | None = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run our methods, and the rivals if asked for, over the protocols' streams, and sum it up.

    Args:
        bundle: the bundle.
        source: clean test images as `rws.benchmarks.replay.replay` takes them: a folder or a data set's name.
        protocols: which of `PROTOCOLS`.
        frames, severity, seed: see `make_stream`.
        batches: batch sizes of the rivals.
        rivals: folder of the rivals' models; None for our methods alone.
        parts: folder for the answers of each finished (protocol, method, batch), and for time and memory at each batch;
            None to keep none.
        resume: take what `parts` holds of this very run: same frames, bundle, rivals' models and version of the code;
            for time and memory also the same machine and versions.
        remeasure: measure time and memory even if `parts` holds them.
        threads: threads of our model and oracle.
        progress: called with a line after each part.

    Returns:
        `types`, the order of the lists `per_type` (None where the bundle does not know a corruption);
        `rows`, one a (protocol, method, batch): `ra`, accuracy over the corrupted frames (mean of the types), and `ta`,
        over the clean ones, `regret` = RA(perfect) − RA, `ta_lost` = TA(perfect) − TA, `per_type`, all in percent, and
        for those of ours that choose a mix `switch_rate` (percent of frames), and where the gain table can tell,
        `right` (percent of frames), `delay` and `delay_severity` (frames; see `stream_scores.delays`);
        `timeline`, see `make_timeline`;
        `cost`, with rivals: see `rws.benchmarks.baselines.methods.measure_cost`.

    Raises:
        InputError: if an argument is out of range, the images do not fit the bundle, the bundle knows a corruption
            that cannot be made here, or a rival is not trained yet or cannot take such batches.
    """
    corruptions = known_corruptions(bundle)
    unknown = [name for name in protocols if name not in PROTOCOLS]
    if unknown:
        raise InputError(f"unknown protocol {unknown[0]!r}; known: {', '.join(PROTOCOLS)}")
    if not batches or min(batches) < 1:
        raise InputError(f"batch sizes are {list(batches)}, expected at least one, each 1 or more")
    say = progress or (lambda line: None)
    images = clean_images(bundle, source)
    labels = images.labels.numpy()
    # In the order of `PROTOCOLS`, each once.
    streams = {
        name: make_stream(name, labels, frames=frames, severity=severity, seed=seed, corruptions=corruptions)
        for name in PROTOCOLS
        if name in protocols
    }
    others = [] if rivals is None else rival_methods(bundle, rivals)
    store = Store(parts, "keep", resume)
    methods = our_methods(bundle, threads)
    outcomes = _run_ours_or_load(methods, streams, images.pixels, store, _our_run(bundle, images), say)
    found = [(name, method.name, 1, outcomes[name, method.name]) for name in streams for method in methods]
    run = _rivals_run(bundle, images)
    for batch, method, (name, stream) in product(dict.fromkeys(batches), others, streams.items()):
        outcome = _run_rival_or_load(method, stream, images.pixels, batch, store, run, say)
        found.append((name, method.name, batch, outcome))
    rows = [
        {"protocol": name, "method": method, "batch": batch}
        | _row(streams[name], labels, method, outcome, outcomes[name, "perfect"], bundle)
        for name, method, batch, outcome in sorted(found, key=lambda part: PROTOCOLS.index(part[0]))
    ]
    result: dict[str, Any] = {
        "frames_per_type": frames,
        "severity": severity,
        "seed": seed,
        "images": {"count": len(images), "sha256": images.digest()},
        "bundle": {"name": bundle.manifest.name, "files": _file_digests(bundle)},
        "types": list(NAMES),
        "rows": rows,
    }
    if "continual" in streams:
        result["timeline"] = make_timeline(bundle, images, min(frames, TIMELINE_FRAMES), severity, seed, threads)
    if rivals is not None:
        sample = _sample(next(iter(streams.values())), images.pixels, 8 * max(batches))
        run = _cost_run(bundle, others, len(sample[0]))
        costs = replace(store, resume=resume and not remeasure)
        result["cost"] = _cost_or_load(bundle, rivals, sample, batches, costs, run, say)
    return result


def known_corruptions(bundle: Bundle) -> tuple[str, ...]:
    """The corruptions that streams for this bundle are made of: those that it knows.

    Raises:
        InputError: if one of them cannot be made here.
    """
    unknown = [name for name in bundle.manifest.corruptions if name not in CORRUPTIONS]
    if unknown:
        raise InputError(
            f"{bundle.path} knows the corruption {unknown[0]!r}, which streams cannot show; take a bundle that only "
            f"knows some of {', '.join(CORRUPTIONS)}"
        )
    return bundle.manifest.corruptions


def clean_images(bundle: Bundle, source: str, split: str | None = "test") -> Images:
    """Clean images at the bundle's size, with its class order.

    Args:
        bundle: the bundle.
        source: see `rws.training.data.images.load_images`; a folder without split folders is taken as it is.
        split: `test` or `train`.

    Raises:
        InputError: if they are not there, do not fit the bundle, or are corrupted already.
    """
    folder, size = Path(source), bundle.manifest.input.height
    levels = [folder / name / level for name in CORRUPTIONS for level in ("1", "5")]
    if (folder / "labels.npy").is_file() or any(level.is_dir() for level in levels):
        raise InputError(
            f"{source} holds images that are corrupted already; streams (--protocol) corrupt clean ones themselves: "
            "give a clean test folder or data set"
        )
    splits = any((folder / name).is_dir() for name in ("train", "test", "val"))
    images = load_images(source, split if splits or not folder.is_dir() else None, size=size)
    return fitted(images, bundle.manifest.classes, size, source)


def make_timeline(
    bundle: Bundle,
    images: Images,
    frames: int = TIMELINE_FRAMES,
    severity: float | Literal["all"] = 5.0,
    seed: int = 0,
    threads: int | None = 1,
) -> dict[str, Any]:
    """A short `continual` stream of its own to draw: `frames` of each type, all 20 under 10 kB of JSON.

    Returns:
        `protocol`, `seed`, `severity`; `frames`: N; `types`: names that all indices below stand for;
        `true`: runs [[index, length], …] of the true type, lengths summing to N;
        `believed`: {method: runs of the most probable type}, for `frame` and `trained` (after the filter);
        `mix`: {method: runs of the strongest signature in force}, no patch being 0 as `clean` is, for `perfect`,
        `frame` and `trained`;
        `window`, `step`, `correct`: {method: percent correct of the last `window` frames at frames `step`, 2·`step`, …
        ≤ N}, for `std`, `perfect`, `frame` and `trained`.
    """
    labels = images.labels.numpy()
    corruptions = known_corruptions(bundle)
    stream = make_stream("continual", labels, frames=frames, severity=severity, seed=seed, corruptions=corruptions)
    methods = [
        method for method in our_methods(bundle, threads) if method.name in ("std", "perfect", "frame", "trained")
    ]
    outcomes = {name: found for (_, name), found in run_ours(methods, {"": stream}, images.pixels).items()}
    truth = labels[stream.image]
    return {
        "protocol": stream.protocol,
        "seed": seed,
        "severity": severity,
        "frames": len(stream),
        "types": list(NAMES),
        "true": run_lengths(stream.type + 1),
        "believed": {name: run_lengths(outcomes[name].believed) for name in ("frame", "trained")},
        "mix": {name: run_lengths(_strongest(outcomes[name])) for name in ("perfect", "frame", "trained")},
        "window": TIMELINE_WINDOW,
        "step": TIMELINE_STEP,
        "correct": {
            name: running_mean(found.predicted == truth, TIMELINE_WINDOW, TIMELINE_STEP)
            for name, found in outcomes.items()
        },
    }


def write_csv(path: Path, result: Mapping[str, Any]) -> None:
    """Write the accuracies of a result, atomically: a row a (protocol, method, batch), a column a type, percent."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["protocol", "method", "batch", "ra", "ta", *result["types"]])
    for row in result["rows"]:
        cells = [row["ra"], row["ta"], *row["per_type"]]
        shown = ["" if cell is None else f"{cell:.2f}" for cell in cells]
        writer.writerow([row["protocol"], row["method"], row["batch"], *shown])
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, text.getvalue().encode())


def format_streams(result: Mapping[str, Any]) -> str:
    """RA, TA and what the mixes did: a table a protocol, as text."""
    lines = []
    for protocol in dict.fromkeys(row["protocol"] for row in result["rows"]):
        lines += ["", f"{protocol:13s} batch     RA     TA  regret  TA lost  switches  right  delay (95 %), never"]
        for row in result["rows"]:
            if row["protocol"] == protocol:
                widths = {"ra": 7, "ta": 7, "regret": 8, "ta_lost": 9, "switch_rate": 10, "right": 7}
                cells = [_cell(row.get(key), width) for key, width in widths.items()]
                lines.append(f"{row['method']:13s} {row['batch']:5d}{''.join(cells)}{_delay(row)}".rstrip())
    return "\n".join(lines)


def _cell(value: float | None, width: int) -> str:
    return " " * width if value is None else f"{value:{width}.2f}"


def _delay(row: Mapping[str, Any]) -> str:
    delay = row.get("delay")
    return "" if delay is None else f"  {delay['median']:g} ({delay['p95']:g}), {delay['never']:g} %"


def _row(
    stream: Stream, labels: NDArray[np.int64], method: str, outcome: Outcome, perfect: Outcome, bundle: Bundle
) -> dict[str, Any]:
    truth = labels[stream.image]
    by_type = 100 * mean_by_type(stream, outcome.predicted == truth)
    reference = 100 * mean_by_type(stream, perfect.predicted == truth)
    row: dict[str, Any] = {
        "ra": _rounded(np.nanmean(by_type[1:])),
        "ta": _rounded(by_type[0]),
        "regret": _rounded(np.nanmean(reference[1:]) - np.nanmean(by_type[1:])),
        "ta_lost": _rounded(reference[0] - by_type[0]),
        "per_type": [_rounded(value) for value in by_type],
    }
    if method in _CHOOSING:
        row["switch_rate"] = _rounded(switch_rate(stream, outcome.mix))
        right = right_mix(stream, bundle.table, outcome.mixes, outcome.mix)
        unpatched = right_mix(stream, bundle.table, [{}], np.zeros(len(stream), np.int64))
        row |= {"right": _rounded(100 * right.mean())} | delays(stream, right, unpatched)
    return row


_CHOOSING = ("perfect", "best", "frame", "trained")


def _rounded(value: float | np.floating) -> float | None:
    return None if np.isnan(value) else round(float(value), 2)


def _strongest(outcome: Outcome) -> NDArray[np.int64]:
    index = [NAMES.index(max(mix, key=lambda name: abs(mix[name]))) if mix else 0 for mix in outcome.mixes]
    return np.array(index, np.int64)[outcome.mix]


def _shared_frames(streams: Mapping[str, Stream]) -> tuple[Stream, dict[str, NDArray[np.int64]]]:
    """All frames that occur, each once, sorted by type, and which of them each stream shows."""
    parts = list(streams.values())
    columns = [
        np.concatenate([getattr(part, key).astype(np.float64 if key == "severity" else np.int64) for part in parts])
        for key in ("type", "severity", "image", "seed")
    ]
    # Not as one array: a seed has 64 bits, and a severity is a fraction.
    order = np.lexsort(columns[::-1])
    new = np.zeros(len(order), np.bool_)
    new[0] = True
    for column in columns:
        new[1:] |= column[order][1:] != column[order][:-1]
    ids = np.empty(len(order), np.int64)
    ids[order] = np.cumsum(new) - 1
    kind, severity, image, seed = (column[order][new] for column in columns)
    frames = Stream("", image, kind, severity.astype(np.float32), seed, np.zeros(len(image), np.bool_))
    stops = np.cumsum([len(part) for part in parts])
    return frames, dict(zip(streams, np.split(ids, stops[:-1]), strict=True))


def _parts(frames: Stream, pixels: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the corrupted frames in parts: the number of the first one, and uint8 (n, 3, H, W)."""
    for start in range(0, len(frames), _CHUNK):
        yield start, frames_of(frames, pixels, start, min(start + _CHUNK, len(frames)))


def _observe(observer: Oracle, frames: Stream, pixels: Tensor) -> NDArray[np.float32]:
    return np.concatenate([observe(observer, shown) for _, shown in _parts(frames, pixels)])


def _choices(
    method: Ours, stream: Stream, joint: NDArray[np.float32], keys: dict[MixKey, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of the mix in `keys` (new ones are added) and believed type of each frame, int64 (N,)."""
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
    names = method.oracle.corruptions
    most = per_type(beliefs, len(names)).argmax(1)
    return mix, np.array([0, *(NAMES.index(name) for name in names)])[most]


def _file_digests(bundle: Bundle) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in bundle.manifest.files.items()}


def _settings(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {"files": _file_digests(bundle), "filter": dict(manifest.filter), "policy": dict(manifest.policy)}


def _our_run(bundle: Bundle, images: Images) -> dict[str, Any]:
    """What our answers depend on, beside the stream."""
    return _settings(bundle) | {"images": images.digest(), "version": STREAMS_VERSION}


def _rivals_run(bundle: Bundle, images: Images) -> dict[str, Any]:
    """What the rivals' answers depend on, beside stream and weights: the oracle and the signatures may change."""
    model = _file_digests(bundle)[MODEL]
    return {"images": images.digest(), "model": model, "version": [STREAMS_VERSION, RIVALS_VERSION]}


def _cost_run(bundle: Bundle, rivals: Sequence[Rival], frames: int) -> dict[str, Any]:
    """What time and memory depend on, beside the batch."""
    where = provenance()
    return _settings(bundle) | {
        "frames": frames,
        "weights": {rival.name: rival.identity for rival in rivals},
        "version": [STREAMS_VERSION, RIVALS_VERSION],
        "machine": where["machine"],
        "versions": where["versions"],
    }


def _sample(stream: Stream, pixels: Tensor, count: int) -> Sample:
    """Some frames of all types, to measure time with."""
    chosen = np.linspace(0, len(stream) - 1, count).astype(np.int64)
    part = Stream("", *(getattr(stream, key)[chosen] for key in ("image", "type", "severity", "seed", "cut")))
    return as_input(frames_of(part, pixels, 0, count)), part.type, part.severity


def _encode_outcome(outcome: Outcome) -> bytes:
    arrays = {key: getattr(outcome, key).astype(np.int32) for key in ("predicted", "mix", "believed")}
    return ARRAYS.encode(arrays | {"mixes": np.array(json.dumps(outcome.mixes))})


def _decode_outcome(content: bytes) -> Outcome:
    arrays = ARRAYS.decode(content)
    predicted, mix, believed = (arrays[key].astype(np.int64) for key in ("predicted", "mix", "believed"))
    return Outcome(predicted, tuple(json.loads(str(arrays["mixes"]))), mix, believed)


OUTCOME = Codec(_encode_outcome, _decode_outcome)


def _part(store: Store, stream: Stream, method: str, batch: int, run: Mapping[str, Any]) -> Entry[Outcome]:
    """The answers of a method to a stream, as a part of a run."""
    hasher = hashlib.sha256()
    for key in ("image", "type", "severity", "seed", "cut"):
        hasher.update(np.ascontiguousarray(getattr(stream, key)).tobytes())
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in method)
    return store.entry(f"{stream.protocol}-{safe}-{batch}.npz", [run, method, batch, hasher.hexdigest()], OUTCOME)


def _cost_or_load(
    bundle: Bundle,
    work: Path,
    sample: Sample,
    batches: Sequence[int],
    store: Store,
    run: Mapping[str, Any],
    say: Progress,
) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": []}
    for batch in dict.fromkeys(batches):
        entry = store.entry(f"cost-{batch}.json", [run, batch], JSON)
        state = "measured" if entry.load() is None else "from before"
        cost = entry.get(partial(measure_cost, bundle, work, sample, (batch,)))
        found |= cost | {"rows": found["rows"] + cost["rows"]}
        say(f"time and memory, batch {batch}: {state}")
    return found


def _run_ours_or_load(
    methods: Sequence[Ours],
    streams: Mapping[str, Stream],
    pixels: Tensor,
    store: Store,
    run: Mapping[str, Any],
    say: Progress,
) -> dict[tuple[str, str], Outcome]:
    parts = {
        (name, method.name): _part(store, stream, method.name, 1, run)
        for name, stream in streams.items()
        for method in methods
    }
    outcomes = {key: outcome for key, part in parts.items() if (outcome := part.load()) is not None}
    missing = {name: stream for name, stream in streams.items() if any((name, m.name) not in outcomes for m in methods)}
    fresh = {key: parts[key].save(outcome) for key, outcome in run_ours(methods, missing, pixels, say).items()}
    say(f"ours: {len(streams) - len(missing)} of {len(streams)} protocols from before")
    return outcomes | fresh


def _run_rival_or_load(
    rival: Rival, stream: Stream, pixels: Tensor, batch: int, store: Store, run: Mapping[str, Any], say: Progress
) -> Outcome:
    part = _part(store, stream, rival.name, batch, {**run, "weights": rival.identity})
    state = "done" if part.load() is None else "from before"
    outcome = part.get(lambda: Outcome(run_method(rival, stream, pixels, batch)))
    say(f"{rival.name}, batch {batch}, {stream.protocol}: {state}")
    return outcome
