"""A source whose frames are captured in another process, watched by a clock, and sought again when it is lost."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import Protocol

from rws.edge.sources.capture.checks import DAMAGED, FROZEN, REASONS, UNDECODABLE
from rws.edge.sources.capture.process import Answer, Captured, CaptureProcess, CaptureSettings, Ended, Opened
from rws.edge.sources.capture.shared import Counters
from rws.edge.sources.open import TICK, Source
from rws.errors import SourceError
from rws.records import Frame

log = logging.getLogger(__name__)

FIRST_BACKOFF, LAST_BACKOFF = 0.1, 1.0  # a camera that returns is seen within two seconds
LONGEST_PATIENCE = 300.0
FORGETTING = 0.9995  # of the longest gap, a frame: half of it is forgotten after 1,400
PROMPT = 1.0  # seconds after opening within which a source that sends all the time has sent
FLOWING_FRAMES, FLOWING_SECONDS = 10, 10.0  # after either, the pauses start anew at their shortest
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

    How long a live source may be silent: `stall` seconds, or three times its longest recent gap between frames. An
    opening that brings nothing at all doubles the former, up to five minutes, so that a camera with one frame a minute
    is found out rather than opened anew for ever.

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
        self._retries, self._stall, self._timeout, self._latest = retries, stall, settings.timeout, settings.latest
        self._sleep, self._jitter = sleep, jitter
        self._capture: Capture = CaptureProcess(settings) if capture is None else capture
        self._stretch = 1
        self._longest_gap = 0.0
        self._fell_silent = False
        self._failures = 0
        self._idle_for = 0.0
        self._is_open = self._was_open = False
        self.state = "opening"
        if not live and (reason := self._open()):
            self.close()
            raise SourceError(f"{name}: {reason}")

    @property
    def pid(self) -> int | None:
        """Of the capture process that runs, else None."""
        return self._capture.pid

    def close(self) -> None:
        """End the capture process. What it still held counts as dropped, unless it was only decoded ahead.

        That is so of a source that gives every frame: when its reader stops early, `buffered` frames were not asked
        for.
        """
        self._capture.kill()
        if self.live or self._latest or self.state == "lost":
            self._capture.settle(self.delivered)
        self._count()
        self._capture.close()

    def __iter__(self) -> Iterator[Frame]:
        while not self.stopped:
            reason = None if self._is_open else self._open()
            if reason is None:
                reason = yield from self._frames()
            if reason is None or self.stopped:
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
            self._idle(TICK)
            waited += TICK
            # The process has its own time limit; this one is for a driver that hangs.
            if waited > self._timeout + 2 or self.stopped:
                self._kill()
                return f"did not open within {self._timeout:g} s"
        if isinstance(answer, Ended):
            return answer.reason
        self.fps, self.length = answer.fps, answer.length
        self.live = not answer.finite
        self._is_open = True
        self.reconnects += self._was_open
        self._was_open = True
        return None

    def _frames(self) -> Generator[Frame, None, str | None]:
        """Yield what comes; returns why the source was lost, or None at a regular end."""
        fresh, open_for = 0, 0.0
        self._count()
        at_first = self.received
        broken_before = self.rejections
        while not self.stopped:
            self._capture.ask()
            alive, silent, gap = self._alive(), 0.0, 0.0
            while (answer := self._capture.answer(TICK)) is None:
                self._idle(TICK)
                if self.stopped:
                    return None
                silent, gap, open_for = silent + TICK, gap + TICK, open_for + TICK
                if self._alive() != alive:
                    alive, silent = self._alive(), 0.0
                elif self.live and silent > self._patience():
                    if self.received == at_first:
                        # Nothing at all came: it may be slower than anybody thought.
                        self._stretch = min(2 * self._stretch, round(LONGEST_PATIENCE))
                    return self._stalled(silent, broken_before)
            if isinstance(answer, Ended):
                return answer.reason or None
            assert isinstance(answer, Captured)
            fresh += 1
            broken_before = self.rejections
            if fresh > 1:
                self._stretch = 1
                self._longest_gap = max(gap, FORGETTING * self._longest_gap)
            elif self._fell_silent and gap > PROMPT:
                # It was open, and silent as before: to open it anew has not helped, so that is its rhythm.
                self._longest_gap = max(self._idle_for, self._longest_gap)
            self._fell_silent = False
            if fresh >= FLOWING_FRAMES or open_for >= FLOWING_SECONDS:
                self._failures = 0
            self._idle_for = 0.0
            self.delivered += 1
            self._count()
            if self.state == "reconnecting" and self.delivered > 1:
                log.warning("%s is back", self.name)
            self.state = "running"
            yield Frame(answer.index, answer.image, answer.captured_at, self.name)
        return None

    def _patience(self) -> float:
        """Seconds that a live source may be silent."""
        return min(max(self._stall * self._stretch, 3 * self._longest_gap), LONGEST_PATIENCE)

    def _stalled(self, seconds: float, broken_before: Counter[str]) -> str:
        """A live source gives nothing of use: say what, and make an end of it."""
        self._count()
        broken = self.rejections - broken_before
        worst = max(BROKEN, key=lambda reason: broken[reason])
        if broken[worst] > 0:
            return f"gives only {worst} pictures for {seconds:.0f} s"
        # Nothing comes at all, so its process may be blocked in a driver or a network.
        self._fell_silent = True
        self._kill()
        return f"no frame for {seconds:.0f} s"

    def _kill(self) -> None:
        self._capture.kill()
        self._capture.settle(self.delivered)

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
        values = self._capture.counters.snapshot()
        self.received, self.dropped = values["received"], values["dropped"] + values["discarded"]
        self.rejections = Counter({reason: values[reason] for reason in REASONS if values[reason]})
        self.buffered = self.received - self.dropped - self.rejected - self.delivered

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
