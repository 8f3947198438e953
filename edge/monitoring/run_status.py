"""The state and the totals of a run: one record that status line, page, metrics, health check and report read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace

from rws.edge.pipeline import Result
from rws.edge.sources.base import Source
from rws.oracle.policy import NO_LIMITS, PatchLimits
from rws.records import SinkStatus, utc
from rws.text import shown

RECENT = 10  # frames that tell whether oracle and model work
LOST = ("reconnecting", "lost")  # states of a source that is lost, until it is reconnected or for good


@dataclass(frozen=True)
class RunTotals:
    """Totals since the start: results, changes of the weights, results by class seen and by most probable type.

    `rejected` are delivered frames without a result, by `FrameError.reason`.
    """

    results: int = 0
    mix_changes: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)
    corruptions: Mapping[str, int] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceStatus:
    """The state and the counters of a source; `received` = `delivered` + `dropped` + `rejected` + `buffered`."""

    name: str  # of a URL scheme and host only
    live: bool
    state: str  # `opening`, `running`, `reconnecting`, `lost` or `ended`
    received: int
    delivered: int
    dropped: int  # skipped for newer ones
    buffered: int  # decoded ahead and not delivered yet
    rejected: int  # unusable
    rejected_by_reason: Mapping[str, int]  # `damaged`, `frozen`, `black`, …
    reconnects: int
    error: str  # likewise
    left_out: Mapping[str, int] = field(default_factory=dict)  # files of a folder that are not read, by suffix

    @classmethod
    def of(cls, source: Source) -> "SourceStatus":
        """Read a source's counters; final once it is closed."""
        rejections = dict(source.rejections)
        copied = ("live", "state", "received", "delivered", "dropped", "buffered", "reconnects")
        return cls(
            name=shown(source.name),
            error=shown(source.error),
            rejected=sum(rejections.values()),
            rejected_by_reason=rejections,
            left_out=dict(source.left_out),
            **{name: getattr(source, name) for name in copied},
        )


@dataclass(frozen=True)
class Moment:
    """A second of the timeline, or several: of several frames the last one counts, of several seconds the worst one."""

    at: float  # when it began, seconds since the start
    frames: int = 0
    corruption: str = ""  # the most probable type, `clean` included
    severity: float = 0.0  # of that type, 0…5
    alpha: float = 0.0  # the sum of the alphas in effect
    label: str = ""
    lost: bool = False  # whether the source was lost within it
    changes: int = 0  # of the mix, within it
    mix: Mapping[str, float] = field(default_factory=dict)  # in effect
    seconds: float = 1.0  # that it lasts

    def joined(self, later: "Moment") -> "Moment":
        """Return this moment and a later one as one."""
        worst = max(self, later, key=lambda moment: (moment.frames > 0, moment.severity))
        return replace(
            worst,
            at=self.at,
            frames=self.frames + later.frames,
            lost=self.lost or later.lost,
            changes=self.changes + later.changes,
            seconds=later.at + later.seconds - self.at,
        )


@dataclass(frozen=True)
class RunStatus:
    """What a run is doing; age and newest result are None before the first.

    Seconds without a frame in which the source was not known to be lost have no moment in `timeline`, oldest first.
    """

    started_at: float  # seconds since 1970, UTC
    written_at: float  # when this was put together, likewise
    bundle: str
    strategy: str  # how the weights are updated (`PatchableModel.strategy`)
    uptime_s: float
    fps: float  # results per second over the last three seconds
    since_result_s: float | None
    source: SourceStatus
    totals: RunTotals
    events: Mapping[str, int]
    result: Result | None
    failed: int = 0  # of the newest `RECENT` delivered frames, those without a result
    failure: str = ""  # of the newest one of them
    timeline: tuple[Moment, ...] = ()
    limits: PatchLimits = NO_LIMITS  # that a person has set
    sinks: Mapping[str, SinkStatus] = field(default_factory=dict)  # by output: `jsonl`, `csv`, `save`, `page`, …

    @property
    def failing_sinks(self) -> dict[str, SinkStatus]:
        """The outputs that do not work."""
        return {name: sink for name, sink in self.sinks.items() if sink.state != "up"}

    @property
    def rejected_by_reason(self) -> dict[str, int]:
        """Frames that the source has rejected, and those for which oracle, policy or model has failed."""
        return {**self.source.rejected_by_reason, **self.totals.rejected}

    def to_dict(self, classes: bool = True) -> dict[str, object]:
        """Return plain types, ready for `json.dumps`; `counts` are the totals, `classes` only if asked for."""
        counts = {"results": self.totals.results, "mix_changes": self.totals.mix_changes}
        rejected = {"rejected_by_reason": self.rejected_by_reason}
        per_class = {"classes": dict(self.totals.classes)} if classes else {}
        document = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "totals"}
        times = {"started_at": utc(self.started_at), "written_at": utc(self.written_at)}
        return {"schema": "status/1", **document, **times} | {
            "counts": {**counts, **rejected, **per_class, "corruptions": dict(self.totals.corruptions)},
            "limits": asdict(self.limits),
            "source": asdict(self.source),
            "result": None if self.result is None else self.result.to_dict(),
            "timeline": [asdict(moment) for moment in self.timeline],
            "sinks": {name: asdict(sink) for name, sink in self.sinks.items()},
        }
