"""A source whose frames are captured in a separate process, watched by a clock, and reopened if it is lost."""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from rws.edge.sources.base import TICK, Sleep, Source, State
from rws.edge.sources.capture.decoding.checks import DAMAGED, FROZEN, REASONS, TOO_LARGE, UNDECODABLE
from rws.edge.sources.capture.process import CaptureProcess
from rws.edge.sources.capture.protocol import CaptureSettings, Ended, Opened
from rws.edge.sources.capture.stall import OPEN_TIMEOUT, Backoff, StallDetector
from rws.errors import SourceError
from rws.records import Frame

log = logging.getLogger(__name__)

# A source that gives only these is reopened; a black one may show a dark scene.
BROKEN = (DAMAGED, UNDECODABLE, FROZEN, TOO_LARGE)


class CapturedSource(Source):
    """A camera, video file or network stream.

    A file gives each frame, then ends; if it is lost, a `SourceError` is raised. A live source gives its newest frame.
    It is reopened if it is lost, falls silent (see `StallDetector`), or gives only damaged or frozen frames: with
    growing, jittered pauses of at most one second (see `Backoff`). Whether a network address is live is known when it
    is open.

    Args:
        retries: consecutive attempts to reopen it before that is an error; None: no limit.
        stall: seconds without a frame after which a live source counts as lost.
        sleep: waits for that many seconds. Time is the sum of these waits, so a clock that jumps disturbs nothing; the
            capture process stamps the frames with `time.monotonic`.
        capture: makes the capture process; for tests.
        jitter: see `Backoff`; for tests.
    """

    sequential = True

    def __init__(
        self,
        settings: CaptureSettings,
        *,
        retries: int | None = None,
        stall: float = 5.0,
        sleep: Sleep = time.sleep,
        capture: CaptureProcess | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__()
        self.name, self.live, self.state = settings.name, settings.kind not in ("file", "pipe"), "opening"
        if settings.kind == "file":
            self.paths = (Path(str(settings.target)),)
        self._settings, self._sleep = settings, sleep
        self._capture = capture or CaptureProcess(settings)
        self._stall, self._backoff = StallDetector(stall), Backoff(retries, jitter)
        self._openings, self._is_open = 0, False
        self._logged = ""  # the error that the log has named, until the source works again
        if not self.live and (reason := _outcome(self._open())):
            self.close()
            raise SourceError(f"{self.name}: {reason}")

    @property
    def pid(self) -> int | None:
        """The ID of the running capture process, or None."""
        return self._capture.pid

    def close(self) -> None:
        """End the capture process; its frames count as dropped if frames may be dropped, else as `buffered`."""
        self._capture.close()
        if self.live or self._settings.latest or self.state == "lost":
            self._capture.counters.drop_leftovers(self.delivered)
        self._count()

    def take_back(self, dropped: bool) -> None:
        """Count a delivered frame as dropped or buffered; see `Source.take_back`."""
        self._capture.counters.add("discarded", dropped)
        self.delivered -= 1
        self._count()

    def frames(self) -> Iterator[Frame | None]:
        """Yield frames, and None while no frame comes; reopen the source if it is lost."""
        while not self.stopped:
            was_live = self.live and self._openings > 0
            reason = None if self._is_open else (yield from self._open())
            if was_live and not self.live:
                # A playlist to which nothing is added any more: what it holds has been played.
                self.live = True
                self._kill()
                break
            if reason is None:
                reason = yield from self._read()
            if reason is None or self.stopped:
                break
            self._is_open = False
            pause = self._backoff.failed() if self.live else None
            if pause is None:
                self._enter("lost", reason)
                raise SourceError(f"{self.name}: {reason}")
            self._enter("reconnecting", reason)
            while pause > 0 and not self.stopped:
                step = min(pause, TICK)
                self._sleep(step)
                pause -= step
                self._idle(step)
                yield None
        self._enter("ended", self.error)
        if not self.stopped and not self.live:
            self._check_whole()

    def _open(self) -> Generator[None, None, str | None]:
        self._capture.open()
        waited = 0.0
        while not isinstance(answer := self._capture.answer(TICK), Opened | Ended):
            self._idle(TICK)
            yield
            waited += TICK
            # The process has its own time limit; this one covers a driver that hangs.
            # A pipe waits for its writer.
            if (waited > OPEN_TIMEOUT + 2 and self._settings.kind != "pipe") or self.stopped:
                self._kill()
                return f"did not open within {OPEN_TIMEOUT:g} s"
        if isinstance(answer, Ended):
            return answer.reason
        self.fps, self.length, self.bursts = answer.fps, answer.length, answer.bursts
        self.live = not answer.finite
        self._is_open = True
        self._openings += 1
        self.reconnects = self._openings - 1
        return None

    def _read(self) -> Generator[Frame | None, None, str | None]:
        self._count()
        received_before, rejected_before = self.received, self.rejections
        self._stall.opened(self.fps if self.live else None)
        while not self.stopped:
            self._capture.ask()
            alive = self._signs_of_life()
            while (answer := self._capture.answer(TICK)) is None:
                self._idle(TICK)
                yield None
                if self.stopped:
                    return None
                alive, alive_before = self._signs_of_life(), alive
                if self._stall.waited(TICK, alive != alive_before) and self.live:
                    return self._give_up(self.received > received_before, rejected_before)
            if isinstance(answer, Ended):
                self.media_end = answer.media_end
                return answer.reason or None
            assert isinstance(answer, Frame)
            rejected_before = self.rejections
            self._stall.frame_came(self.idle_for)
            if self._stall.flowing:
                self._backoff.reset()
            self.idle_for = 0.0
            self.delivered += 1
            self._enter("running", self.error)
            yield answer
        return None

    def _give_up(self, something_came: bool, rejected_before: Counter[str]) -> str:
        """Return what is wrong with a live source that gives no usable frame; kill its process if it is silent."""
        self._count()
        seconds = self._stall.silent
        broken = self.rejections - rejected_before
        worst = max(BROKEN, key=lambda reason: broken[reason])
        if broken[worst] > 0:
            return f"gives only {worst} frames for {seconds:.0f} s"
        # Nothing comes at all, so its process may be blocked in a driver or a network.
        self._stall.fell_silent(something_came)
        self._kill()
        return f"no frame for {seconds:.0f} s"

    def _kill(self) -> None:
        self._capture.kill()
        self._capture.counters.drop_leftovers(self.delivered)

    def _enter(self, state: State, error: str) -> None:
        """Change the state: opening → running ⇄ reconnecting → lost, from each to ended; log what users should know."""
        if state == "reconnecting" and error != self._logged:
            self._logged = error
            log.warning("%s: %s; reconnecting", self.name, error)
        # One that is lost after a few frames, repeatedly, is not back.
        if state == "running" and self._logged and self._stall.flowing:
            self._logged = ""
            if self.reconnects:
                log.warning("%s is back", self.name)
        self.state, self.error = state, error
        self._count()

    def _idle(self, seconds: float) -> None:
        self.idle_for += seconds
        self._count()

    def _count(self) -> None:
        values = self._capture.counters.snapshot()
        self.received, self.dropped = values["received"], values["dropped"] + values["discarded"]
        self.rejections = Counter({reason: values[reason] for reason in REASONS if values[reason]})
        self.buffered = self.received - self.dropped - self.rejected - self.delivered

    def _signs_of_life(self) -> int:
        # Not `received` less those that are broken: a frame is received a moment before it is found to be broken.
        return sum(self._capture.counters[name] for name in ("dropped", *REASONS) if name not in BROKEN)

    def _check_whole(self) -> None:
        if self.received == self.rejected:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.rejections.items()) or "it is empty"
            raise SourceError(f"{self.name}: holds no usable frame ({reasons})")
        # The number of frames may be an estimate, from a rate that is not constant.
        played = max(self.received, (self.media_end or 0.0) * (self.fps or 0.0))
        if self.length is not None and played < 0.99 * self.length:
            log.warning("%s ended after %d frames; its header declares %d", self.name, self.received, self.length)


def _outcome(steps: Generator[None, None, str | None]) -> str | None:
    try:
        while True:
            next(steps)
    except StopIteration as end:
        reason: str | None = end.value
        return reason
