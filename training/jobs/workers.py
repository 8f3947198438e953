"""Workers on this machine: this process itself, or processes that are begun again if they die."""

import contextlib
import multiprocessing
import os
import pickle
import platform
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

from rws.errors import first_line
from rws.terminal import is_quiet, is_verbose, set_quiet, set_verbose
from rws.training.jobs.graph import Graph, Outcome, Work
from rws.training.jobs.stopping import stops_after_writes
from rws.training.jobs.store import Written, claim

_LONGEST_WRITE = 60.0  # seconds that a process gets to finish a write
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_LONGEST = 300  # characters of a reason
_open: dict[bytes, Graph] = {}  # the last work that this process has opened


def do(graph: Graph, folder: Path, job: str, node: str = "") -> Outcome:
    """Do one job, unless another process holds it; errors are part of the outcome."""
    began, before = time.monotonic(), Written.bytes

    def ended(status: str, **found: object) -> Outcome:
        how = {"seconds": time.monotonic() - began, "bytes": Written.bytes - before, "node": node}
        return Outcome(job, status, **how, **found)  # type: ignore[arg-type]

    try:
        with claim(folder, f"{file_name(job)}.job", wait=False) as held:
            if not held:
                return ended("held")
            graph[job].make()
    except Exception as error:  # of a job, whatever it does
        if node:  # into the log of the job
            traceback.print_exc(file=sys.stderr)
        return ended("failed", why=f"{type(error).__name__}: {first_line(error)}"[:_LONGEST], error=error)
    return ended("done")


def file_name(job: str) -> str:
    """Return a job's name as a file has it."""
    return job.replace("/", "--")


class Here:
    """Runs each job in this process when it is waited for."""

    slots = 1

    def __init__(self, graph: Graph, folder: Path) -> None:
        self._graph, self._folder, self._next = graph, folder, deque[str]()

    def submit(self, job: str) -> None:
        """Remember a job."""
        self._next.append(job)

    def wait(self, seconds: float) -> list[Outcome]:
        """Do the job; takes as long as that takes."""
        return [do(self._graph, self._folder, self._next.popleft())]

    def close(self) -> None:
        """Do nothing."""


class Processes:
    """Runs jobs in `count` processes of this machine, each with `threads` threads of torch."""

    def __init__(self, work: Work, count: int, threads: int = 1) -> None:
        self._work, self._count, self._threads = work, count, threads
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, str]] = {}

    @property
    def slots(self) -> int:
        """The number of processes."""
        return self._count

    def submit(self, job: str) -> None:
        """Give a job to a process that has none, or to a new one."""
        worker = self._idle.pop() if self._idle else _Worker(self._context, self._work, self._threads)
        try:
            worker.connection.send(job)
        except OSError:  # it died while it had nothing to do
            worker.stop()
            worker = _Worker(self._context, self._work, self._threads)
            worker.connection.send(job)
        self._busy[worker.connection] = worker, job

    def wait(self, seconds: float) -> list[Outcome]:
        """Return what has ended, after `seconds` at most."""
        outcomes = []
        ended = wait(list(self._busy), seconds)
        for worker, job in [self._busy.pop(connection) for connection in [*self._busy] if connection in ended]:
            try:
                outcomes.append(worker.connection.recv())
                self._idle.append(worker)
            except (EOFError, OSError):
                worker.stop()
                outcomes.append(Outcome(job, "died", why=f"its process ended ({worker.process.exitcode})"))
        return outcomes

    def close(self) -> None:
        """Stop all processes; a write that is under way is finished."""
        workers = [*self._idle, *(worker for worker, _ in self._busy.values())]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.stop()


class _Worker:
    def __init__(self, context: multiprocessing.context.SpawnContext, work: Work, threads: int) -> None:
        self.connection, other = context.Pipe()
        arguments = (other, work, threads, is_quiet(), is_verbose())
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        with _environment(**dict.fromkeys(_THREADS, str(threads))):  # read when libraries are loaded
            self.process.start()
        other.close()

    def stop(self) -> None:
        self.connection.close()
        self.process.join(_LONGEST_WRITE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(connection: Connection, work: Work, threads: int, quiet: bool, verbose: bool) -> None:
    # A new process does not know what the command line has set.
    set_quiet(quiet)
    set_verbose(verbose)
    # Ctrl-C reaches all processes of a terminal; the driver ends its workers, after their writes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError), stops_after_writes():
        while True:
            connection.send(do_logged(work, connection.recv(), threads))


def do_logged(work: Work, job: str, threads: int) -> Outcome:
    """Open the work, if this process has not yet, and do one job; it prints to `logs/JOB.log` in the folder."""
    with _output_to(work.folder / "logs" / f"{file_name(job)}.log"):
        try:
            graph = _opened(work)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            why = f"cannot be opened: {type(error).__name__}: {first_line(error)}"[:_LONGEST]
            return Outcome(job, "failed", node=platform.node(), why=why)
        set_threads(threads)
        # An error may not survive the way to another process.
        return replace(do(graph, work.folder, job, platform.node()), error=None)


def set_threads(count: int) -> None:
    """Let torch compute with some threads, if this process has loaded it."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)


def _opened(work: Work) -> Graph:
    key = pickle.dumps(work)
    if key not in _open:
        _open.clear()
        _open[key] = work.open(*work.arguments)
    return _open[key]


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Append what this process and those that it starts print to a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:  # of a full disk, say, of which the job will tell
        log = os.open(os.devnull, os.O_WRONLY)
    kept = [os.dup(number) for number in (1, 2)]
    try:
        for number in (1, 2):
            os.dup2(log, number)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(log)
