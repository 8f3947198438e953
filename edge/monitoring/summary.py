"""What a run amounted to, counted as it goes, in memory that does not grow with it."""

from __future__ import annotations

import random
import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rws.edge.pipeline import STAGES, Result
from rws.edge.sources.base import Source

TOTAL = "total"


class Reservoir:
    """Percentiles of a stream of numbers: exact up to `capacity` of them, then from a uniform sample.

    Source: Vitter 1985, algorithm R; the sample is drawn with a fixed seed.
    """

    def __init__(self, capacity: int = 8192) -> None:
        self.capacity = capacity
        self.count = 0
        self._values = array("d")
        self._random = random.Random(0)

    def add(self, value: float) -> None:
        """Take one number."""
        self.count += 1
        if len(self._values) < self.capacity:
            self._values.append(value)
        elif (place := self._random.randrange(self.count)) < self.capacity:
            self._values[place] = value

    def percentile(self, q: float) -> float:
        """The q-th percentile, 0 ≤ q ≤ 100, linearly interpolated; NaN if nothing was added."""
        return float(np.percentile(self._values, q)) if self._values else float("nan")


class Summary:
    """Counts and stage times of a run.

    Args:
        clock: seconds, monotonic; read once a result, for the rate.

    Example:
        >>> summary = Summary()
        >>> for result in runtime.stream(source):  # doctest: +SKIP
        ...     summary.add(result)
        >>> summary.to_json()["frames"]
        0
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.frames = 0
        self.switches = 0
        self.received = 0
        self.dropped = 0
        self.buffered = 0
        self.reconnects = 0
        self.rejections: Counter[str] = Counter()
        self.classes: Counter[str] = Counter()
        self.corruptions: Counter[str] = Counter()
        self.compared = self.agree = self.agree_unpatched = 0
        self.times = {stage: Reservoir() for stage in (*STAGES, TOTAL)}
        self.age = Reservoir()
        self._clock = clock
        self._first = self._last = 0.0

    def add(self, result: Result) -> None:
        """Count one result."""
        self._last = self._clock()
        if self.frames == 0:
            self._first = self._last
        self.frames += 1
        self.switches += result.changed
        self.classes[result.label] += 1
        self.corruptions[result.belief.type] += 1
        if result.on_original is not None and result.unpatched is not None:
            self.compared += 1
            self.agree += result.class_index == result.on_original.class_index
            self.agree_unpatched += result.unpatched.class_index == result.on_original.class_index
        for stage in STAGES:
            self.times[stage].add(result.times_ms[stage])
        self.times[TOTAL].add(sum(result.times_ms.values()))
        self.age.add(result.age_ms)

    def count_losses(self, source: Source) -> None:
        """Copy the source's counters, which are final once it is closed."""
        self.received, self.dropped, self.buffered = source.received, source.dropped, source.buffered
        self.reconnects = source.reconnects
        self.rejections = source.rejections.copy()

    @property
    def rejected(self) -> int:
        """Frames that were kept from the oracle."""
        return self.rejections.total()

    @property
    def fps(self) -> float | None:
        """Results a second, from the first to the last; None with fewer than two."""
        seconds = self._last - self._first
        return (self.frames - 1) / seconds if seconds > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Counts; milliseconds as `{stage: {p50, p95}}`, with the sum of the stages under `total`.

        `received` = `frames` + `dropped` + `rejected` + `buffered`: decoded ahead in a run that stopped before them.
        """
        return {
            "received": self.received,
            "frames": self.frames,
            "dropped": self.dropped,
            "buffered": self.buffered,
            "rejected": self.rejected,
            "rejections": dict(self.rejections),
            "reconnects": self.reconnects,
            "switches": self.switches,
            **self._agreement(),
            "fps": None if self.fps is None else round(self.fps, 2),
            "classes": dict(self.classes.most_common()),
            "corruptions": dict(self.corruptions.most_common()),
            "times_ms": {stage: _percentiles(times) for stage, times in self.times.items()} if self.frames else {},
            "age_ms": _percentiles(self.age) if self.frames else {},
        }

    def _agreement(self) -> dict[str, Any]:
        """How often the answer was the one that the clean model gave before the frame was corrupted, percent."""
        if not self.compared:
            return {}
        unpatched, patched = (round(100 * count / self.compared, 2) for count in (self.agree_unpatched, self.agree))
        return {"agreement": {"frames": self.compared, "unpatched": unpatched, "patched": patched}}

    def _reasons(self) -> str:
        found = ", ".join(f"{reason} {count}" for reason, count in self.rejections.items())
        return f" ({found})" if found else ""

    def render(self) -> RenderableType:
        """For `rich.print`: the counts, what was seen, and a table of the stage times."""
        rate = "" if self.fps is None else f", {self.fps:.1f} a second"
        head = Text(
            f"frames {self.frames}{rate} · switches {self.switches} · "
            f"dropped {self.dropped} · rejected {self.rejected}{self._reasons()}"
            + (f" · reconnects {self.reconnects}" if self.reconnects else ""),
            style="bold",
        )
        if self.frames == 0:
            return head
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("ms", style="dim")
        for stage in self.times:
            table.add_column(stage, justify="right")
        table.add_column("age", justify="right")
        for q in (50, 95):
            values = [*(times.percentile(q) for times in self.times.values()), self.age.percentile(q)]
            table.add_row(f"p{q}", *(f"{value:.2f}" for value in values))
        if agreement := self._agreement().get("agreement"):
            head.append(
                f"\nagreement with the clean model on the clean frame: unpatched {agreement['unpatched']:.1f} %, "
                f"patched {agreement['patched']:.1f} %"
            )
        return Group(head, _counts("classes", self.classes), _counts("corruptions", self.corruptions), table)


def _percentiles(values: Reservoir) -> dict[str, float]:
    return {"p50": round(values.percentile(50), 4), "p95": round(values.percentile(95), 4)}


def _counts(title: str, counts: Mapping[str, int], most: int = 6) -> Text:
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {count}" for name, count in ranked[:most])
    rest = f" and {len(ranked) - most} more" if len(ranked) > most else ""
    return Text.assemble((f"{title}: ", "dim"), shown + rest)
