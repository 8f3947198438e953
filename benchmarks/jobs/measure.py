"""What the job graph costs compared with a bare loop, how it grows, and whether every place makes the same result."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil  # type: ignore[import-untyped]  # types-psutil is no dependency of ours

from rws import terminal
from rws.benchmarks.common.tables import Record
from rws.edge.common.child import python_command
from rws.training.jobs.driver import Where, do_jobs
from rws.training.jobs.graph import Graph, Job, Work
from rws.training.jobs.store import JSON, Store

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

NODES = (1, 2, 3)
_WITHOUT = ("command", "commit", "machine", "versions", "written_at")  # of a result, what says where it was made


def open_spinning(folder: Path, count: int, seconds: float) -> Graph:
    """Return jobs that compute for some seconds of CPU each, and keep a number."""
    store = Store(folder)
    return {f"spin-{n}": Job(partial(store.get, f"{n}.json", n, partial(spin, seconds, n), JSON)) for n in range(count)}


def spin(seconds: float, value: int = 0) -> int:
    """Compute for some seconds of CPU."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return value


def _spin_all(count: int, seconds: float) -> None:
    for _ in range(count):
        spin(seconds)


def overhead(count: int, seconds: float, rounds: int, workers: int = 2) -> Record:
    """Compare jobs in processes with a bare loop in as many: seconds of each round, interleaved, and their ratios."""
    context, bare, ours = multiprocessing.get_context("spawn"), list[float](), list[float]()
    for _ in range(rounds):
        began = time.monotonic()
        processes = [context.Process(target=_spin_all, args=(count // workers, seconds)) for _ in range(workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        bare.append(time.monotonic() - began)
        with tempfile.TemporaryDirectory() as folder:
            ours.append(_in_new_process(_do, Path(folder), count, seconds, workers)[0])
    ratios = [one / other for one, other in zip(ours, bare, strict=True)]
    return {
        "jobs": count,
        "seconds_per_job": seconds,
        "workers": workers,
        "bare_loop_s": [round(each, 2) for each in bare],
        "jobs_s": [round(each, 2) for each in ours],
        "ratio": round(float(np.median(ratios)), 3),
    }


def _do(folder: Path, count: int, seconds: float, workers: int) -> tuple[float, float, int]:
    """Return seconds, seconds of this process's CPU, and its memory at the end, bytes."""
    terminal.set_quiet(True)
    began, cpu = time.monotonic(), time.process_time()
    work = Work(open_spinning, (folder, count, seconds), folder)
    do_jobs(open_spinning(*work.arguments), work, Where(workers=workers))
    return time.monotonic() - began, time.process_time() - cpu, psutil.Process().memory_info().rss


def growth(counts: Sequence[int], workers: int = 2) -> list[Record]:
    """Return time and memory of a driver, a process for each count of jobs that do nothing; and of a second run."""
    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            first, again = (_in_new_process(_do, Path(folder), count, 0.0, workers) for _ in range(2))
        rows.append(
            {
                "jobs": count,
                "s": round(first[0], 2),
                "driver_cpu_s": round(first[1], 2),
                "driver_bytes": first[2],
                "again_s": round(again[0], 2),
            }
        )
    return rows


def _in_new_process(function: Callable[..., tuple[float, float, int]], *arguments: object) -> tuple[float, float, int]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def places(data: str, limit: int, progress: Callable[[str], None]) -> list[Record]:
    """Replay all corruptions and severities in every place; return seconds and a digest of each result."""
    rows: list[Record] = []

    def replay(place: str, *options: object, members: int = 1, **environment: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = ["replay", "--data", data, "--severity", "all", "--limit", limit, "--threads", 1, *options]
            commands = [[*command, "--work", folder, "--json", f"{folder}/{n}"] for n in range(members)]
            if members > 1:
                commands = [["job", "run", n, "of", members, *each] for n, each in enumerate(commands, 1)]
            began = time.monotonic()
            running = [_command(each, environment) for each in commands]
            if any(codes := [process.wait() for process in running]):
                raise RuntimeError(f"{place}: exit codes {codes}")
            result = json.loads((Path(folder) / "0").read_text())
        kept = {key: value for key, value in result.items() if key not in _WITHOUT}
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
        rows.append({"place": place, "s": round(time.monotonic() - began, 1), "result": digest})
        progress(f"{place}: {rows[-1]['s']} s, {digest}")

    replay("this process")
    replay("2 processes", "--workers", 2)
    replay("an array of 2", members=2)
    for count in NODES:
        with _cluster(count) as cluster:
            replay(f"Ray, {count} {'node' if count == 1 else 'nodes'}", "--on", "ray", RAY_ADDRESS=cluster.address)
    return rows


def _command(arguments: list[object], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    command = python_command("from rws.__main__ import main; main()", *map(str, arguments))
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)


@contextmanager
def _cluster(nodes: int) -> Iterator["Cluster"]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]  # Ray types a part of itself
