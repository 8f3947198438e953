"""A sink behind a queue and a separate thread, so that a slow or full disk neither delays nor ends the frame loop."""

import errno
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Literal

from rws.edge.pipeline import Result
from rws.edge.sinks.base import Sink
from rws.errors import InputError, first_line
from rws.records import Clock, Frame, SinkStatus
from rws.text import shown

log = logging.getLogger(__name__)

WhenFull = Literal["drop", "wait"]
OnFailure = Literal["raise", "give up", "reopen"]

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds until a sink that has failed is reopened; doubled each time
SETTLED = 5.0  # seconds without an error after which a reopened sink counts as up: a video file buffers two
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)  # not a mistake in the arguments
MOST_BYTES = 64 * 2**20  # of the frames that wait, whatever the capacity; one may always wait
LOOK_AGAIN = 0.25  # seconds until a write that waits for room asks again whether it should
STUCK = 10.0  # seconds for one frame after which a sink counts as failing


class BackgroundSink:
    """Writes into another sink from a thread. A context manager: its exit writes the waiting frames first.

    Frames are kept until they are written; do not change their pixels in the meantime.

    Args:
        sink: if it is a context manager, it is entered here and exited in the thread, with the exception that ended it
            or the run, if any.
        name: what the log calls it; "" for its type.
        capacity: frames that may wait, fewer if they have more than 64 MiB; an `InputError` below 1.
        when_full: "drop" drops the oldest waiting frame, so `write` never waits (live sources); "wait" makes `write`
            wait for room, so no frame is lost (files). A function is called at each write, because whether a stream has
            an end is known only when it is open.
        timeout: seconds that the exit waits; then the waiting frames are dropped with a warning and the thread is
            abandoned; None for 5, or 60 with "wait", because a file that is not complete does not appear.
        on_failure: what an error of the other sink does. "raise": every later `write` and `close` raises it, the same
            object, and nothing is written any more. "give up": it is logged, and later frames are counted as `failed`.
            "reopen": likewise, but the sink is exited and, at a frame after 1 s, 2 s, … 60 s, entered and tried again;
            on entry, a full or failing disk is such an error, and any other is raised. A function is called likewise.
        clock: monotonic, for these pauses.

    `accepted` frames are `written` + `dropped` (it was too slow) + `failed` + `waiting` in the queue + `writing` (1
    while the other sink writes).
    """

    def __init__(
        self,
        sink: Sink,
        *,
        name: str = "",
        capacity: int = 8,
        when_full: WhenFull | Callable[[], WhenFull] = "drop",
        timeout: float | None = None,
        on_failure: OnFailure | Callable[[], OnFailure] = "raise",
        clock: Clock = time.monotonic,
    ) -> None:
        if capacity < 1:
            raise InputError(f"background sink: capacity is {capacity}, expected at least 1")
        self.sink, self.name, self.capacity = sink, name or type(sink).__name__, capacity
        self._when_full, self._timeout, self._on_failure, self._clock = when_full, timeout, on_failure, clock
        self.accepted = self.written = self.dropped = self.failed = self.writing = self.failures = 0
        self.abandoned = self._open = False  # `abandoned`: the exit did not wait for a sink any longer
        self._queue: deque[tuple[Frame, Result]] = deque()
        self._changed = threading.Condition()
        self._entered = False  # whether the other sink is
        self._opened_at, self._retry_at, self._pause = -math.inf, math.inf, 0.0
        self._error: BaseException | None = None
        self._trace: TracebackType | None = None
        self._ended_by: BaseException | None = None
        self._begun_at = self._deadline = 0.0
        # A daemon, so that the process can end although a write never returns.
        self._thread = threading.Thread(target=self._run, name=f"{self.name} behind a queue", daemon=True)

    @property
    def when_full(self) -> WhenFull:
        """The current behaviour if the queue is full."""
        return self._when_full() if callable(self._when_full) else self._when_full

    @property
    def on_failure(self) -> OnFailure:
        """What an error of the other sink does now."""
        return self._on_failure() if callable(self._on_failure) else self._on_failure

    @property
    def timeout(self) -> float:
        """Seconds that the exit waits."""
        return (5.0 if self.when_full == "drop" else 60.0) if self._timeout is None else self._timeout

    @property
    def waiting(self) -> int:
        """Frames in the queue."""
        return len(self._queue)

    def status(self) -> SinkStatus:
        """Return state, error and counters as of one moment; any thread may call it."""
        with self._changed:
            state, error = "up", "" if self._error is None else shown(first_line(self._error))
            if self.writing and not error and (hangs := self._clock() - self._begun_at) > STUCK:
                error = f"has not taken a frame for {hangs:.0f} s"
            if error:
                state = "failed" if self._error is not None and self.on_failure != "reopen" else "failing"
            names = ("failures", "accepted", "written", "dropped", "failed", "waiting", "writing")
            counts = {name: getattr(self, name) for name in names}
            return SinkStatus("abandoned" if self.abandoned else state, error, **counts)

    def write(self, frame: Frame, result: Result) -> None:
        """Put a frame into the queue; raise as `on_failure` says, or a `ValueError` if it is not open."""
        with self._changed:
            room = max(1, min(self.capacity, MOST_BYTES // max(1, frame.image.nbytes)))
            self._wait_for(room)
            self._raise()
            if not self._open:
                raise ValueError("write to a background sink that is not open")
            self.accepted += 1
            if self._error is not None and not self._entered and self._clock() < self._retry_at:
                self.failed += 1
                return
            while len(self._queue) >= room:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append((frame, result))
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Accept no more frames and return at once; the exit waits until its timeout from now."""
        timeout = self.timeout
        with self._changed:
            if self._open:
                self._open, self._ended_by = False, error
                self._deadline = time.monotonic() + timeout
                self._changed.notify_all()

    def close(self) -> None:
        """Write the waiting frames, exit the other sink, and raise its error as `on_failure` says."""
        self.end()
        self._join()
        self._raise()

    def __enter__(self) -> "BackgroundSink":
        try:
            self._enter()
        except Exception as error:
            if self.on_failure != "reopen" or getattr(error.__cause__, "errno", None) not in DISK_ERRORS:
                raise
            self._fail(error)
        self._open = True
        try:
            self._thread.start()
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.end(error)
        self._join()
        if error is None:
            self._raise()
        elif self.on_failure == "raise" and self._error is not None and self._error is not error:
            log.warning("%s failed too: %s", self.name, first_line(self._error))

    def _wait_for(self, room: int) -> None:
        since, warned = time.monotonic(), False
        while len(self._queue) >= room and self.when_full == "wait":
            self._changed.wait(LOOK_AGAIN)
            if not warned and time.monotonic() - since > STUCK:
                warned = True
                log.warning("%s has not taken a frame for %g s; the run waits for it", self.name, STUCK)

    def _raise(self) -> None:
        if self._error is not None and self.on_failure == "raise":
            # The same object may be raised for months; its first traceback keeps it from growing.
            raise self._error.with_traceback(self._trace)

    def _join(self) -> None:
        if self._thread.ident is None or self.abandoned:
            return
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        with self._changed:
            self.abandoned, left = self._thread.is_alive(), len(self._queue)
            self.dropped += left
            self._queue.clear()
            self._changed.notify_all()
        if self.abandoned:
            log.warning(
                "%s has not returned for %g s and is abandoned; %d frames are lost", self.name, self.timeout, left
            )

    def _run(self) -> None:
        while (item := self._next()) is not None:
            try:
                if not self._entered:
                    self._enter()
                self.sink.write(*item)
            except BaseException as error:
                self._leave(error)
                self._fail(error)
            else:
                self._wrote()
        if self._entered:
            if (failed := self._leave(self._ended_by)) is not None:
                self._fail(failed)
            else:
                self._error = None

    def _next(self) -> tuple[Frame, Result] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or not self._open)
            if not self._queue:
                return None
            self.writing, self._begun_at = 1, self._clock()
            self._changed.notify_all()
            return self._queue.popleft()

    def _enter(self) -> None:
        if isinstance(self.sink, AbstractContextManager):
            self.sink.__enter__()
        self._entered, self._opened_at = True, self._clock()

    def _leave(self, cause: BaseException | None) -> BaseException | None:
        """Exit the other sink if it is entered; return the exception that it raised, if any."""
        entered, self._entered = self._entered, False
        if not entered or not isinstance(self.sink, AbstractContextManager):
            return None
        try:
            self.sink.__exit__(type(cause) if cause else None, cause, cause.__traceback__ if cause else None)
        except BaseException as error:
            return error
        return None

    def _wrote(self) -> None:
        with self._changed:
            self.writing = 0
            self.written += 1
            back = self._error is not None and self._clock() - self._opened_at >= SETTLED
            if back:
                self._error = None
        if back:
            log.warning("%s works again; %d frames were lost", self.name, self.failed)

    def _fail(self, error: BaseException) -> None:
        now = self._clock()
        with self._changed:
            first = self._error is None
            self._error, self._trace = error, error.__traceback__
            self.failures += 1
            self.failed += self.writing + len(self._queue)
            self.writing = 0
            self._queue.clear()
            if self.on_failure == "reopen":
                rested = first and now - self._opened_at >= LONGEST_PAUSE
                self._pause = FIRST_PAUSE if rested else min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
                self._retry_at = now + self._pause
            self._changed.notify_all()
        if first and self.on_failure != "raise":
            then = "its frames are lost until it works again" if self.on_failure == "reopen" else "it is given up"
            log.warning("%s: %s; the run goes on, %s", self.name, first_line(error), then)
