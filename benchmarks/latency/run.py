"""`rws bench latency`: what a frame costs with live weights, beside the untouched model and what users do instead.

A frame of a way is the change of its mix, where one is due, and the prediction. How times are compared is in
`rws.benchmarks.common.interleave`, what the ways are in `rws.benchmarks.latency.engines`, the whole frame in
`rws.benchmarks.latency.stages`.
"""

from __future__ import annotations

import csv
import gc
import io
import random
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from rws.benchmarks.common.interleave import (
    Block,
    Measured,
    frames_per_block,
    interleave,
    paired_ratio,
    percentiles,
    settling_frames,
)
from rws.benchmarks.common.models import BenchmarkModel
from rws.benchmarks.common.sensors import Sensors, describe_platform
from rws.benchmarks.latency.engines import (
    WAYS,
    Contender,
    Setting,
    check_outputs,
    default_ways,
    deployed_model,
    expected_outputs,
    make_contender,
)
from rws.benchmarks.latency.stages import stage_cases, stage_rows, write_video
from rws.edge.common.files import atomic_write_bytes
from rws.edge.common.provenance import write_json
from rws.edge.pipeline import STAGES
from rws.errors import BundleError, InputError, RwsError

PATCH_EVERY = (0, 10, 1)
SUSTAINED_ROW_SECONDS = 5.0
BUSY = 0.2  # load a core before anything was started
LISTS = ("rows", "changes", "stages", "sustained", "left_out", "notes")
RIVALS = ("reload", "reload_optimised", "load_state_dict", "load_state_dict_shallow")
CSV_COLUMNS = (
    *("model", "size", "threads", "way", "patch_every", "p50_ms", "p95_ms", "p99_ms", "ratio", "ratio_low"),
    *("ratio_high", "runs", "load_ms", "warmup_ms", "provider"),
)


@dataclass(frozen=True)
class LatencyOptions:
    """How to measure.

    Args:
        ways: which of `latency_ways.WAYS`, beside `untouched`; empty: all that the device could have.
        threads: thread counts to measure with, one after another.
        device: `cpu` or `cuda`.
        rounds: how often each case comes round in a repeat.
        repeats: how often everything is made anew; with 3 the intervals cover 84 % where two makings differ as much as
            two rounds do, with 10 they cover 95 %.
        duration: seconds of sustained load for each model and thread count; 0 for none.
        source: what the whole frame reads, as `rws.edge.sources.open.open_source` takes it, of 40 frames or more; None:
        a
            video of 640 x 480 pixels that is made of the demo's frames.
        seed: of inputs, order and resampling.

    Raises:
        InputError: if a way is unknown or the device is not there.
    """

    ways: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)
    device: str = "cpu"
    rounds: int = 5
    repeats: int = 8
    duration: float = 0.0
    source: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [way for way in self.ways if way not in WAYS]
        if unknown:
            raise InputError(f"way {unknown[0]!r} is unknown; known: {', '.join(WAYS)}")
        if self.device not in ("cpu", "cuda"):
            raise InputError(f"device is {self.device!r}, expected cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device cuda: Torch finds no GPU here; run this where there is one, with a CUDA build")

    @property
    def compared(self) -> tuple[str, ...]:
        """The ways to be measured, without `untouched`."""
        return tuple(dict.fromkeys(way for way in self.ways or default_ways(self.device) if way != "untouched"))


def measure_latency(
    models: Sequence[BenchmarkModel],
    options: LatencyOptions,
    progress: Callable[[str], None] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measure models.

    Args:
        models: from `rws.benchmarks.common.models`.
        options: how.
        progress: called with a line now and then.
        save: called with the result so far, after each model and thread count.

    Returns:
        `rows` (frames of each way), `changes` (the change of mix alone), `stages` (the whole frame through the loop),
        `sustained` (where `duration` asks for it), `left_out` (ways that could not run, and why), `notes` (what the
        ways say of themselves), `baseline` (what `untouched` is), `weights` (where they come from), `platform`.

    Raises:
        RwsError: if even the untouched model cannot run, or the source gives too few frames.
    """
    result: dict[str, Any] = {
        "baseline": "",
        "weights": {f"{model.name}:{model.size}": model.weights for model in models},
        "platform": describe_platform(options.device),
        **{name: [] for name in LISTS},
    }
    load, cores = result["platform"]["load_average"][0], result["platform"]["cores"]
    if progress is not None and load > BUSY * cores:
        progress(f"the machine is busy (load {load} on {cores} cores): the intervals will be wide")
    with Sensors(options.device) as sensors, tempfile.TemporaryDirectory() as folder:
        result["platform"]["before"] = sensors.read()
        source = options.source or str(write_video(Path(folder) / "frames.mp4"))
        for model in models:
            for threads in options.threads:
                bench = _Bench(model, threads, options, source, progress)
                bench.measure(Path(folder))
                lists = bench.lists()
                if options.duration > 0:
                    lists["sustained"] = bench.sustain(sensors)
                result["baseline"] = bench.baseline
                for name, rows in lists.items():
                    result[name] += [{"model": model.name, "size": model.size, "threads": threads} | r for r in rows]
                if save is not None:
                    save(result)
        result["platform"]["after"] = sensors.read()
    return result


@dataclass(frozen=True)
class _Making:
    """What is left of a contender when it is gone."""

    load_ms: float
    warmup_ms: float
    provider: str
    note: str


@dataclass
class _Findings:
    ways: dict[tuple[str, int], Measured] = field(default_factory=dict)
    stages: dict[int, Measured] = field(default_factory=dict)
    untouched: list[Block] = field(default_factory=list)
    makings: dict[str, list[_Making]] = field(default_factory=lambda: defaultdict(list))
    left_out: dict[str, str] = field(default_factory=dict)
    stage_way: str = ""


class _Case:
    """One contender whose mix changes every so many frames; a call runs one block."""

    def __init__(
        self, contender: Contender, every: int, setting: Setting, inputs: NDArray[np.float32], numbers: count[int]
    ) -> None:
        self._contender = contender
        self._every = every
        self._setting = setting
        self._inputs = inputs
        self._numbers = numbers
        frame_ms = float(np.median(self._run(2, 3).ms))
        self._settle, self._frames = settling_frames(frame_ms), frames_per_block(frame_ms, every)

    def __call__(self) -> Block:
        return self._run(self._settle, self._frames)

    def _run(self, settle: int, frames: int) -> Block:
        predict, change, every = self._contender.predict, self._contender.change, self._every
        ms, change_ms, changed = np.zeros(frames), np.zeros(frames), np.zeros(frames, bool)
        if change is not None and every == 0:
            change(None)
        for frame in range(-settle, frames):
            x = self._inputs[frame % len(self._inputs)]
            due = change is not None and every > 0 and frame % every == 0
            changing = self._change() if due else 0.0
            started = time.perf_counter()
            predict(x)
            predicting = (time.perf_counter() - started) * 1e3
            if frame >= 0:
                ms[frame], change_ms[frame], changed[frame] = changing + predicting, changing, due
        parts = {"change": change_ms}
        if change is not None and every == 1:
            parts["alone"] = np.array([self._change() for _ in range(settle + frames)])[settle:]
        return Block(ms, changed, parts)

    def _change(self) -> float:
        """Change the mix; milliseconds."""
        assert self._contender.change is not None
        number = next(self._numbers) % len(self._setting.mixes)
        started = time.perf_counter()
        self._contender.change(number)
        self._setting.synchronise()
        return (time.perf_counter() - started) * 1e3


class _Bench:
    """One model with one thread count."""

    def __init__(
        self,
        model: BenchmarkModel,
        threads: int,
        options: LatencyOptions,
        source: str,
        progress: Callable[[str], None] | None,
    ) -> None:
        self._model, self._threads, self._options, self._source = model, threads, options, source
        self._progress = progress
        self._rng = random.Random(options.seed)
        self._inputs = np.random.default_rng(options.seed).random((8, 1, 3, model.size, model.size), np.float32)
        self._found = _Findings()
        torch.set_num_threads(threads)

    @property
    def baseline(self) -> str:
        """What `untouched` is here."""
        return self._setting(Path()).baseline

    def measure(self, folder: Path) -> None:
        """All repeats; files of models go to new folders below `folder`."""
        expected = expected_outputs(self._setting(folder), self._inputs[0])
        started = time.perf_counter()
        for repeat in range(self._options.repeats):
            with tempfile.TemporaryDirectory(dir=folder) as files:
                self._repeat(self._setting(Path(files)), expected)
            gc.collect()
            self._tell(f"repeat {repeat + 1} of {self._options.repeats}, {time.perf_counter() - started:.0f} s")

    def _repeat(self, setting: Setting, expected: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
        found, rounds = self._found, self._options.rounds
        contenders: dict[str, Contender] = {}
        wanted = [way for way in ("untouched", *self._options.compared) if way not in found.left_out]
        for way in self._rng.sample(wanted, len(wanted)):
            try:
                contenders[way] = self._make(way, setting, expected)
            except RwsError as error:
                if way == "untouched":
                    raise
                found.left_out[way] = str(error)
                self._tell(f"left out: {error}")
        cases = self._cases(contenders, setting)
        baseline = cases.pop(("untouched", 0))
        found.untouched += interleave(baseline, cases, rounds, self._rng, found.ways)
        # A device holds one model: the whole frame is measured without the others in memory.
        cases.clear()
        contenders.clear()
        try:
            found.stage_way, stages = stage_cases(setting, self._source, PATCH_EVERY)
        except BundleError as error:
            found.left_out["whole frame"] = str(error)
            self._tell(f"left out: the whole frame: {error}")
            return
        interleave(baseline, stages, rounds, self._rng, found.stages)

    def _cases(self, contenders: Mapping[str, Contender], setting: Setting) -> dict[tuple[str, int], _Case]:
        cases = {}
        for way, contender in contenders.items():
            numbers = count()  # one for all rates: what a way changes to is never what it has
            for every in _rates(contender):
                cases[way, every] = _Case(contender, every, setting, self._inputs, numbers)
        return cases

    def _make(self, way: str, setting: Setting, expected: tuple[NDArray[np.float32], NDArray[np.float32]]) -> Contender:
        """Make a contender, time its first frame, check what it computes, and note what it says of itself."""
        contender = make_contender(way, setting)
        started = time.perf_counter()
        contender.predict(self._inputs[0])
        warmup_ms = (time.perf_counter() - started) * 1e3
        check_outputs(contender, self._inputs[0], *expected)
        making = _Making(contender.load_ms, warmup_ms, contender.provider, contender.note)
        self._found.makings[way].append(making)
        return contender

    def lists(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of every list but `sustained`."""
        found = self._found
        ways = {key: measured for key, measured in found.ways.items() if key[0] not in found.left_out}
        return {
            "rows": self._rows(ways),
            "changes": _changes(ways),
            "stages": stage_rows(found.stages, found.stage_way),
            "left_out": [{"way": way, "reason": reason} for way, reason in found.left_out.items()],
            "notes": [
                {"way": way, "note": makings[-1].note}
                for way, makings in found.makings.items()
                if makings[-1].note and way not in found.left_out
            ],
        }

    def _rows(self, ways: Mapping[tuple[str, int], Measured]) -> list[dict[str, Any]]:
        untouched = np.concatenate([block.ms for block in self._found.untouched])
        rows = [self._row("untouched", 0, untouched, (1.0, 1.0, 1.0))]
        for way, every in sorted(ways, key=lambda key: (list(WAYS).index(key[0]), PATCH_EVERY.index(key[1]))):
            measured = ways[way, every]
            rows.append(self._row(way, every, measured.values(), measured.ratio()))
        return rows

    def _row(
        self, way: str, every: int, values: NDArray[np.float64], ratio: tuple[float, float, float]
    ) -> dict[str, Any]:
        makings = self._found.makings[way]
        return {
            "way": way,
            "patch_every": every,
            **percentiles(values),
            **dict(zip(("ratio", "ratio_low", "ratio_high"), (round(value, 4) for value in ratio), strict=True)),
            "runs": len(values),
            "load_ms": round(float(np.median([making.load_ms for making in makings])), 2),
            "warmup_ms": round(float(np.median([making.warmup_ms for making in makings])), 3),
            "provider": makings[-1].provider,
        }

    def sustain(self, sensors: Sensors) -> list[dict[str, Any]]:
        """The deployed model under load, a new patch on every frame; a row every five seconds."""
        setting = self._setting(Path())
        model, mixes, number = deployed_model(setting), setting.mixes, 0
        started = time.perf_counter()
        rows = []
        while (row_started := time.perf_counter()) - started < self._options.duration:
            ms: list[float] = []
            while (frame_started := time.perf_counter()) - row_started < SUSTAINED_ROW_SECONDS:
                model.apply(mixes[number % len(mixes)])
                model.predict(self._inputs[number % len(self._inputs)])
                ms.append((time.perf_counter() - frame_started) * 1e3)
                number += 1
            row = {"way": model.strategy, "patch_every": 1, "seconds": round(time.perf_counter() - started, 1)}
            rows.append(row | {"frames": len(ms), **percentiles(np.array(ms)), **sensors.read()})
        self._tell(f"sustained load, {time.perf_counter() - started:.0f} s")
        return rows

    def _setting(self, folder: Path) -> Setting:
        return Setting(self._model, self._threads, self._options.device, folder)

    def _tell(self, line: str) -> None:
        if self._progress is not None:
            self._progress(f"{self._model.name}:{self._model.size}, {self._threads} threads: {line}")


def _rates(contender: Contender) -> tuple[int, ...]:
    """The rates of change to measure; without one, a session that is reloaded or kept is an untouched one."""
    if contender.change is None:
        return (0,)
    return PATCH_EVERY[1:] if contender.way in ("reload", "reload_optimised", "sessions") else PATCH_EVERY


def _changes(ways: Mapping[tuple[str, int], Measured]) -> list[dict[str, Any]]:
    """The change of mix by itself, and how many times longer reloading and `load_state_dict` take.

    Between frames, when the frame has filled the caches, and (`alone_…`) again and again with nothing between.
    """
    every_frame = {way: measured for (way, every), measured in ways.items() if every == 1}
    rows = []
    for way in sorted(every_frame, key=list(WAYS).index):
        measured = every_frame[way]
        row: dict[str, Any] = {"way": way, "runs": len(measured.values())}
        for part, prefix in (("change", ""), ("alone", "alone_")):
            row |= {prefix + key: value for key, value in percentiles(measured.values(part)).items()}
            for rival in RIVALS:
                if rival in every_frame:
                    ratio = paired_ratio(every_frame[rival].typical(part), measured.typical(part))
                    names = (f"{prefix}{rival}_ratio{end}" for end in ("", "_low", "_high"))
                    row |= dict(zip(names, (round(value, 2) for value in ratio), strict=True))
        rows.append(row)
    return rows


def print_latency(result: Mapping[str, Any], console: Console) -> None:
    """For each model and thread count a table of the ways, one of the whole frame, one of sustained load."""
    cases = dict.fromkeys((row["model"], row["size"], row["threads"]) for row in result["rows"])
    console.print(f"untouched: {result['baseline']}")
    for name, weights in result["weights"].items():
        console.print(f"{name}: {weights}")
    for case in cases:
        lists = {
            name: [row for row in result[name] if (row["model"], row["size"], row["threads"]) == case] for name in LISTS
        }
        title = f"{case[0]}, {case[1]} px, threads {case[2]}"
        console.print(_ways_table(f"{title}: apply + predict, ms; ratio to untouched", lists["rows"]))
        if lists["changes"]:
            console.print(
                _changes_table(f"{title}: a change of mix, ms, and how many times longer others take", lists["changes"])
            )
        if lists["stages"]:
            way = lists["stages"][0]["way"]
            console.print(_stages_table(f"{title}: the whole frame, {way}, p50 ms", lists["stages"]))
        if lists["sustained"]:
            console.print(_sustained_table(f"{title}: sustained, {lists['sustained'][0]['way']}", lists["sustained"]))
        for row in lists["left_out"]:
            console.print(f"left out: {row['reason']}")
        for row in lists["notes"]:
            console.print(f"{row['way']}: {row['note']}")


def _ways_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title, box=None, pad_edge=False, collapse_padding=True)
    table.add_column("way", no_wrap=True)
    for heading in ("every", "p50", "p95", "p99", "ratio", "95 %", "first"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["way"],
            _rate(row["patch_every"]),
            *(f"{row[f'p{q}_ms']:.2f}" for q in (50, 95, 99)),
            f"{row['ratio']:.3f}",
            f"{row['ratio_low']:.3f}–{row['ratio_high']:.3f}",
            f"{row['warmup_ms']:.1f}",
        )
    return table


def _changes_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title, box=None, pad_edge=False, collapse_padding=True)
    table.add_column("way", no_wrap=True)
    for prefix in ("", "alone "):
        for heading in ("p50", "p95", "reload", "load_state_dict"):
            table.add_column(prefix + heading, justify="right")
    for row in rows:
        cells = []
        for prefix in ("", "alone_"):
            cells += [f"{row[f'{prefix}p50_ms']:.3f}", f"{row[f'{prefix}p95_ms']:.3f}"]
            ratios = (row.get(f"{prefix}{rival}_ratio") for rival in RIVALS[::2])
            cells += ["" if ratio is None else f"{ratio:.1f}" for ratio in ratios]
        table.add_row(row["way"], *cells)
    return table


def _stages_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("stage", title=title, box=None)
    cells: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["stage"] == STAGES[0]:
            table.add_column(f"patch every {_rate(row['patch_every'])}", justify="right")
        ratio = row["ratio"] and f" = {row['ratio']:.3f} ({row['ratio_low']:.3f}–{row['ratio_high']:.3f})"
        cells[row["stage"]].append(f"{row['p50_ms']:.3f}{ratio or ''}")
    for stage, values in cells.items():
        table.add_row(stage.replace("_", " "), *values)
    return table


def _rate(every: int) -> str:
    return str(every or "never")


def _sustained_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    columns = ("seconds", "frames", "p50_ms", "p99_ms", "clock_mhz", "temperature_c", "power_w")
    table = Table(*columns, title=title, box=None)
    for row in rows:
        table.add_row(*("–" if row[column] is None else str(round(row[column], 2)) for column in columns))
    return table


def write_results(result: Mapping[str, Any], report: Path | None, folder: Path | None) -> None:
    """Write a result with its provenance as JSON, and its rows as CSV into a folder, where asked for.

    Args:
        result: provenance and what `measure_latency` gave.
        report: the JSON file.
        folder: where the CSV goes, under `csv_name`.
    """
    if report is not None:
        write_json(report, result)
    if folder is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(result["rows"])
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(folder / csv_name(result), text.getvalue().encode())


def csv_name(result: Mapping[str, Any]) -> str:
    """`latency-<device>-<provider>-ort<version>-torch<version>.csv`, of letters, digits, `.`, `_` and `-`."""
    versions = result["versions"]
    parts = (
        "latency",
        result["platform"]["device"],
        result["rows"][0]["provider"],
        f"ort{versions.get('onnxruntime', '')}",
        f"torch{versions['torch']}",
    )
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", part).strip("_") for part in parts) + ".csv"
