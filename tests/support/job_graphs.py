"""Graphs of small jobs that other processes can open, and that come to harm on demand."""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from rws.terminal import is_quiet, is_verbose
from rws.training.jobs.driver import Where, as_member, do_jobs
from rws.training.jobs.graph import Job, Work
from rws.training.jobs.store import JSON, Codec, Store


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


def open_neck(folder, count, seconds=0.0):
    """Return a job that all of `count` others need, and `sum`."""
    graph = open_jobs(folder, count, seconds)
    neck = Job(partial(Store(folder).get, "neck.json", 0, partial(make, folder, "neck-0", seconds, ""), JSON))
    others = {name: Job(job.make, ("neck", *job.after)) for name, job in graph.items()}
    return {"neck": neck} | others


def open_slow_write(folder):
    """Return one job whose write takes two seconds."""

    def encode(value):
        (folder / "writing").write_text("")
        time.sleep(2)
        return JSON.encode(value)

    slow = Codec(encode, JSON.decode)
    return {"slow": Job(lambda: Store(folder).get("slow.json", 1, lambda: 1, slow))}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a shell in the background ignores it
    place, kind, rest = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if kind == "jobs":
        drive(place, int(rest[0]), float(rest[1]), workers=int(rest[2]))
    elif kind == "write":
        do_jobs(open_slow_write(place), Work(open_slow_write, (place,), place), Where(workers=int(rest[0])))
    else:
        with as_member(int(rest[2]), int(rest[3])):
            arguments = (place, int(rest[0]), float(rest[1]))
            do_jobs(open_neck(*arguments), Work(open_neck, arguments, place))
