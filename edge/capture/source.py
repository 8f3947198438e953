"""A source whose frames are captured in another process, watched by a clock, and sought again when it is lost."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import Protocol

from edge.capture.checks import DAMAGED, FROZEN, UNDECODABLE
from edge.capture.process import Answer, Captured, CaptureProcess, CaptureSettings, Ended, Opened
from edge.capture.shared import Counters
from edge.errors import SourceError
from edge.sources import Frame, Source

log = logging.getLogger(__name__)

TICK = 0.25
FIRST_BACKOFF, LAST_BACKOFF = 0.1, 1.0  # a camera that returns is seen within two seconds
LONGEST_PATIENCE = 300.0
# A source that gives nothing but these is opened anew; one that is black may just look at a dark world.
BROKEN = (DAMAGED, UNDECODABLE, FROZEN)


class Capture(Protocol):
    """What `CapturedSource` asks; `CaptureProcess` is one."""

    @property
    def counters(self) -> Counters:
        """Of everything that came."""

    @property
    def pid(self) -> int | None:
        """Of the process that runs, else None."""

    def open(self) -> None:
        """Ask to open the source."""

    def ask(self) -> None:
        """Ask for the next picture."""

    def answer(self, timeout: float) -> Answer | None:
        """The answer to the last question, or None after `timeout` seconds."""

    def kill(self) -> None:
        """End the process."""

    def settle(self, delivered: int) -> None:
        """Count as dropped what it still held."""

    def close(self) -> None:
        """Give back all that is held."""


class CapturedSource(Source):
    """A camera, video file or network stream.

    What has an end (a file) gives each frame and then ends; its loss is an error. What is live gives its freshest
    frame and is sought again when it is lost, falls silent, or gives nothing but damaged or frozen pictures: with
    growing, jittered pauses of at most a second, for ever unless `retries` says otherwise.

    How long a live source may be silent: `stall` seconds, or three times its longest recent gap between frames. A
    restart that brings no second frame doubles that, up to five minutes, so that a camera with one frame a minute
    is found out rather than restarted for ever.

    Args:
        settings: what to open and how.
        name: what to call it, without a password.
        live: whether its end is a loss; a network address is found out when it is opened.
        retries: how often in a row it is sought again before that is an error; None for ever.
        stall: seconds without a frame after which a live source counts as lost.
        sleep: waits so many seconds. Time is told by what was waited for, so a clock that jumps disturbs nothing; the
            capture process stamps the frames with `time.monotonic`.
        capture: what captures (default: a process).
        jitter: a number in 0…1 for each pause.

    Raises:
        SourceError: if a file cannot be opened.
    """

    sequential = True

    def __init__(
        self,
        settings: CaptureSettings,
        name: str,
        *,
        live: bool,
        retries: int | None = None,
        stall: float = 5.0,
        sleep: Callable[[float], None] = time.sleep,
        capture: Capture | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__()
        self.name, self.live = name, live
        self._retries, self._stall, self._timeout = retries, stall, settings.timeout
        self._sleep, self._jitter = sleep, jitter
        self._capture: Capture = CaptureProcess(settings) if capture is None else capture
        self._patience = stall
        self._failures = 0
        self._idle_for = 0.0
        self._is_open = False
        self._early: Captured | None = None
        self.state = "opening"
        if not live and (reason := self._open()):
            self.close()
            raise SourceError(f"{name}: {reason}")

    @property
    def pid(self) -> int | None:
        """Of the capture process that runs, else None."""
        return self._capture.pid

    def close(self) -> None:
        """End the capture process; what it still held counts as dropped."""
        self._capture.kill()
        self._capture.settle(self.delivered)
        self._count()
        self._capture.close()

    def __iter__(self) -> Iterator[Frame]:
        while not self.stopped:
            reason = None if self._is_open else self._open()
            if reason is None:
                reason = yield from self._frames()
                if reason is None:
                    break
            self._lose(reason)
            if not self.live or (self._retries is not None and self._failures > self._retries):
                self.state = "lost"
                raise SourceError(f"{self.name}: {reason}")
            self._pause(min(FIRST_BACKOFF * 2 ** min(self._failures - 1, 10), LAST_BACKOFF) * (1 + self._jitter()) / 2)
        self._end()

    def _open(self) -> str | None:
        """Open the source; returns why it failed, or None."""
        self._capture.open()
        waited = 0.0
        while not isinstance(answer := self._capture.answer(TICK), Opened | Ended):
            if isinstance(answer, Captured):
                self._early = answer  # It was on its way when the loop lost patience.
                continue
            self._idle(TICK)
            waited += TICK
            # The process has its own time limit; this one is for a driver that hangs.
            if waited > self._timeout + 2 or self.stopped:
                self._capture.kill()
                return f"did not open within {self._timeout:g} s"
        if isinstance(answer, Ended):
            return answer.reason
        self.fps, self.length = answer.fps, answer.length
        self.live = not answer.finite
        self._is_open = True
        self.reconnects += self.state == "reconnecting"
        return None

    def _frames(self) -> Generator[Frame, None, str | None]:
        """Yield what comes; returns why the source was lost, or None at a regular end."""
        fresh = 0
        if self._early is not None:
            early, self._early = self._early, None
            yield self._deliver(early)
        self._count()
        broken_before = self.rejections
        while not self.stopped:
            self._capture.ask()
            alive, silent, gap = self._alive(), 0.0, 0.0
            while (answer := self._capture.answer(TICK)) is None:
                self._idle(TICK)
                if self.stopped:
                    return None
                silent, gap = silent + TICK, gap + TICK
                if self._alive() != alive:
                    alive, silent = self._alive(), 0.0
                elif self.live and silent > self._patience:
                    if fresh < 2:
                        self._patience = min(2 * self._patience, LONGEST_PATIENCE)
                    return self._stalled(silent, broken_before)
            if isinstance(answer, Ended):
                return answer.reason or None
            assert isinstance(answer, Captured)
            fresh += 1
            broken_before = self.rejections
            if fresh > 1:
                self._patience = min(max(self._stall, 3 * gap), LONGEST_PATIENCE)
            yield self._deliver(answer)
        return None

    def _deliver(self, captured: Captured) -> Frame:
        if self.state == "reconnecting":
            log.warning("%s is back", self.name)
        self.state = "running"
        self._failures, self._idle_for = 0, 0.0
        self.delivered += 1
        self._count()
        return Frame(captured.index, captured.image, captured.captured_at, self.name)

    def _stalled(self, seconds: float, broken_before: Counter[str]) -> str:
        """A live source gives nothing of use: say what, and make an end of it."""
        self._count()
        broken = self.rejections - broken_before
        worst = max(BROKEN, key=lambda reason: broken[reason])
        if broken[worst] > 0:
            return f"gives only {worst} pictures for {seconds:.0f} s"
        # Nothing comes at all, so its process may be blocked in a driver or a network.
        self._capture.kill()
        return f"no frame for {seconds:.0f} s"

    def _lose(self, reason: str) -> None:
        self._is_open = False
        self._failures += 1
        if reason != self.error or self.state == "running":
            log.warning("%s: %s%s", self.name, reason, "; seeking it again" if self.live else "")
        self.state, self.error = "reconnecting", reason
        self._count()

    def _pause(self, seconds: float) -> None:
        while seconds > 0 and not self.stopped:
            step = min(seconds, TICK)
            self._sleep(step)
            seconds -= step
            self._idle(step)

    def _idle(self, seconds: float) -> None:
        self._idle_for += seconds
        self._count()
        if self.on_idle is not None:
            self.on_idle(self._idle_for)

    def _count(self) -> None:
        counters = self._capture.counters
        self.received, self.dropped = counters["received"], counters["dropped"]
        self.rejections = Counter(counters.rejections)
        self.buffered = counters.whole - self.delivered

    def _alive(self) -> int:
        """Pictures so far that show a working source."""
        counters = self._capture.counters
        return counters["received"] - sum(counters[reason] for reason in BROKEN)

    def _end(self) -> None:
        self._count()
        self.state = "ended"
        if self.stopped or self.live:
            return
        if self.received == self.rejected:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.rejections.items()) or "it is empty"
            raise SourceError(f"{self.name}: holds no frame that is of use ({reasons})")
        if self.length is not None and self.received < self.length:
            log.warning("%s ended after %d frames; its header declares %d", self.name, self.received, self.length)
