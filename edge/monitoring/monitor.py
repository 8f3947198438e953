"""The state of a running loop, for status line, page, metrics and health check."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rws.edge.monitoring.run_status import LOST, RECENT, Moment, RunStatus, RunTotals, SourceStatus
from rws.edge.pipeline import Pipeline, Result
from rws.edge.sources.base import Source
from rws.errors import FrameError
from rws.oracle.policy import NO_LIMITS
from rws.records import Clock, SinkStatus, WallClock
from rws.text import shown

RATE_WINDOW = 3.0  # seconds over which frames per second are counted
TIMELINE_STEP = 1.0  # seconds of one point of the timeline
NEW = 300.0  # seconds of the timeline after which its points are joined to longer ones
JOINED_STEP = 10.0  # seconds of one of these


@dataclass
class _Second:
    """The current second; its moment is computed on request from its last frame, not for each frame."""

    at: float
    frames: int = 0
    changes: int = 0
    last: Result | None = None
    lost: bool = False

    def moment(self) -> Moment:
        if self.last is None:
            return Moment(self.at, lost=self.lost)
        belief, alpha = self.last.belief, sum(self.last.mix.values())
        severity = round(belief.type_severity, 2)
        mix = {name: round(alpha, 2) for name, alpha in self.last.mix.items()}
        seen = self.frames, belief.type, severity, round(alpha, 3), self.last.summary[0]
        return Moment(self.at, *seen, self.lost, self.changes, mix)


class Monitor:
    """Keeps the latest result, rates and totals of a run in bounded memory, and a timeline of `window` seconds.

    The timeline has a moment per second of the last five minutes, and one per ten seconds of the time before.
    One thread calls `add`, `reject` and `idle`; any may call `status` and `count_event`. The clock is the one that
    stamps frames.
    """

    def __init__(
        self,
        source: Source,
        *,
        bundle: str = "",
        strategy: str = "",
        window: float = 3600.0,
        clock: Clock = time.monotonic,
        wall_clock: WallClock = time.time,
    ) -> None:
        self.source, self.bundle, self.strategy = source, bundle, strategy
        self.classes: Sequence[str] = ()  # that the bundle's model knows
        self.paused = False  # as a person wants it; the loop of several cameras looks, any thread may assign
        self.limits = NO_LIMITS  # that a person wants; the loop looks before each frame, any thread may assign others
        self.events: Counter[str] = Counter()
        self.sinks: Callable[[], Mapping[str, SinkStatus]] = dict  # the outputs' own counters
        self._clock, self._started = clock, clock()
        self._wall_clock, self._started_at = wall_clock, wall_clock()
        self._lock = threading.Lock()
        self._last: Result | None = None
        self._last_at: float | None = None
        self._arrivals, self._timeline, self._joined = deque[float](), deque[Moment](), deque[Moment]()
        self._results, self._mix_changes, self._window = 0, 0, window
        self._classes, self._corruptions, self._rejected = Counter[str](), Counter[str](), Counter[str]()
        self._failures = deque[str](maxlen=RECENT)  # why the newest frames have no result; "" for one that has
        self._second: _Second | None = None

    def describe(self, pipeline: Pipeline) -> None:
        """Note what the frames go through from now on."""
        self.bundle, self.strategy, self.classes = pipeline.name, pipeline.model.strategy, pipeline.task.classes

    def add(self, result: Result) -> None:
        """Count one result; call it in the frame loop's thread."""
        now, corruption = self._clock(), result.belief.type
        with self._lock:
            self._last, self._last_at = result, now
            self._arrivals.append(now)
            self._failures.append("")
            self._trim(now)
            self._mix_changes += result.changed
            self._results += 1
            self._classes.update(result.task.seen(result.output))
            self._corruptions[corruption] += 1
            second = self._current(now)
            second.frames += 1
            second.changes += result.changed
            second.last = result

    def reject(self, error: FrameError) -> None:
        """Count a frame without a result; call it in the frame loop's thread."""
        with self._lock:
            self._rejected[error.reason] += 1
            self._failures.append(shown(f"{error.reason}: {error}"))

    def idle(self) -> None:
        """Note that no frame came, and whether the source is lost; call it in the frame loop's thread."""
        if self.source.state in LOST:
            with self._lock:
                self._current(self._clock()).lost = True

    def count_event(self, event: str) -> None:
        """Count an event that has no other counter, e.g. `bundle_swapped`."""
        with self._lock:
            self.events[event] += 1

    def status(self, since: float | None = None) -> RunStatus:
        """Return the state of the run, with the timeline from `since` (seconds of the run) on; None: without it."""
        now, sinks = self._clock(), self.sinks()
        with self._lock:
            self._trim(now)
            result, classes = self._last, self._classes
            counters = (classes, self._corruptions, self._rejected)
            failures = [failure for failure in self._failures if failure]
            moments: tuple[Moment, ...] = ()
            if since is not None:
                second = [self._second.moment()] if self._second else []
                moments = tuple(moment for moment in (*self._joined, *self._timeline, *second) if moment.at >= since)
            return RunStatus(
                started_at=self._started_at,
                written_at=self._wall_clock(),
                bundle=self.bundle,
                strategy=self.strategy,
                uptime_s=round(now - self._started, 1),
                fps=round(len(self._arrivals) / min(RATE_WINDOW, max(now - self._started, 1.0)), 1),
                since_result_s=None if self._last_at is None else round(now - self._last_at, 2),
                source=SourceStatus.of(self.source),
                totals=RunTotals(self._results, self._mix_changes, *map(dict, counters)),
                events=dict(self.events),
                result=result,
                failed=len(failures),
                failure=failures[-1] if failures else "",
                timeline=moments,
                limits=self.limits,
                sinks=sinks,
            )

    def _trim(self, now: float) -> None:
        while self._arrivals and now - self._arrivals[0] > RATE_WINDOW:
            self._arrivals.popleft()

    def _current(self, now: float) -> _Second:
        at = (now - self._started) // TIMELINE_STEP * TIMELINE_STEP
        if self._second is None or self._second.at != at:
            if self._second is not None:
                self._timeline.append(self._second.moment())
            self._second = _Second(at)
            self._thin(at)
        return self._second

    def _thin(self, now: float) -> None:
        while self._timeline and self._timeline[0].at <= now - min(NEW, self._window):
            moment = self._timeline.popleft()
            if self._joined and moment.at // JOINED_STEP == self._joined[-1].at // JOINED_STEP:
                moment = self._joined.pop().joined(moment)
            self._joined.append(moment)
        while self._joined and self._joined[0].at + self._joined[0].seconds <= now - self._window + TIMELINE_STEP:
            self._joined.popleft()
