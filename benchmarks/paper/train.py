"""Run the trainings of columns in parallel; finished ones are skipped, stopped ones continue."""

import multiprocessing
import os
from collections.abc import Callable, Collection
from functools import partial
from itertools import product
from typing import Any

import torch

from rws.benchmarks.paper.columns import COLUMNS, METHODS, ColumnBuild, Place
from rws.errors import RwsError
from rws.terminal import is_quiet, is_verbose, say, set_quiet, set_verbose
from rws.training.corruptions import CORRUPTIONS
from rws.training.jobs.progress import JobLines
from rws.training.jobs.store import run_jobs

Stage = dict[str, Callable[[], Any]]


def stages(build: ColumnBuild, kinds: Collection[str]) -> list[Stage]:
    """Return jobs by name, in stages: the jobs of one stage are independent and need only the stages before."""
    models: Stage = {"std": build.std, "augmented": build.augmented}
    second = {kind: job for kind, job in models.items() if kind in kinds}
    if "robust" in kinds:
        second |= {f"robust-{name}": partial(build.robust, name) for name in CORRUPTIONS}
    if "oracle" in kinds:
        second["oracle"] = build.oracle
    signatures = product([kind for kind in kinds if kind in METHODS], CORRUPTIONS)
    third: Stage = {f"{method}-{name}": partial(build.signature, method, name) for method, name in signatures}
    return [{"init": build.init}, second, third]


def _work(column: str, place: Place, kinds: Collection[str], workers: int) -> None:
    if ancestor := COLUMNS[column].ancestor:
        _work(ancestor, place, ("init",), workers)
    say(f"{column}: training {', '.join(sorted(kinds))}")
    build = ColumnBuild(COLUMNS[column], place, JobLines())
    build.time_left.workers = workers
    build.plan(kinds)
    for stage in stages(build, kinds):
        run_jobs(stage, build.work)


def run_in_workers(
    function: Callable[..., None], arguments: tuple[Any, ...], workers: int, threads: int | None = None
) -> None:
    """Run a module-level function in new processes; raise RwsError if one fails.

    Args:
        workers: number of processes; each gets the same arguments, and they share the jobs.
        threads: of torch in each process; None: the cores divided by the workers.
    """
    threads = threads or max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    job = (function, arguments, threads, is_quiet(), is_verbose())
    processes = [context.Process(target=_start, args=job) for _ in range(workers)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
    if failed := [process for process in processes if process.exitcode]:
        raise RwsError(f"{len(failed)} of {workers} processes failed; see their messages above")


def _start(function: Callable[..., None], arguments: tuple[Any, ...], threads: int, quiet: bool, verbose: bool) -> None:
    # A new process does not know what the command line has set.
    set_quiet(quiet)
    set_verbose(verbose)
    torch.set_num_threads(threads)
    try:
        function(*arguments)
    except RwsError as error:
        raise SystemExit(f"error: {error}") from error


def train(column: str, place: Place, *, kinds: Collection[str], workers: int = 1, threads: int | None = None) -> None:
    """Train what is missing of `kinds`: `std`, `robust`, `augmented`, `oracle` and `METHODS`.

    `workers`, `threads` and errors are those of `run_in_workers`; InputError if the data set was not given.
    """
    run_in_workers(_work, (column, place, tuple(kinds), workers), workers, threads)
