"""What a running loop is doing now: written by the loop's thread, read by status line, page, metrics and supervisor."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rws.edge.common.redact import hide_password

if TYPE_CHECKING:
    from rws.edge.pipeline import Result
    from rws.edge.sources.base import Source

RATE_WINDOW = 3.0  # seconds that frames a second are counted over
TIMELINE_STEP = 1.0  # seconds that one point of the timeline stands for


@dataclass(frozen=True)
class Moment:
    """One second of the timeline.

    Args:
        at: when it began, seconds since the start.
        frames: results in it.
        corruption: the most probable type at its last frame (`clean` included).
        severity: that of `corruption` at its last frame, 0…5; 0 for clean.
        alpha: the sum of the alphas in effect at its last frame.
        label: the class predicted at its last frame.
        lost: whether the source was lost within it.
    """

    at: float
    frames: int = 0
    corruption: str = ""
    severity: float = 0.0
    alpha: float = 0.0
    label: str = ""
    lost: bool = False


@dataclass
class _Second:
    """The second that is not over; what its last frame shows is worked out once, not for each of its frames."""

    at: float
    frames: int = 0
    last: Result | None = None
    lost: bool = False

    def moment(self) -> Moment:
        if self.last is None:
            return Moment(self.at, lost=self.lost)
        belief, alpha = self.last.belief, sum(self.last.mix.values())
        severity = round(belief.type_severity, 2)
        return Moment(self.at, self.frames, belief.type, severity, round(alpha, 3), self.last.label, self.lost)


@dataclass
class Counts:
    """Totals since the start; they only grow."""

    results: int = 0
    switches: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    corruptions: dict[str, int] = field(default_factory=dict)


class Monitor:
    """The latest result, rates and totals of a run, in memory that does not grow with it.

    One thread calls `add` and `idle`; `snapshot` may be called from any.

    Args:
        source: where the frames come from; its own counters are read at each snapshot.
        bundle: name of the bundle that runs.
        way: how the weights are changed (`PatchableModel.strategy`).
        window: seconds that the timeline goes back.
        clock: seconds, monotonic; the one that stamps the frames.
    """

    def __init__(
        self,
        source: Source,
        *,
        bundle: str = "",
        way: str = "",
        window: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self.bundle = bundle
        self.way = way
        self.notes: dict[str, int] = {}
        self._clock = clock
        self._started = clock()
        self._lock = threading.Lock()
        self._last: Result | None = None
        self._last_at: float | None = None
        self._arrivals: deque[float] = deque()
        self._counts = Counts()
        self._window = window
        self._timeline: deque[Moment] = deque()
        self._second: _Second | None = None

    def add(self, result: Result) -> None:
        """Take one result."""
        now = self._clock()
        corruption = result.belief.type
        with self._lock:
            self._last, self._last_at = result, now
            self._arrivals.append(now)
            self._trim(now)
            counts = self._counts
            counts.results += 1
            counts.switches += result.changed
            counts.classes[result.label] = counts.classes.get(result.label, 0) + 1
            counts.corruptions[corruption] = counts.corruptions.get(corruption, 0) + 1
            second = self._current(now)
            second.frames += 1
            second.last = result

    def idle(self) -> None:
        """No frame came; note whether the source is lost."""
        if self.source.state in ("reconnecting", "lost"):
            with self._lock:
                self._current(self._clock()).lost = True

    def note(self, event: str) -> None:
        """Count an event that has no counter of its own, e.g. `bundle_switched`, `sink_dropped`."""
        with self._lock:
            self.notes[event] = self.notes.get(event, 0) + 1

    def snapshot(self, timeline: bool = False, since: float = 0.0) -> dict[str, Any]:
        """Everything in plain types, ready for `json.dumps`. Passwords in URLs are left out.

        Args:
            timeline: with the timeline.
            since: only its moments that began then or later, seconds since the start.

        Keys: `bundle`, `way`, `uptime_s`, `fps` (results a second over the last three), `since_result_s` (None before
        the first), `source` {name, live, state, received, delivered, dropped, rejected {reason: n}, reconnects, error},
        `result` (None before the first, else `Result.to_dict`), `counts` {results, switches, classes, corruptions},
        `events` {name: n}, and with `timeline` a list of `Moment`s as dicts, oldest first. Seconds in which no frame
        came and the source was not known to be lost have no moment.
        """
        now = self._clock()
        with self._lock:
            self._trim(now)
            result, counts = self._last, self._counts
            report: dict[str, Any] = {
                "bundle": self.bundle,
                "way": self.way,
                "uptime_s": round(now - self._started, 1),
                "fps": round(len(self._arrivals) / min(RATE_WINDOW, max(now - self._started, 1.0)), 1),
                "since_result_s": None if self._last_at is None else round(now - self._last_at, 2),
                "counts": {
                    "results": counts.results,
                    "switches": counts.switches,
                    "classes": dict(counts.classes),
                    "corruptions": dict(counts.corruptions),
                },
                "events": dict(self.notes),
            }
            if timeline:
                moments = [*self._timeline, *([self._second.moment()] if self._second else [])]
                report["timeline"] = [dict(vars(moment)) for moment in moments if moment.at >= since]
        report["source"] = _source_report(self.source)
        report["result"] = None
        if result is not None:
            found = result.to_dict()
            report["result"] = {**found, "name": hide_password(found["name"])}
        return report

    def _trim(self, now: float) -> None:
        while self._arrivals and now - self._arrivals[0] > RATE_WINDOW:
            self._arrivals.popleft()

    def _current(self, now: float) -> _Second:
        at = (now - self._started) // TIMELINE_STEP * TIMELINE_STEP
        if self._second is None or self._second.at != at:
            if self._second is not None:
                self._timeline.append(self._second.moment())
            self._second = _Second(at)
            while self._timeline and self._timeline[0].at <= at - self._window:
                self._timeline.popleft()
        return self._second


def _source_report(source: Source) -> Mapping[str, Any]:
    return {
        "name": hide_password(source.name),
        "live": source.live,
        "state": source.state,
        "received": source.received,
        "delivered": source.delivered,
        "dropped": source.dropped,
        "rejected": dict(source.rejections),
        "reconnects": source.reconnects,
        "error": hide_password(source.error),
    }
