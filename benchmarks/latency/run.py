"""`rws bench latency`: the time of a frame (a change of mix if due, and the prediction), and that of the baseline."""

import gc
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rws.benchmarks.common.interleave import Block, Measured, block_frames, interleave, paired_ratio, percentiles
from rws.benchmarks.common.models import BenchmarkModel
from rws.benchmarks.common.sensors import Sensors, describe_platform
from rws.benchmarks.common.tables import Record
from rws.benchmarks.latency.engines import (
    ENGINES,
    Engine,
    Setting,
    check_outputs,
    deployed_model,
    expected_outputs,
    make_engine,
)
from rws.benchmarks.latency.options import LatencyOptions
from rws.benchmarks.latency.stages import stage_cases, stage_rows, write_video
from rws.errors import BundleError, RwsError

PATCH_EVERY = (0, 10, 1)
SUSTAINED_ROW_SECONDS = 5.0
BUSY = 0.2  # load per core before the measurement
LISTS = ("rows", "changes", "stages", "sustained", "left_out", "notes")
"""Frames of each engine; the change of mix alone; the whole frame through the loop; the deployed model under
load, a row per 5 seconds; engines that could not run, and why; what engines report about themselves."""
SLOWER = ("reload", "reload_optimised", "load_state_dict", "load_state_dict_shallow")


def ignore(_: object) -> None:
    """Do nothing: the default of `progress` and `save`."""


def measure_latency(
    models: Sequence[BenchmarkModel],
    options: LatencyOptions,
    progress: Callable[[str], None] = ignore,
    save: Callable[[Record], None] = ignore,
) -> Record:
    """Measure the latency of models, in milliseconds, as ratios to the untouched model with 95 % intervals.

    Args:
        progress: called with a line per repeat and per engine that cannot run.
        save: called with the result so far after each model and thread count.

    Raises:
        RwsError: if `untouched` cannot run; other engines that cannot are listed in `left_out`.
        InputError: if the source has too few frames.
        SourceError: if the source cannot be opened.
    """
    result: Record = {
        "baseline": "",  # what `untouched` is
        "weights": {f"{model.name}:{model.size}": model.weights for model in models},
        "platform": describe_platform(options.device),
        **{name: [] for name in LISTS},
    }
    load, cores = result["platform"]["load_average"][0], result["platform"]["cores"]
    if load > BUSY * cores:
        progress(f"the machine is busy (load {load} on {cores} cores): the intervals will be wide")
    with Sensors(options.device) as sensors, tempfile.TemporaryDirectory() as folder:
        result["platform"]["before"] = sensors.read()
        source = options.source or str(write_video(Path(folder) / "frames.mp4"))
        for model, threads in product(models, options.threads):
            bench = _Bench(model, threads, options, source, progress)
            result["baseline"] = bench.setting(Path()).baseline
            bench.measure(Path(folder))
            lists = bench.lists()
            if options.duration > 0:
                lists["sustained"] = bench.sustain(sensors)
            case: Record = {"model": model.name, "size": model.size, "threads": threads}
            for name, rows in lists.items():
                result[name] += [case | row for row in rows]
            save(result)
        result["platform"]["after"] = sensors.read()
    save(result)
    return result


class EngineCase:
    """An engine whose mix changes every `every` frames (0: never); a call runs one block.

    `inputs`: float32, shape (n, 1, 3, H, W). `numbers`: counts the changes; shared, so that each change is a real one.
    """

    def __init__(
        self, engine: Engine, every: int, setting: Setting, inputs: NDArray[np.float32], numbers: Iterator[int]
    ) -> None:
        self._engine, self._every, self._setting, self._inputs, self._numbers = engine, every, setting, inputs, numbers
        self._settle, self._frames = block_frames(self._run(2, 3).ms, every)

    def __call__(self) -> Block:
        """Run one block; its parts are the change of mix, and (if each frame has one) the change alone."""
        return self._run(self._settle, self._frames)

    def _run(self, settle: int, frames: int) -> Block:
        predict, change, every = self._engine.predict, self._engine.change, self._every
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
        assert self._engine.change is not None
        number = next(self._numbers) % len(self._setting.mixes)
        started = time.perf_counter()
        self._engine.change(number)
        self._setting.synchronise()
        return (time.perf_counter() - started) * 1e3


class _Bench:
    def __init__(
        self, model: BenchmarkModel, threads: int, options: LatencyOptions, source: str, progress: Callable[[str], None]
    ) -> None:
        self._model, self._threads, self._options, self._source = model, threads, options, source
        self._progress, self._rng = progress, random.Random(options.seed)
        self._inputs = np.random.default_rng(options.seed).random((8, 1, 3, model.size, model.size), np.float32)
        self._strategies: dict[tuple[str, int], Measured] = {}
        self._stages: dict[int, Measured] = {}
        self._stage_strategy = ""
        self._untouched: list[Block] = []
        self._times: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        self._providers: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._skipped: dict[str, str] = {}
        torch.set_num_threads(threads)

    def measure(self, folder: Path) -> None:
        expected = expected_outputs(self.setting(folder), self._inputs[0])
        started = time.perf_counter()
        for repeat in range(self._options.repeats):
            with tempfile.TemporaryDirectory(dir=folder) as files:
                self._repeat(self.setting(Path(files)), expected)
            gc.collect()
            self._tell(f"repeat {repeat + 1} of {self._options.repeats}, {time.perf_counter() - started:.0f} s")

    def _repeat(self, setting: Setting, expected: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
        engines: dict[str, Engine] = {}
        wanted = [strategy for strategy in ("untouched", *self._options.compared) if strategy not in self._skipped]
        for strategy in self._rng.sample(wanted, len(wanted)):
            try:
                engines[strategy] = self._make(strategy, setting, expected)
            except RwsError as error:
                if strategy == "untouched":
                    raise
                self._skipped[strategy] = str(error)
                self._tell(f"not measured: {error}")
        cases = self._cases(engines, setting)
        baseline = cases.pop(("untouched", 0))
        self._untouched += interleave(baseline, cases, self._options.rounds, self._rng, self._strategies)
        # A device holds one model, so the whole frame is measured without the others in memory.
        cases.clear()
        engines.clear()
        try:
            self._stage_strategy, stages = stage_cases(setting, self._source, PATCH_EVERY)
        except BundleError as error:
            self._skipped["whole frame"] = str(error)
            self._tell(f"not measured: the whole frame: {error}")
            return
        interleave(baseline, stages, self._options.rounds, self._rng, self._stages)

    def _cases(self, engines: Mapping[str, Engine], setting: Setting) -> dict[tuple[str, int], EngineCase]:
        cases = {}
        for strategy, engine in engines.items():
            numbers = count()  # shared by all rates, so that each change is to another mix
            for every in _rates(engine):
                cases[strategy, every] = EngineCase(engine, every, setting, self._inputs, numbers)
        return cases

    def _make(self, name: str, setting: Setting, expected: tuple[NDArray[np.float32], NDArray[np.float32]]) -> Engine:
        engine = make_engine(name, setting)
        started = time.perf_counter()
        engine.predict(self._inputs[0])
        warmup_ms = (time.perf_counter() - started) * 1e3
        check_outputs(engine, self._inputs[0], *expected)
        self._times[name].append((engine.load_ms, warmup_ms))
        self._providers[name], self._notes[name] = engine.provider, engine.note
        return engine

    def lists(self) -> dict[str, list[Record]]:
        strategies = {key: measured for key, measured in self._strategies.items() if key[0] not in self._skipped}
        return {
            "rows": self._rows(strategies),
            "changes": _changes(strategies),
            "stages": stage_rows(self._stages, self._stage_strategy),
            "left_out": [{"strategy": strategy, "reason": reason} for strategy, reason in self._skipped.items()],
            "notes": [{"strategy": s, "note": n} for s, n in self._notes.items() if n and s not in self._skipped],
        }

    def _rows(self, strategies: Mapping[tuple[str, int], Measured]) -> list[Record]:
        untouched = np.concatenate([block.ms for block in self._untouched])
        ordered = sorted(strategies, key=lambda key: (list(ENGINES).index(key[0]), PATCH_EVERY.index(key[1])))
        rows = [self._row(*key, strategies[key].values(), strategies[key].ratio()) for key in ordered]
        return [self._row("untouched", 0, untouched, (1.0, 1.0, 1.0)), *rows]

    def _row(self, strategy: str, every: int, values: NDArray[np.float64], ratio: tuple[float, float, float]) -> Record:
        load_ms, warmup_ms = np.median(self._times[strategy], axis=0)
        return {
            "strategy": strategy,
            "patch_every": every,
            **percentiles(values),
            **dict(zip(("ratio", "ratio_low", "ratio_high"), (round(value, 4) for value in ratio), strict=True)),
            "runs": len(values),
            "load_ms": round(float(load_ms), 2),
            "warmup_ms": round(float(warmup_ms), 3),
            "provider": self._providers[strategy],
        }

    def sustain(self, sensors: Sensors) -> list[Record]:
        """Measure the deployed model under load, a new patch on every frame."""
        setting = self.setting(Path())
        model, mixes, number = deployed_model(setting), setting.mixes, 0
        started = time.perf_counter()
        rows: list[Record] = []
        while (row_started := time.perf_counter()) - started < self._options.duration:
            ms: list[float] = []
            while (frame_started := time.perf_counter()) - row_started < SUSTAINED_ROW_SECONDS:
                model.apply(mixes[number % len(mixes)])
                model.predict(self._inputs[number % len(self._inputs)])
                ms.append((time.perf_counter() - frame_started) * 1e3)
                number += 1
            seconds = round(time.perf_counter() - started, 1)
            row: Record = {"strategy": model.strategy, "patch_every": 1, "seconds": seconds}
            rows.append(row | {"frames": len(ms), **percentiles(np.array(ms)), **sensors.read()})
        self._tell(f"sustained load, {time.perf_counter() - started:.0f} s")
        return rows

    def setting(self, folder: Path) -> Setting:
        return Setting(self._model, self._threads, self._options.device, folder)

    def _tell(self, line: str) -> None:
        self._progress(f"{self._model.name}:{self._model.size}, {self._threads} threads: {line}")


def _rates(engine: Engine) -> tuple[int, ...]:
    if engine.change is None:
        return (0,)
    return PATCH_EVERY[1:] if engine.name in ("reload", "reload_optimised", "sessions") else PATCH_EVERY


def _changes(strategies: Mapping[tuple[str, int], Measured]) -> list[Record]:
    every_frame = {strategy: measured for (strategy, every), measured in strategies.items() if every == 1}
    rows = []
    for strategy in sorted(every_frame, key=list(ENGINES).index):
        measured = every_frame[strategy]
        row: Record = {"strategy": strategy, "runs": len(measured.values())}
        for part, prefix in (("change", ""), ("alone", "alone_")):
            row |= {prefix + key: value for key, value in percentiles(measured.values(part)).items()}
            for slower in SLOWER:
                if slower in every_frame:
                    ratio = paired_ratio(every_frame[slower].typical(part), measured.typical(part))
                    names = (f"{prefix}{slower}_ratio{end}" for end in ("", "_low", "_high"))
                    row |= dict(zip(names, (round(value, 2) for value in ratio), strict=True))
        rows.append(row)
    return rows
