"""Jobs that need each other, and the loop that has them run, wherever: here, in processes, on a cluster."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, Literal, Protocol

from rws.errors import RwsError, first_line
from rws.terminal import say
from rws.training.jobs.progress import left_in_words
from rws.training.jobs.stopping import stops_after_writes
from rws.training.jobs.store import missing

TRIES = 2  # how often a job may fail
DEATHS = 5  # how often the process of a job may die before the job counts as the cause
_PATIENCE = 1.0  # seconds until a job that another process holds is looked at again, then twice as many each time
_LONGEST_PATIENCE = 30.0
_LOOKS = 6  # for the files of a job that another node says it has done: a minute


@dataclass(frozen=True)
class Job:
    """`make` makes files through a `Store`, or finds them there; it reads those of the jobs `after`.

    It is called to look, too (`missing`): if the files exist it has nothing to do but read them.
    """

    make: Callable[[], object]
    after: tuple[str, ...] = ()


Graph = Mapping[str, Job]
"""Jobs by name, `[GROUP/]KIND[-…]`: those of a kind take about the same time. Of those that can run, the first does."""


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

    `held`: another process makes it. `died`: its process did. `refused`: the node has another version of the code, or
    is gone.
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
        self._order = {name: (place - shift) % len(names) for place, name in enumerate(names)}
        self._unseen: list[tuple[int, str]] = []  # a heap, by order
        for name in names:
            if not self._waits_for[name]:
                self._see(name)
        self._ready: deque[str] = deque()
        self._held: dict[str, float] = {}  # until when
        self._lost: set[str] = set()  # what needs a job that failed
        self._counts: Counter[tuple[str, str]] = Counter()  # how often a job ended in a way
        self._left = Counter(map(_kind, names))
        self._ran: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()

    @property
    def is_open(self) -> bool:
        """Whether a job runs, or can still run."""
        return bool(self._unseen or self._ready or self._held or self.running)

    @property
    def only_held(self) -> bool:
        """Whether other processes hold all that is left, and nothing waits for it."""
        settled = len(self.done) + len(self.failed) + len(self._lost) + len(self._held)
        return bool(self._held) and settled == len(self.graph)

    def begin(self, slots: int) -> Iterator[str]:
        """Yield jobs to begin while fewer than `slots` run; those whose files exist are taken as done."""
        now = self.clock()
        for name in [name for name, until in self._held.items() if until <= now]:
            del self._held[name]
            self._see(name)
        while len(self.running) < slots and (self._unseen or self._ready):
            if not self._ready:
                name = heappop(self._unseen)[1]
                if self._look(name) == "":
                    self._finish(name)
                if name in self.done or name in self.failed:
                    continue
                self._ready.append(name)
            self.running.add(name := self._ready.popleft())
            yield name

    def _see(self, name: str) -> None:
        heappush(self._unseen, (self._order[name], name))

    def _look(self, name: str) -> str:
        """Return why a job is not done, as `missing`; a file that cannot be read makes it fail."""
        try:
            return missing(self.graph[name].make)
        except Exception as error:  # whatever a job says to what it finds
            self._fail(Outcome(name, "failed", why=first_line(error), error=error))
            return first_line(error)

    def end(self, outcome: Outcome) -> bool:
        """Take how a job ended; return whether that is worth a line."""
        name, how = outcome.job, str(outcome.status)
        self.running.discard(name)
        self.written += outcome.bytes
        if how == "done":
            why = self._look(name)
            if not why:
                self._ran[_kind(name)] += 1
                self._seconds[_kind(name)] += outcome.seconds  # type: ignore[assignment]  # a Counter can add floats
                self._finish(name)
                return True
            # Another node's file may be seen late on a file system of a network.
            why = f"ran on {outcome.node or 'another node'}, but {why}; are data and folder the same there?"
            how = "late"
            if name not in self.failed and self._counts[name, how] >= _LOOKS:
                self._fail(replace(outcome, status="failed", why=why))
            if name in self.failed:
                return True
        self._counts[name, how] += 1
        count = self._counts[name, how]
        if how in ("held", "late"):
            self._held[name] = self.clock() + min(_PATIENCE * 2 ** (count - 1), _LONGEST_PATIENCE)
            return count == 1
        final = isinstance(outcome.error, RwsError)  # wrong input stays wrong
        if (how == "failed" and (final or count >= TRIES)) or (how == "died" and count >= DEATHS):
            self._fail(outcome)
        else:
            self._ready.append(name)
        return True

    def _finish(self, name: str) -> None:
        self.done.add(name)
        self._left[_kind(name)] -= 1
        for other in self._needed_by[name]:
            self._waits_for[other] -= 1
            if not self._waits_for[other]:
                self._see(other)

    def _fail(self, outcome: Outcome) -> None:
        self.failed[outcome.job] = outcome
        self._left[_kind(outcome.job)] -= 1
        waiting = [outcome.job]
        while waiting:
            for other in self._needed_by[waiting.pop()]:
                if other not in self._lost:
                    self._lost.add(other)
                    self._left[_kind(other)] -= 1
                    waiting.append(other)

    def minutes_left(self, slots: int) -> float | None:
        """Return how long what is left will take at the mean of its kind, or of all jobs; None if none has run."""
        if not self._ran:
            return None
        mean, left = self._seconds.total() / self._ran.total(), self._left.total()
        means = {kind: self._seconds[kind] / self._ran[kind] if self._ran[kind] else mean for kind in self._left}
        total = sum(count * means[kind] for kind, count in self._left.items())
        return total / max(1, min(slots, left)) / 60

    def check(self) -> None:
        """Raise what failed: the error itself if all are one and the same, and it happened in this process."""
        if not self.failed:
            return
        first = next(iter(self.failed.values())).error
        if isinstance(first, RwsError) and len({outcome.why for outcome in self.failed.values()}) == 1:
            raise first
        reasons = "; ".join(f"{name}: {outcome.why}" for name, outcome in list(self.failed.items())[:3])
        rest = f", and {len(self._lost)} that need them did not run" if self._lost else ""
        raise JobsFailedError(
            f"{len(self.failed)} of {len(self.graph)} jobs failed{rest} ({reasons}); the same command goes on"
        ) from first


def _kind(name: str) -> str:
    return name.rpartition("/")[2].partition("-")[0]


def run(
    graph: Graph,
    workers: Workers,
    *,
    first: int = 0,
    wait_for_others: bool = True,
    quiet: bool = False,
    did: Callable[[str], None] | None = None,
) -> bool:
    """Have the workers run what is not done yet; return whether all is, which it is not if others hold jobs.

    Args:
        first: as in `Run`.
        wait_for_others: else it ends when other processes hold all that is left.
        quiet: jobs print their own lines; what went wrong is said.
        did: called with each job that has run.
    Raises JobsFailedError, or the error of the jobs, if some failed `TRIES` times; all others have ended then.
    """
    state = Run(graph, first)
    with stops_after_writes(), closing(workers):
        while state.is_open:
            for name in state.begin(workers.slots):
                workers.submit(name)
            if state.only_held and not wait_for_others:
                break
            if not state.running:
                time.sleep(_PATIENCE / 4 if state.is_open else 0)
                continue
            for outcome in workers.wait(_PATIENCE):
                if state.end(outcome) and not (quiet and outcome.status == "done"):
                    say(_line(state, outcome, workers.slots))
                if did is not None and outcome.job in state.done:
                    did(outcome.job)
    state.check()
    return len(state.done) == len(graph)


def _line(state: Run, outcome: Outcome, slots: int) -> str:
    what = {"done": f"{outcome.seconds:8.1f} s", "held": "is made elsewhere"}
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
