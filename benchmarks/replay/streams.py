"""`rws bench streams`: our methods and the baselines over the same streams, summed up.

Our methods decide frame by frame at any batch, so they have one row, of batch 1; baselines one per batch size."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from torch import Tensor

from rws.benchmarks.baselines.base import Baseline
from rws.benchmarks.baselines.cost import Sample, measure_cost
from rws.benchmarks.baselines.registry import BASELINES_VERSION, make_baselines
from rws.benchmarks.common.tables import Column, Record, columns, label, plain, terminal, write_csv
from rws.benchmarks.streams.images import clean_images, known_corruptions
from rws.benchmarks.streams.ours import Ours, Outcome, our_methods, run_method, run_ours
from rws.benchmarks.streams.protocols import PROTOCOLS, Ints, Stream, frames_of, make_stream
from rws.benchmarks.streams.scores import (
    NAMES,
    delays,
    mean_by_type,
    mix_change_rate,
    right_mix,
    run_lengths,
    running_mean,
)
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import MODEL
from rws.edge.common.provenance import provenance
from rws.errors import UsageError, check_known
from rws.training.data.images import Images
from rws.training.evaluation.evaluator import Progress, as_input, silent
from rws.training.jobs.store import ARRAYS, JSON, Codec, Entry, Store

STREAMS_VERSION = 1
"""Raise it if the same streams and bundle give other frames or answers."""

TIMELINE_FRAMES, TIMELINE_WINDOW, TIMELINE_STEP = 100, 40, 20
CHOOSING = ("perfect", "best", "frame", "trained")
"""Our methods whose mix depends on the frame."""

Severity = float | Literal["all"]


@dataclass(frozen=True)
class StreamOptions:
    """Which streams, which methods, and what of an earlier run is used again.

    Args:
        protocols: InputError if one is unknown.
        frames, severity, seed: see `make_stream`.
        baselines: folder of the baselines' models; None for our methods alone.
        only: some of them by name, see `BASELINES`; none: all.
        batches: batch sizes of the baselines; InputError if one is below 1.
        parts: folder for the answers of each (protocol, method, batch), and for time and memory; None to keep none.
        resume: use the files of this very run in `parts`; time and memory also need the same machine and versions.
        remeasure: measure time and memory even if `parts` holds them.
        threads: threads of our model and oracle.
    """

    protocols: Sequence[str] = PROTOCOLS
    frames: int = 500
    severity: Severity = 5.0
    seed: int = 0
    baselines: Path | None = None
    only: Sequence[str] = ()
    batches: Sequence[int] = (1, 64)
    parts: Path | None = None
    resume: bool = True
    remeasure: bool = False
    threads: int | None = 1
    progress: Progress = silent

    def __post_init__(self) -> None:
        check_known("protocol", self.protocols, PROTOCOLS)
        if not self.batches or min(self.batches) < 1:
            raise UsageError(f"batch sizes are {list(self.batches)}, expected at least one, each 1 or more")


def replay_streams(bundle: Bundle, source: str, options: StreamOptions) -> Record:
    """Run our methods, and the baselines if asked for, over the protocols' streams, and sum it up.

    Raises:
        InputError: if an argument is out of range, the clean test images of `source` do not fit the bundle, the bundle
            knows a corruption that cannot be made here, or a baseline is not trained yet or cannot take such batches.
    """
    images = clean_images(bundle, source)
    labels = images.labels.numpy()
    # In the order of `PROTOCOLS`, each once.
    chosen = [name for name in PROTOCOLS if name in options.protocols]
    streams = {name: _stream(bundle, labels, name, options.frames, options) for name in chosen}
    baselines = [] if options.baselines is None else make_baselines(bundle, options.baselines, options.only)
    runner = _Runner(bundle, images, options)
    outcomes = runner.ours(our_methods(bundle, options.threads), streams)
    found = [(stream, method, 1, outcome) for (stream, method), outcome in outcomes.items()]
    for batch, baseline, (name, stream) in product(dict.fromkeys(options.batches), baselines, streams.items()):
        found.append((name, baseline.name, batch, runner.baseline(baseline, stream, batch)))
    result: dict[str, Any] = {
        "frames_per_type": options.frames,
        "severity": options.severity,
        "seed": options.seed,
        "images": {"count": len(images), "sha256": images.digest()},
        "bundle": {"name": bundle.manifest.name, "files": _file_digests(bundle)},
        "types": list(NAMES),
        "rows": [
            {"protocol": name, "method": method, "batch": batch}
            | _scores(streams[name], labels, method, outcome, outcomes[name, "perfect"], bundle)
            for name, method, batch, outcome in sorted(found, key=lambda part: PROTOCOLS.index(part[0]))
        ],
    }
    if "continual" in streams:
        result["timeline"] = make_timeline(bundle, images, options)
    if options.baselines is not None:
        sample = _sample(next(iter(streams.values())), images.pixels, 8 * max(options.batches))
        result["cost"] = runner.cost(options.baselines, baselines, sample)
    return result


def _stream(bundle: Bundle, labels: Ints, protocol: str, frames: int, options: StreamOptions) -> Stream:
    known, severity = known_corruptions(bundle), options.severity
    return make_stream(protocol, labels, frames=frames, severity=severity, seed=options.seed, corruptions=known)


def make_timeline(bundle: Bundle, images: Images, options: StreamOptions) -> Record:
    """Make a short `continual` stream to draw: at most 100 frames of each type, all 20 under 10 kB of JSON.

    Indices stand for `types`, and runs are [[index, length], …].
    """
    labels = images.labels.numpy()
    stream = _stream(bundle, labels, "continual", min(options.frames, TIMELINE_FRAMES), options)
    shown = ("std", "perfect", "frame", "trained")
    methods = [method for method in our_methods(bundle, options.threads) if method.name in shown]
    outcomes = {name: found for (_, name), found in run_ours(methods, {"": stream}, images.pixels).items()}
    truth = labels[stream.image]
    return {
        "protocol": stream.protocol,
        "seed": options.seed,
        "severity": options.severity,
        "frames": len(stream),
        "types": list(NAMES),
        "true": run_lengths(stream.type + 1),
        "believed": {name: run_lengths(outcomes[name].believed) for name in shown[2:]},
        "mix": {name: run_lengths(_strongest(outcomes[name])) for name in shown[1:]},
        "window": TIMELINE_WINDOW,
        "step": TIMELINE_STEP,
        "correct": {
            name: running_mean(found.predicted == truth, TIMELINE_WINDOW, TIMELINE_STEP)
            for name, found in outcomes.items()
        },
    }


def _strongest(outcome: Outcome) -> Ints:
    index = [NAMES.index(max(mix, key=lambda name: abs(mix[name]))) if mix else 0 for mix in outcome.mixes]
    return np.array(index, np.int64)[outcome.mix]


def _scores(
    stream: Stream, labels: Ints, method: str, outcome: Outcome, perfect: Outcome, bundle: Bundle
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
    if method in CHOOSING:
        row["mix_change_rate"] = _rounded(mix_change_rate(stream, outcome.mix))
        right = right_mix(stream, bundle.table, outcome.mixes, outcome.mix)
        unpatched = right_mix(stream, bundle.table, [{}], np.zeros(len(stream), np.int64))
        row["right"] = _rounded(100 * right.mean())
        row["delay"], row["delay_severity"] = delays(stream, right, unpatched)
    return row


def _rounded(value: float | np.floating) -> float | None:
    return None if np.isnan(value) else round(float(value), 2)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.2f}"


def write_accuracies(path: Path, result: Record) -> None:
    """Write the accuracies of a result as CSV: a row per (protocol, method, batch), a column per type, percent."""
    rows = [
        (row["protocol"], row["method"], row["batch"], *map(_cell, (row["ra"], row["ta"], *row["per_type"])))
        for row in result["rows"]
    ]
    write_csv(path, "streams-row/1", plain("protocol", "method", "batch", "ra", "ta", *NAMES), rows)


def _delay(row: Record) -> str:
    return "{median:g} ({p95:g}), {never_right:g} %".format(**row["delay"]) if row.get("delay") else ""


_NUMBERS = {"robust": "ra", "clean": "ta", "regret": "regret", "clean lost": "ta_lost"}
_NUMBERS |= {"changes": "mix_change_rate", "right": "right"}
_COLUMNS = (
    label("method", "method"),
    Column("batch", "batch"),
    *columns(_NUMBERS, ".2f"),
    label("delay (95 %), never", _delay),
)


def print_streams(result: Record, console: Console) -> None:
    """Print robust and clean accuracy and what the mixes did on a console: a table per protocol."""
    for protocol in dict.fromkeys(row["protocol"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["protocol"] == protocol]
        console.print(terminal(_COLUMNS, rows, protocol))


def _file_digests(bundle: Bundle) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in bundle.manifest.files.items()}


def _sample(stream: Stream, pixels: Tensor, count: int) -> Sample:
    chosen = np.linspace(0, len(stream) - 1, count).astype(np.int64)
    part = Stream("", *(getattr(stream, key)[chosen] for key in ("image", "type", "severity", "seed", "cut")))
    return Sample(as_input(frames_of(part, pixels, 0, count)), part.type, part.severity)


def _encode_outcome(outcome: Outcome) -> bytes:
    arrays = {key: getattr(outcome, key).astype(np.int32) for key in ("predicted", "mix", "believed")}
    return ARRAYS.encode(arrays | {"mixes": np.array(json.dumps(outcome.mixes))})


def _decode_outcome(content: bytes) -> Outcome:
    arrays = ARRAYS.decode(content)
    predicted, mix, believed = (arrays[key].astype(np.int64) for key in ("predicted", "mix", "believed"))
    return Outcome(predicted, tuple(json.loads(str(arrays["mixes"]))), mix, believed)


OUTCOME = Codec(_encode_outcome, _decode_outcome)


class _Runner:
    def __init__(self, bundle: Bundle, images: Images, options: StreamOptions) -> None:
        self._bundle, self._images, self._options, self._say = bundle, images, options, options.progress
        self._store = Store(options.parts, "keep", options.resume)
        files, manifest = _file_digests(bundle), bundle.manifest
        self._settings = {"files": files, "filter": dict(manifest.filter), "policy": dict(manifest.policy)}
        self._version = [STREAMS_VERSION, BASELINES_VERSION]

    def ours(self, methods: Sequence[Ours], streams: Mapping[str, Stream]) -> dict[tuple[str, str], Outcome]:
        run = self._settings | {"images": self._images.digest(), "version": STREAMS_VERSION}
        every = product(streams.items(), methods)
        parts = {(name, method.name): self._part(stream, method.name, 1, run) for (name, stream), method in every}
        found = {key: outcome for key, part in parts.items() if (outcome := part.load()) is not None}
        missing = {key: streams[key] for key, _ in parts if any((key, method.name) not in found for method in methods)}
        fresh = run_ours(methods, missing, self._images.pixels, self._say)
        self._say(f"ours: {len(streams) - len(missing)} of {len(streams)} protocols from before")
        return {key: part.save(fresh[key]) if key in fresh else found[key] for key, part in parts.items()}

    def baseline(self, baseline: Baseline, stream: Stream, batch: int) -> Outcome:
        # It depends on the model alone: oracle and signatures may change.
        run = {"images": self._images.digest(), "model": self._settings["files"][MODEL], "version": self._version}
        part = self._part(stream, baseline.name, batch, {**run, "weights": baseline.identity})
        state = "done" if part.load() is None else "from before"
        outcome = part.get(lambda: Outcome(run_method(baseline, stream, self._images.pixels, batch)))
        self._say(f"{baseline.name}, batch {batch}, {stream.protocol}: {state}")
        return outcome

    def cost(self, work: Path, baselines: Sequence[Baseline], sample: Sample) -> Record:
        where, options = provenance(), self._options
        run = self._settings | {
            "frames": len(sample.x),
            "weights": {baseline.name: baseline.identity for baseline in baselines},
            "version": self._version,
            "machine": where["machine"],
            "versions": where["versions"],
        }
        store = replace(self._store, resume=options.resume and not options.remeasure)
        names = [baseline.name for baseline in baselines]
        threads, rows = 1, list[Record]()
        for batch in dict.fromkeys(options.batches):
            entry: Entry[Record] = store.entry(f"cost-{batch}.json", [run, batch], JSON)
            state = "measured" if entry.load() is None else "from before"
            cost = entry.get(partial(measure_cost, self._bundle, work, sample, (batch,), names))
            threads, rows = cost["threads"], rows + cost["rows"]
            self._say(f"time and memory, batch {batch}: {state}")
        return {"threads": threads, "rows": rows}

    def _part(self, stream: Stream, method: str, batch: int, run: Mapping[str, Any]) -> Entry[Outcome]:
        hasher = hashlib.sha256()
        for key in ("image", "type", "severity", "seed", "cut"):
            hasher.update(np.ascontiguousarray(getattr(stream, key)).tobytes())
        safe = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in method)
        identity = [run, method, batch, hasher.hexdigest()]
        return self._store.entry(f"{stream.protocol}-{safe}-{batch}.npz", identity, OUTCOME)
