"""The summary of a run, counted in constant memory."""

import random
import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rws.edge.monitoring.run_status import RunStatus
from rws.edge.pipeline import STAGES, Result
from rws.records import utc

if TYPE_CHECKING:
    from typing_extensions import NotRequired

TOTAL = "total"


class Reservoir:
    """Percentiles of a stream: exact up to `capacity`, then from a seeded sample (Vitter 1985, algorithm R)."""

    def __init__(self, capacity: int = 8192) -> None:
        self.capacity, self.count = capacity, 0
        self._values = array("d")
        self._random = random.Random(0)

    def add(self, value: float) -> None:
        """Add one number."""
        self.count += 1
        if len(self._values) < self.capacity:
            self._values.append(value)
        elif (place := self._random.randrange(self.count)) < self.capacity:
            self._values[place] = value

    def percentile(self, q: float) -> float:
        """Return the q-th percentile, 0 ≤ q ≤ 100, linearly interpolated; NaN if nothing was added."""
        return float(np.percentile(self._values, q)) if self._values else float("nan")


class SummaryRecord(TypedDict):
    """A summary in plain types; `received` = `frames` + `dropped` + `rejected` + `buffered`."""

    started_at: str
    received: int
    frames: int  # results
    dropped: int
    buffered: int  # decoded, but not processed before the run stopped
    rejected: int
    rejected_by_reason: dict[str, int]
    left_out: dict[str, int]  # files of a folder that are not read, by suffix
    reconnects: int
    mix_changes: int
    agreement: "NotRequired[dict[str, float]]"
    fps: float | None
    classes: dict[str, int]
    corruptions: dict[str, int]
    times_ms: dict[str, dict[str, float]]  # the sum of the stages under `total`
    age_ms: dict[str, float]


class Summary:
    """Counts stage times, rate and agreement of a run; the `Monitor` counts the totals. The clock is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.times = {stage: Reservoir() for stage in (*STAGES, TOTAL)}
        self.age = Reservoir()
        self._compared = self._agree = self._agree_unpatched = 0
        self._clock = clock
        self._first = self._last = 0.0

    def add(self, result: Result) -> None:
        """Add one result."""
        self._last = self._clock()
        self._first = self._first if self.results else self._last
        if result.on_original is not None and result.unpatched is not None:
            self._compared += 1
            said = [result.task.summary(one)[0] for one in (result.output, result.unpatched, result.on_original)]
            self._agree += said[0] == said[2]
            self._agree_unpatched += said[1] == said[2]
        for stage in STAGES:
            self.times[stage].add(result.times_ms[stage])
        self.times[TOTAL].add(sum(result.times_ms.values()))
        self.age.add(result.age_ms)

    @property
    def results(self) -> int:
        """The number of results added."""
        return self.age.count

    @property
    def fps(self) -> float | None:
        """Results per second, from the first to the last; None with fewer than two."""
        seconds = self._last - self._first
        return (self.results - 1) / seconds if seconds > 0 else None

    @property
    def agreement(self) -> dict[str, float] | None:
        """Share of frames whose answer, in words, is the clean model's before corruption, percent; None without any."""
        if not self._compared:
            return None
        unpatched, patched = (round(100 * count / self._compared, 2) for count in (self._agree_unpatched, self._agree))
        return {"frames": self._compared, "unpatched": unpatched, "patched": patched}

    def to_dict(self, status: RunStatus) -> SummaryRecord:
        """Return plain types, ready for `json.dumps`; the counters are those of a run's status."""
        source, totals = status.source, status.totals
        found: SummaryRecord = {
            "started_at": utc(status.started_at),
            "received": source.received,
            "frames": totals.results,
            "dropped": source.dropped,
            "buffered": source.buffered,
            "rejected": sum(status.rejected_by_reason.values()),
            "rejected_by_reason": status.rejected_by_reason,
            "left_out": dict(source.left_out),
            "reconnects": source.reconnects,
            "mix_changes": totals.mix_changes,
            "fps": None if self.fps is None else round(self.fps, 2),
            "classes": dict(Counter(totals.classes).most_common()),
            "corruptions": dict(Counter(totals.corruptions).most_common()),
            "times_ms": {stage: _percentiles(times) for stage, times in self.times.items()} if self.results else {},
            "age_ms": _percentiles(self.age) if self.results else {},
        }
        if agreement := self.agreement:
            found["agreement"] = agreement
        return found

    def render(self, status: RunStatus, timings: bool = False, images: bool = False) -> RenderableType:
        """Return counters and what was seen, for `rich.print`; of still `images` counters only with `timings`."""
        source, totals = status.source, status.totals
        reasons = ", ".join(f"{reason} {count}" for reason, count in status.rejected_by_reason.items())
        rejected = f" · rejected {sum(status.rejected_by_reason.values())}{f' ({reasons})' if reasons else ''}"
        if images and not timings:
            head = Text(f"images {totals.results}", style="bold").append(rejected if reasons else "")
        else:
            rate = "" if self.fps is None else f", {self.fps:.1f} per second"
            head = Text(f"frames {totals.results}{rate} · mix changes {totals.mix_changes}", style="bold")
            head.append(f" · dropped {source.dropped}{rejected}")
            head.append(f" · reconnects {source.reconnects}" if source.reconnects else "")
        head.append(f" · left out {sum(source.left_out.values())}" if source.left_out else "")
        for name, sink in status.sinks.items():
            if sink.dropped or sink.failed or sink.state != "up":
                head.append(f"\n{name}: written {sink.written}, dropped {sink.dropped}, failed {sink.failed}")
                head.append(f" · {sink.state}" if sink.state != "up" else "")
                head.append(f": {sink.error}" if sink.error else "")
        if not self.results:
            return head
        if agreement := self.agreement:
            rates = "unpatched {unpatched:.1f} %, patched {patched:.1f} %".format(**agreement)
            head.append(f"\nagreement with the clean model on the clean frame: {rates}")
        counted = {"classes": totals.classes, "corruptions": totals.corruptions}
        parts = [head, *(_counts(title, counts) for title, counts in counted.items() if counts)]
        return Group(*parts, *([self._table()] if timings else []))

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("ms", style="dim")
        columns = {**self.times, "age": self.age}
        for title in columns:
            table.add_column(title, justify="right")
        for q in (50, 95):
            table.add_row(f"p{q}", *(f"{values.percentile(q):.2f}" for values in columns.values()))
        return table


def _percentiles(values: Reservoir) -> dict[str, float]:
    return {"p50": round(values.percentile(50), 4), "p95": round(values.percentile(95), 4)}


def _counts(title: str, counts: Mapping[str, int], most: int = 6) -> Text:
    shown = ", ".join(f"{name} {count}" for name, count in Counter(counts).most_common(most))
    rest = f" and {len(counts) - most} more" if len(counts) > most else ""
    return Text.assemble((f"{title}: ", "dim"), shown + rest)
