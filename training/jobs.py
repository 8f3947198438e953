"""Independent jobs that several processes share out among themselves through a folder.

A job is a function whose result lies in a file, so that running it again costs nothing. A process takes the jobs that
nobody holds, then waits for those that others hold: after `run_jobs` all are done, whoever did them. A claim is a lock
on a file, which the system takes back when its process dies.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claim(folder: Path, job: str, *, wait: bool) -> Iterator[bool]:
    """Hold a job; gives False at once where another process holds it and `wait` is off."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".{job}.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def run_jobs(jobs: Mapping[str, Callable[[], object]], folder: Path) -> None:
    """Run every job that no other process holds, then wait until those of the others are done.

    Args:
        jobs: name → function; none needs another one of them.
        folder: where the claims lie; the same for all processes.
    """
    elsewhere = []
    for name, job in jobs.items():
        with claim(folder, name, wait=False) as held:
            if held:
                job()
            else:
                elsewhere.append(name)
    for name in elsewhere:
        with claim(folder, name, wait=True):
            jobs[name]()  # a job that its holder finished only reads its file; one that died with it goes on
