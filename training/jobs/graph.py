"""Jobs that need each other, and the loop that has them run, wherever: here, in processes, on a cluster."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from rws.errors import RwsError
from rws.terminal import say
from rws.training.jobs.progress import left_in_words
from rws.training.jobs.stopping import stops_after_writes
from rws.training.jobs.store import missing

TRIES = 2  # how often a job may fail
DEATHS = 5  # how often the process of a job may die before the job counts as the cause
_PATIENCE = 1.0  # seconds until a job that another process holds is looked at again


@dataclass(frozen=True)
class Job:
    """`make` makes files through a `Store`, or finds them there; it reads those of the jobs `after`.

    Both are cheap if the files exist: then `make` has nothing to do but read them.
    """

    make: Callable[[], object]
    after: tuple[str, ...] = ()


Graph = Mapping[str, Job]
"""Jobs by name, `[GROUP/]KIND[-…]`; those of a kind take about the same time."""


@dataclass(frozen=True)
class Work:
    """How another process opens the same graph: `open(*arguments)`, a function of a module, and plain data.

    All processes share `folder`, in which the store of the jobs lies, too.
    """

    open: Callable[..., Graph]
    arguments: tuple[Any, ...]
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """How a job ended in a worker.

    `held`: another process makes it. `died`: its process did. `refused`: the node has another version of the code.
    """

    job: str
    status: Literal["done", "failed", "held", "died", "refused"]
    seconds: float = 0.0
    bytes: int = 0  # written
    node: str = ""
    why: str = ""  # in one line
    error: Exception | None = None  # if it happened in this process


class Workers(Protocol):
    """Where jobs run."""

    @property
    def slots(self) -> int:
        """How many jobs may be given at a time; may change."""

    def submit(self, job: str) -> None:
        """Begin a job."""

    def wait(self, seconds: float) -> list[Outcome]:
        """Return what has ended, after `seconds` at most."""

    def close(self) -> None:
        """Stop all that runs."""


class JobsFailedError(RwsError):
    """Some jobs failed; what the others made is kept."""


def needed(graph: Graph, names: Iterable[str]) -> dict[str, Job]:
    """Return some jobs and all that they need, each after what it needs; their names come from the graph."""
    found: dict[str, Job] = {}
    waiting = [(name, False) for name in reversed(list(names))]
    while waiting:
        name, ready = waiting.pop()
        if ready:
            found[name] = graph[name]
        elif name not in found:
            waiting += [(name, True), *((other, False) for other in reversed(graph[name].after))]
    return found


@dataclass
class Run:
    """One run of a graph: which jobs are done, wait, run or have failed.

    Args:
        first: job with which to begin among those that can run, by its place; members of an array begin elsewhere.
        clock: seconds.
    """

    graph: Graph
    first: int = 0
    clock: Callable[[], float] = time.monotonic
    done: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    failed: dict[str, Outcome] = field(default_factory=dict)
    written: int = 0

    def __post_init__(self) -> None:
        names = list(self.graph)
        shift = self.first % len(names) if names else 0
        self._waits_for = {name: len(set(job.after)) for name, job in self.graph.items()}
        self._needed_by: dict[str, list[str]] = {name: [] for name in names}
        for name, job in self.graph.items():
            for other in dict.fromkeys(job.after):
                self._needed_by[other].append(name)
        self._unseen = deque(name for name in names[shift:] + names[:shift] if not self._waits_for[name])
        self._ready: deque[str] = deque()
        self._held: dict[str, float] = {}  # until when
        self._failures: dict[str, int] = {}
        self._deaths: dict[str, int] = {}
        self._seconds: dict[str, list[float]] = {}

    @property
    def is_open(self) -> bool:
        """Whether a job runs, or can still run."""
        return bool(self._unseen or self._ready or self._held or self.running)

    @property
    def only_held(self) -> bool:
        """Whether all that is left is held by other processes."""
        return bool(self._held) and not (self._unseen or self._ready or self.running)

    def begin(self, slots: int) -> Iterator[str]:
        """Yield jobs to begin while fewer than `slots` run; those whose files exist are taken as done."""
        now = self.clock()
        for name in [name for name, until in self._held.items() if until <= now]:
            del self._held[name]
            self._unseen.append(name)
        while len(self.running) < slots and (self._unseen or self._ready):
            if not self._ready:
                name = self._unseen.popleft()
                if not missing(self.graph[name].make):
                    self._finish(name)
                    continue
                self._ready.append(name)
            self.running.add(name := self._ready.popleft())
            yield name

    def end(self, outcome: Outcome) -> None:
        """Take how a job ended."""
        name = outcome.job
        self.running.discard(name)
        self.written += outcome.bytes
        if outcome.status == "done":
            why = missing(self.graph[name].make)
            if not why:
                self._seconds.setdefault(_kind(name), []).append(outcome.seconds)
                self._finish(name)
                return
            why = f"ran on {outcome.node or 'another node'}, but {why}; are data and folder the same there?"
            outcome = Outcome(name, "failed", node=outcome.node, why=why)
        if outcome.status == "held":
            self._held[name] = self.clock() + _PATIENCE
            return
        if outcome.status == "refused":
            self._ready.append(name)
            return
        counts, most = (self._failures, TRIES) if outcome.status == "failed" else (self._deaths, DEATHS)
        counts[name] = counts.get(name, 0) + 1
        if counts[name] < most:
            self._ready.append(name)
        else:
            self.failed[name] = outcome

    def _finish(self, name: str) -> None:
        self.done.add(name)
        for other in self._needed_by[name]:
            self._waits_for[other] -= 1
            if not self._waits_for[other]:
                self._unseen.append(other)

    def minutes_left(self, slots: int) -> float | None:
        """Return how long what is left will take at the mean of its kind, or of all jobs; None if none has run."""
        every = [seconds for found in self._seconds.values() for seconds in found]
        left = [name for name in self.graph if name not in self.done and name not in self.failed]
        if not every:
            return None
        means = {kind: sum(found) / len(found) for kind, found in self._seconds.items()}
        total = sum(means.get(_kind(name), sum(every) / len(every)) for name in left)
        return total / max(1, min(slots, len(left) or 1)) / 60

    def check(self) -> None:
        """Raise what failed: the error itself if there is one only, and it happened in this process."""
        if not self.failed:
            return
        errors = [outcome.error for outcome in self.failed.values()]
        if len(errors) == 1 and isinstance(errors[0], RwsError):
            raise errors[0]
        reasons = "; ".join(f"{name}: {outcome.why}" for name, outcome in list(self.failed.items())[:3])
        others = len(self.graph) - len(self.done) - len(self.failed)
        rest = f", and {others} that need them did not run" if others else ""
        raise JobsFailedError(
            f"{len(self.failed)} of {len(self.graph)} jobs failed{rest} ({reasons}); the same command goes on"
        )


def _kind(name: str) -> str:
    return name.rpartition("/")[2].partition("-")[0]


def run(graph: Graph, workers: Workers, *, first: int = 0, wait_for_others: bool = True, quiet: bool = False) -> bool:
    """Have the workers run what is not done yet; return whether all is, which it is not if others hold jobs.

    Args:
        first: as in `Run`.
        wait_for_others: else it ends when other processes hold all that is left.
        quiet: jobs print their own lines.
    Raises JobsFailedError, or the error of the job, if one failed `TRIES` times; all others have ended then.
    """
    state = Run(graph, first)
    with stops_after_writes(), closing(workers):
        while state.is_open:
            for name in state.begin(workers.slots):
                workers.submit(name)
            if state.only_held and not wait_for_others:
                break
            if not state.running:
                time.sleep(_PATIENCE / 4 if state.only_held else 0)
                continue
            for outcome in workers.wait(_PATIENCE):
                state.end(outcome)
                if not quiet:
                    say(_line(state, outcome, workers.slots))
    state.check()
    return len(state.done) == len(graph)


def _line(state: Run, outcome: Outcome, slots: int) -> str:
    what = {"done": f"{outcome.seconds:8.1f} s", "held": "is made elsewhere", "died": "its process died, begun again"}
    tail = what.get(outcome.status, f"{outcome.status}: {outcome.why}")
    counts = f"{len(state.done)} of {len(state.graph)} done, {len(state.running)} running, {len(state.failed)} failed"
    left = left_in_words(state.minutes_left(slots))
    return "  ".join(filter(None, [f"{outcome.job:32s} {tail}", counts, f"{state.written / 1e6:.1f} MB", left]))


def explain(graph: Graph) -> Iterator[tuple[str, str]]:
    """Yield each job and why it is to be done: `""` if it is done."""
    state: dict[str, str] = {}
    for name, job in needed(graph, graph).items():
        waits = [other for other in job.after if state[other]]
        state[name] = f"needs {', '.join(waits[:3])}{', …' if len(waits) > 3 else ''}" if waits else missing(job.make)
        yield name, state[name]
