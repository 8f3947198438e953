"""Where the jobs of a command run, as its options say."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from rws.edge.common.extras import require
from rws.errors import UsageError
from rws.terminal import say, show
from rws.training.jobs.graph import Graph, Work, Workers, explain, needed, run
from rws.training.jobs.version import same_version
from rws.training.jobs.workers import Here, Processes, set_threads

_member: ContextVar[tuple[int, int] | None] = ContextVar("member", default=None)


@dataclass(frozen=True)
class Where:
    """Where jobs run.

    Args:
        on: `here`, or a Ray cluster: `ray`, that of this machine, or `ray://HOST:PORT`.
        workers: processes on this machine; on a cluster, jobs in flight at most (1: as many as it has CPUs for).
        threads: of torch in each; None: the cores, shared, and 1 on a cluster.
        explain: say why each job is to be done, and end.
    Raises UsageError if `on` is something else.
    """

    on: str = "here"
    workers: int = 1
    threads: int | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        if self.on not in ("here", "ray") and not self.on.startswith("ray://"):
            raise UsageError(f"--on {self.on}: expected here, ray or ray://HOST:PORT")

    @property
    def threads_each(self) -> int | None:
        """Threads of one job; None if one process has them all."""
        if self.threads or (self.on == "here" and self.workers == 1):
            return self.threads
        return max(1, cores() // self.workers) if self.on == "here" else 1


HERE = Where()


def cores() -> int:
    """Return how many cores this process may use, which a batch system may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def as_member(number: int, count: int) -> Iterator[None]:
    """Have `do_jobs` do a part of the jobs only, as member `number` of `count` from 1 on that share a folder."""
    if not 1 <= number <= count:
        raise UsageError(f"member {number} of {count}: expected 1 to {count}")
    token = _member.set((number, count))
    try:
        yield
    finally:
        _member.reset(token)


def do_jobs(graph: Graph, work: Work, where: Where = HERE, did: Callable[[str], None] | None = None) -> None:
    """Do all jobs of a graph that are not done; `graph` is what `work` opens, already open in this process.

    `did` is called with each job that has run, but in an array by the first member only. With `explain`, and in other
    members of an array, the command ends here: SystemExit. Raises JobsFailedError, or the error of the jobs, as `run`;
    InputError if others use the folder with another version of the code.
    """
    if where.explain:
        for name, why in explain(graph):
            show(f"{name:32s} {why or 'done'}")
        raise SystemExit(0)
    graph, (number, count) = needed(graph, graph), _member.get() or (1, 1)
    with same_version(work.folder):
        workers = _workers(graph, work, where)
        first = (number - 1) * len(graph) // count
        quiet, own = isinstance(workers, Here), did if number == 1 else None
        run(graph, workers, first=first, wait_for_others=number == 1, quiet=quiet, did=own)
    if number > 1:
        say(f"member {number} of {count}: nothing is left to begin; the first member ends the work")
        raise SystemExit(0)


def _workers(graph: Graph, work: Work, where: Where) -> Workers:
    if where.on != "here":
        with require("cluster"):
            from rws.training.jobs.cluster import Cluster
        address = "auto" if where.on == "ray" else where.on
        return Cluster(work, address, where.threads_each or 1, where.workers if where.workers > 1 else None)
    if where.workers > 1:
        return Processes(work, where.workers, where.threads_each or 1)
    if where.threads:
        set_threads(where.threads)
    return Here(graph, work.folder)
