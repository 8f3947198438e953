"""Graphs of small jobs that other processes can open, and that come to harm on demand."""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from rws.terminal import is_quiet, is_verbose
from rws.training.jobs.driver import Where, do_jobs
from rws.training.jobs.graph import Job, Work
from rws.training.jobs.store import JSON, Store


def open_jobs(folder, count, seconds=0.0, harm=""):
    """Return `count` jobs and one, `sum`, that needs them all; each writes a line to `runs` when it begins.

    `harm` comes to `job-1`: `fails`, `fails once`, `dies once`, `dies` (its process is killed).
    """
    names = [f"job-{number}" for number in range(count)]
    graph = {name: Job(partial(get, folder, name, seconds, harm if name == "job-1" else "")) for name in names}
    return graph | {"sum": Job(partial(total, folder, names), tuple(names))}


def get(folder, name, seconds=0.0, harm=""):
    return Store(folder).get(f"{name}.json", [name], partial(make, folder, name, seconds, harm), JSON)


def make(folder, name, seconds, harm):
    with open(folder / "runs", "a") as handle:
        handle.write(f"{name} {os.getpid()}\n")
    print("making", name, is_quiet(), is_verbose())
    before = runs_of(folder).count(name)
    time.sleep(seconds)
    if harm.startswith("fails") and not (harm.endswith("once") and before > 1):
        raise ValueError(f"{name} is broken")
    if harm.startswith("dies") and not (harm.endswith("once") and before > 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return int(name.rpartition("-")[2])


def total(folder, names):
    return Store(folder).get("sum.json", names, lambda: sum(get(folder, name) for name in names), JSON)


def runs_of(folder):
    """Return the names of the jobs that were begun, in order."""
    path = folder / "runs"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def work_of(folder, count, seconds=0.0, harm=""):
    return Work(open_jobs, (folder, count, seconds, harm), folder)


def drive(folder, count, seconds=0.0, harm="", **where):
    """Do all jobs, as a command does."""
    work = work_of(folder, count, seconds, harm)
    do_jobs(open_jobs(*work.arguments), work, Where(**where))


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def sum_in(folder):
    return json.loads((folder / "sum.json").read_text())


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.json*")}


if __name__ == "__main__":
    drive(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), workers=int(sys.argv[4]))
