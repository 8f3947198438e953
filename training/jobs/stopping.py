"""SIGTERM ends a process after the write that is under way, not within it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TERMINATED = 128 + signal.SIGTERM  # exit status


class _State:
    writes = 0
    asked = False


_state = _State()


@contextmanager
def writing() -> Iterator[None]:
    """Write something whole: under `stops_after_writes` the process ends at the exit, if it was asked to meanwhile."""
    _state.writes += 1
    try:
        yield
    finally:
        _state.writes -= 1
    if _state.asked and not _state.writes:
        raise SystemExit(TERMINATED)


@contextmanager
def stops_after_writes() -> Iterator[None]:
    """Make SIGTERM raise SystemExit, but at the end of a write that is under way; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        _state.asked = True
        if not _state.writes:
            raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        _state.asked = False
        signal.signal(signal.SIGTERM, before)
