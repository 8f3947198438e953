"""The state and the totals of a run: one record that status line, page, metrics, health check and report read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, TypedDict

from rws.edge.common.redact import hide_password

if TYPE_CHECKING:
    from rws.edge.pipeline import Result, ResultRecord
    from rws.edge.sources.base import Source


LOST = ("reconnecting", "lost")
"""States of a source that is lost, until it is reconnected or for good."""


@dataclass(frozen=True)
class RunTotals:
    """Totals since the start of a run.

    Args:
        results: frames that were classified.
        mix_changes: results for which the weights were changed.
        classes: results per predicted class.
        corruptions: results per most probable type, `clean` included.
    """

    results: int = 0
    mix_changes: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)
    corruptions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceStatus:
    """The state and the frame counters of a source.

    `received` = `delivered` + `dropped` + `rejected` + `buffered`.

    Args:
        name, error: of the source, without passwords.
        live: whether it is a camera or a stream.
        state: `opening`, `running`, `reconnecting`, `lost` or `ended`.
        received: all frames so far.
        delivered: frames that reached the loop.
        dropped: whole frames that were skipped for newer ones.
        buffered: frames that were decoded ahead and are not delivered yet.
        rejected: unusable frames.
        rejected_by_reason: the same by reason (`damaged`, `frozen`, `black`, …).
        reconnects: how often the source was reopened.
    """

    name: str
    live: bool
    state: str
    received: int
    delivered: int
    dropped: int
    buffered: int
    rejected: int
    rejected_by_reason: Mapping[str, int]
    reconnects: int
    error: str

    @classmethod
    def of(cls, source: Source) -> SourceStatus:
        """Read a source's counters; final once it is closed."""
        rejections = dict(source.rejections)
        return cls(
            name=hide_password(source.name),
            live=source.live,
            state=source.state,
            received=source.received,
            delivered=source.delivered,
            dropped=source.dropped,
            buffered=source.buffered,
            rejected=sum(rejections.values()),
            rejected_by_reason=rejections,
            reconnects=source.reconnects,
            error=hide_password(source.error),
        )


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


class StatusRecord(TypedDict):
    """A `RunStatus` in plain types; `counts` are the totals, in which `switches` are the changes of mix."""

    bundle: str
    way: str
    uptime_s: float
    fps: float
    since_result_s: float | None
    counts: dict[str, int | dict[str, int]]
    events: dict[str, int]
    source: dict[str, object]
    result: ResultRecord | None
    timeline: list[dict[str, object]]


@dataclass(frozen=True)
class RunStatus:
    """What a run is doing.

    Args:
        bundle: name of the bundle that runs.
        way: how the weights are updated (`PatchableModel.way`).
        uptime_s: seconds since the start.
        fps: results per second over the last three seconds.
        since_result_s: seconds since the newest result; None before the first.
        source: the source.
        totals: since the start.
        events: other events since the start, by name.
        result: the newest one, without passwords in its name; None before the first.
        timeline: oldest first. Seconds without a frame in which the source was not known to be lost have no moment.
    """

    bundle: str
    way: str
    uptime_s: float
    fps: float
    since_result_s: float | None
    source: SourceStatus
    totals: RunTotals
    events: Mapping[str, int]
    result: Result | None
    timeline: tuple[Moment, ...] = ()

    def to_dict(self) -> StatusRecord:
        """Return plain types, ready for `json.dumps`."""
        totals = self.totals
        return {
            "bundle": self.bundle,
            "way": self.way,
            "uptime_s": self.uptime_s,
            "fps": self.fps,
            "since_result_s": self.since_result_s,
            "counts": {
                "results": totals.results,
                "switches": totals.mix_changes,
                "classes": dict(totals.classes),
                "corruptions": dict(totals.corruptions),
            },
            "events": dict(self.events),
            "source": asdict(self.source),
            "result": None if self.result is None else self.result.to_dict(),
            "timeline": [asdict(moment) for moment in self.timeline],
        }
