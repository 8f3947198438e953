"""What several cameras of one run cost against a run for each, what grouping and batching save, and faults of one."""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]  # types-psutil is no dependency of ours
from numpy.typing import NDArray

from rws.benchmarks.cameras.films import FAULTS, SIZE, WEATHER, film
from rws.benchmarks.common.tables import Record
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.cameras import Camera, Cameras
from rws.edge.common.child import python_command
from rws.edge.pipeline import Pipeline, Result
from rws.edge.runtime import Runtime
from rws.edge.sources.arrays import ArraySource
from rws.edge.sources.feed import Feed
from rws.errors import RwsError

WARM_UP = 4.0  # seconds from the first results until processor time is counted
START_TIMEOUT = 120.0  # seconds
LOOK = 0.5  # seconds between two looks at memory
BATCH_REPEATS = 15


@dataclass(frozen=True)
class Load:
    """How hard a run is driven."""

    bundle: str
    fps: float
    seconds: float  # of each run, after the warm-up


def measure_costs(load: Load, rounds: int, say: Callable[[str], None]) -> list[Record]:
    """Measure one run of all cameras, a run for each at the same time, and one camera alone; rounds are interleaved."""
    ways = ("together", "separate", "one")
    found: dict[str, list[Record]] = {way: [] for way in ways}
    with films() as folder:
        for _ in range(rounds):
            for way in ways:
                found[way].append(_run(load, folder, way))
                say(f"{way}: {found[way][-1]}")
    return [{"way": way, **_median(rows)} for way, rows in found.items()]


def measure_faults(load: Load, say: Callable[[str], None]) -> list[Record]:
    """Measure the seven other cameras while the eighth misbehaves."""
    rows = []
    with films() as folder:
        for fault in FAULTS:
            cameras = _run(load, folder, "together", fault)["cameras"]
            others = cameras[:-1]
            row = {
                "fault": fault,
                "others_fps": round(min(one["fps"] for one in others), 2),
                "others_dropped": sum(one["dropped"] for one in others),
                "others_age_p95_ms": max(one["age_p95_ms"] for one in others),
                "its_frames": cameras[-1]["frames"],
                "its_rejected": cameras[-1]["rejected"],
                "its_reconnects": cameras[-1]["reconnects"],
                "accounted": all(one["accounted"] for one in cameras),
            }
            say(f"{fault}: {row}")
            rows.append(row)
    return rows


def measure_grouping(bundle: str, rounds: int) -> Record:
    """Compare frames grouped by mix with arrival order on the same frames: changes of the weights, and time."""
    films = [np.stack(film(weather)) for weather in WEATHER]
    times: dict[bool, list[float]] = {True: [], False: []}
    changes: dict[bool, int] = {}
    frames = sum(map(len, films))
    for _ in range(rounds):
        for grouped in (True, False):
            seconds, changes[grouped] = _play(bundle, films, grouped)
            times[grouped].append(1e3 * seconds / frames)
    ratios = np.array(times[True]) / np.array(times[False])
    return {
        "frames": frames,
        "weight_changes": changes[True],
        "weight_changes_in_order_of_arrival": changes[False],
        "ms_per_frame": round(float(np.median(times[True])), 3),
        "ms_per_frame_in_order_of_arrival": round(float(np.median(times[False])), 3),
        "ratio": round(float(np.median(ratios)), 4),
        "ratios": [round(float(ratio), 4) for ratio in ratios],
    }


def measure_batching(bundles: Sequence[str], threads: Sequence[int], batch: int = len(WEATHER)) -> list[Record]:
    """Compare one batch of images with as many single ones: the ratio of the times, interleaved."""
    rows = []
    for name in bundles:
        for count in threads:
            loaded = Bundle.load(name)
            model, shape = loaded.model(ModelOptions(threads=count)), loaded.manifest.input.shape
            images = np.random.default_rng(0).random((batch, *shape), np.float32).astype(loaded.manifest.input.dtype)
            ratios = []
            for _ in range(BATCH_REPEATS):
                began = time.perf_counter()
                model.predict(images)
                middle = time.perf_counter()
                for image in images:
                    model.predict(image)
                ratios.append((middle - began) / (time.perf_counter() - middle))
            spread = np.percentile(ratios, (25, 75))
            row = {"bundle": name, "threads": count, "batch": batch, "ratio": round(float(np.median(ratios)), 3)}
            rows.append(row | {"quartiles": [round(float(value), 3) for value in spread]})
    return rows


def _play(bundle: str, films: Sequence[NDArray[np.uint8]], grouped: bool) -> tuple[float, int]:
    loaded, loop = Bundle.load(bundle), Cameras(grouped=grouped)
    pipeline = Pipeline.from_bundle(loaded, ModelOptions(threads=1))
    pipeline.warm_up()
    for number, images in enumerate(films):
        runtime, source = Runtime(pipeline.sharing(loaded)), ArraySource(images, sequential=True)
        loop.add(Camera(str(number), runtime, Feed(source, loop.arrived)))
    while not all(camera.feed.waiting for camera in loop.cameras):
        time.sleep(0.001)
    seconds = 0.0
    for _, event in loop.results():
        if isinstance(event, Result):
            seconds += sum(ms for stage, ms in event.times_ms.items() if stage != "read") / 1e3
    return seconds, loop.weight_changes


@contextmanager
def films() -> Iterator[Path]:
    """Give a folder of the cameras' films."""
    with tempfile.TemporaryDirectory(prefix="rws-cameras-") as folder:
        for number, weather in enumerate(WEATHER):
            np.save(Path(folder, f"{number}.npy"), np.stack(film(weather)))
        yield Path(folder)


@contextmanager
def served(folder: Path, fps: float, fault: str) -> Iterator[list[str]]:
    """Serve the films from another process, and give their addresses."""
    command = python_command("from rws.benchmarks.cameras.films import main; main()", str(folder), str(fps), fault)
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())
    finally:
        server.kill()
        server.wait()


def _run(load: Load, folder: Path, way: str, fault: str = "none") -> Record:
    """Run `rws run` on the cameras, in one or several processes; its processor time, memory and frames."""
    with ExitStack() as stack:
        out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rws-cameras-")))
        urls = stack.enter_context(served(folder, load.fps, fault))
        groups = {"together": [urls], "separate": [[url] for url in urls], "one": [urls[:1]]}[way]
        runs = []
        for number, group in enumerate(groups):
            tables = [f'[camera.c{place}]\nsource = "{url}"\n' for place, url in enumerate(group)]
            (out / f"{number}.toml").write_text("".join(tables))
            files = ["--json", str(out / f"{number}.json"), "--jsonl", str(out / f"{number}.jsonl")]
            options = ["--config", str(out / f"{number}.toml"), *files]
            command = ["run", *options, "--bundle", load.bundle, "--threads", "1"]
            program = python_command("from rws.cli import main; main()", *command)
            runs.append(stack.enter_context(started(program, out / f"{number}.log")))
        _wait_for_results([out / f"{number}.jsonl" for number in range(len(groups))], runs)
        costs = _watch(runs, load.seconds)
        for run in runs:
            run.terminate()
        for number, run in enumerate(runs):
            if run.wait(timeout=60):
                raise RwsError(f"rws run failed: {(out / f'{number}.log').read_text()[-500:]}")
        reports = [json.loads((out / f"{number}.json").read_text()) for number in range(len(groups))]
    cameras = [_of_camera(one) for report in reports for one in report["cameras"]]
    seconds = max(one["frames"] + one["dropped"] for one in cameras) / load.fps
    changes = sum(report["weight_changes"] for report in reports)
    return {**costs, "weight_changes_per_s": round(changes / seconds, 2), "cameras": cameras}


@contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[psutil.Popen]:
    """Start a program that is killed at the end, with its children."""
    with log.open("w") as file:
        process = psutil.Popen(command, stdout=file, stderr=file)
        try:
            yield process
        finally:
            for child in process.children(recursive=True) if process.is_running() else []:
                child.kill()
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait_for_results(files: Sequence[Path], runs: Sequence[psutil.Popen]) -> None:
    """Wait until each run has results: what a start costs is not measured."""
    end = time.monotonic() + START_TIMEOUT
    while not all(path.is_file() and path.stat().st_size for path in files):
        if time.monotonic() > end or any(run.poll() is not None for run in runs):
            raise RwsError("rws run gives no results")
        time.sleep(0.1)


def _watch(runs: Sequence[psutil.Popen], seconds: float) -> Record:
    """Return processor seconds per second, and the memory of all processes, MB, median over the time."""
    time.sleep(WARM_UP)
    before, began = _cpu_seconds(runs), time.monotonic()
    memory = []
    while time.monotonic() - began < seconds:
        memory.append(sum(process.memory_full_info().pss for process in _all(runs)) / 1e6)
        time.sleep(LOOK)
    used = (_cpu_seconds(runs) - before) / (time.monotonic() - began)
    return {"cpu": round(used, 3), "memory_mb": round(float(np.median(memory)), 1)}


def _all(runs: Sequence[psutil.Popen]) -> list[psutil.Process]:
    return [process for run in runs for process in (run, *run.children(recursive=True))]


def _cpu_seconds(runs: Sequence[psutil.Popen]) -> float:
    total = 0.0
    for process in _all(runs):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def _of_camera(summary: Record) -> Record:
    frames = summary["frames"] + summary["dropped"] + summary["rejected"] + summary["buffered"]
    return {
        "frames": summary["frames"],
        "dropped": summary["dropped"],
        "rejected": summary["rejected"],
        "reconnects": summary["reconnects"],
        "fps": summary["fps"] or 0.0,
        "age_p95_ms": round(summary["age_ms"].get("p95", 0.0), 1),
        "accounted": summary["received"] == frames,
    }


def _median(rows: Sequence[Record]) -> Record:
    cameras = [one for row in rows for one in row["cameras"]]
    ages = [one["age_p95_ms"] for one in cameras]
    return {
        **{key: round(float(np.median([row[key] for row in rows])), 3) for key in ("cpu", "memory_mb")},
        **{f"{key}_of_each_round": [row[key] for row in rows] for key in ("cpu", "memory_mb")},
        "weight_changes_per_s": round(float(np.median([row["weight_changes_per_s"] for row in rows])), 2),
        "frames": sum(one["frames"] for one in cameras),
        "dropped": sum(one["dropped"] for one in cameras),
        "accounted": all(one["accounted"] for one in cameras),
        "fps_least": round(min(one["fps"] for one in cameras), 2),
        "age_p95_ms": round(float(np.median(ages)), 1),
        "age_p95_ms_worst": max(ages),
    }


def describe(load: Load) -> Record:
    """Return what was run, in plain types."""
    return {
        "cameras": len(WEATHER),
        "weather": list(WEATHER),
        "width": SIZE[0],
        "height": SIZE[1],
        "fps": load.fps,
        "seconds": load.seconds,
        "bundle": load.bundle,
    }
