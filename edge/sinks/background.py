"""A sink behind a queue and a separate thread, so that a slow disk does not delay the frame loop."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Literal

from rws.edge.pipeline import Result
from rws.edge.sinks.base import Sink
from rws.errors import InputError, first_line
from rws.records import Frame

log = logging.getLogger(__name__)

WhenFull = Literal["drop", "wait"]


class BackgroundSink:
    """Writes into another sink from a thread. A context manager: its exit writes the waiting frames first.

    Every later `write` and `close` raises the error of the other sink again, the same object; nothing is written after
    it. Frames are kept until they are written; do not change their pixels in the meantime.

    Args:
        sink: if it is a context manager, it is entered here and exited in the thread, with the exception that ended the
            run, if any.
        capacity: frames that may wait; an `InputError` below 1.
        when_full: "drop" drops the oldest waiting frame, so `write` never waits (live sources); "wait" makes `write`
            wait for room, so no frame is lost (files). A function is called at each write, because whether a stream has
            an end is known only when it is open.
        timeout: seconds that the exit waits; then the waiting frames are dropped with a warning and the thread is
            abandoned; None for 5, or 60 with "wait", because a file that is not complete does not appear.

    `accepted` frames are `written` + `dropped` + `waiting` in the queue + `writing` (1 while the other sink writes).
    """

    def __init__(
        self,
        sink: Sink,
        *,
        capacity: int = 8,
        when_full: WhenFull | Callable[[], WhenFull] = "drop",
        timeout: float | None = None,
    ) -> None:
        if capacity < 1:
            raise InputError(f"background sink: capacity is {capacity}, expected at least 1")
        self.sink, self.capacity = sink, capacity
        self._when_full, self._timeout = when_full, timeout
        self.accepted = self.written = self.dropped = self.writing = 0
        self.abandoned = self._open = False  # `abandoned`: the exit did not wait for a sink any longer
        self._queue: deque[tuple[Frame, Result]] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._trace: TracebackType | None = None
        self._ended_by: BaseException | None = None
        # A daemon, so that the process can end although a write never returns.
        self._thread = threading.Thread(target=self._run, name=f"{type(sink).__name__} behind a queue", daemon=True)

    @property
    def when_full(self) -> WhenFull:
        """The current behaviour if the queue is full."""
        return self._when_full() if callable(self._when_full) else self._when_full

    @property
    def timeout(self) -> float:
        """Seconds that the exit waits."""
        return (5.0 if self.when_full == "drop" else 60.0) if self._timeout is None else self._timeout

    @property
    def waiting(self) -> int:
        """Frames in the queue."""
        return len(self._queue)

    def counts(self) -> dict[str, int]:
        """Return the five counters by name, as of one moment; any thread may call it."""
        with self._changed:
            return {name: getattr(self, name) for name in ("accepted", "written", "dropped", "waiting", "writing")}

    def write(self, frame: Frame, result: Result) -> None:
        """Put a frame into the queue; raise the other sink's error, or a `ValueError` if it is not open."""
        with self._changed:
            while len(self._queue) >= self.capacity and self.when_full == "wait":
                self._changed.wait()
            self._raise()
            if not self._open:
                raise ValueError("write to a background sink that is not open")
            if len(self._queue) >= self.capacity:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append((frame, result))
            self.accepted += 1
            self._changed.notify_all()

    def close(self, timeout: float | None = None) -> None:
        """Write the waiting frames, exit the other sink, and raise its error; default: the constructor's `timeout`."""
        self._stop(None, self.timeout if timeout is None else timeout)
        self._raise()

    def __enter__(self) -> "BackgroundSink":
        with ExitStack() as failed:
            if isinstance(self.sink, AbstractContextManager):
                failed.enter_context(self.sink)
            self._open = True
            self._thread.start()
            failed.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop(error, self.timeout)
        if error is None:
            self._raise()
        elif self._error is not None and self._error is not error:
            log.warning("%s failed too: %s", type(self.sink).__name__, first_line(self._error))

    def _raise(self) -> None:
        if self._error is not None:
            # The same object may be raised for months; its first traceback keeps it from growing.
            raise self._error.with_traceback(self._trace)

    def _stop(self, error: BaseException | None, timeout: float) -> None:
        with self._changed:
            if not self._open:
                return
            self._open = False
            self._ended_by = error
            self._changed.notify_all()
        self._thread.join(timeout)
        with self._changed:
            if self._thread.is_alive():
                self.abandoned = True
                name, left = type(self.sink).__name__, len(self._queue)
                log.warning("%s has not returned for %g s and is abandoned; %d frames are lost", name, timeout, left)
                self._drop_waiting()

    def _drop_waiting(self) -> None:
        self.dropped += len(self._queue)
        self._queue.clear()
        self._changed.notify_all()

    def _run(self) -> None:
        try:
            while (item := self._next()) is not None:
                self.sink.write(*item)
                with self._changed:
                    self.writing = 0
                    self.written += 1
        except BaseException as error:
            self._fail(error)
        if isinstance(self.sink, AbstractContextManager):
            cause = self._error or self._ended_by
            try:
                self.sink.__exit__(type(cause) if cause else None, cause, cause.__traceback__ if cause else None)
            except BaseException as error:
                self._fail(error)

    def _next(self) -> tuple[Frame, Result] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or not self._open)
            if not self._queue:
                return None
            self.writing = 1
            self._changed.notify_all()
            return self._queue.popleft()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self.dropped += self.writing
            self.writing = 0
            self._drop_waiting()
            if self._error is None:
                self._error, self._trace = error, error.__traceback__
