"""What `rws health` says and keeps of a source: lines, a record, a plot."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rws.edge.common.extras import require
from rws.edge.monitoring.health import PROBLEMS, Alert, Health, Timeline, problem_named, problem_of
from rws.edge.sources.base import Source
from rws.errors import RwsError, check_known
from rws.oracle.belief import Belief
from rws.oracle.temporal_filter import BeliefFilter
from rws.records import Frame
from rws.terminal import say, show

ANY = "bad"
STEADY = 0.3  # of severity in a minute: less is no trend
SHOWN = 0.5  # of severity, that a type must reach to be drawn


def problems_meant(names: Sequence[str], corruptions: Sequence[str]) -> set[str]:
    """Return the problems that names of problems, of corruptions, or `ANY` mean; UsageError if one is unknown."""
    problems = dict.fromkeys((ANY, *PROBLEMS.values(), *map(problem_named, corruptions)))
    check_known("problem", names, [*problems, *corruptions])
    return {name if name in problems else problem_named(name) for name in names}


class Watch:
    """Takes the beliefs about a source's frames; images one by one, a stream over time."""

    def __init__(self, source: Source, smooth: BeliefFilter, least: float, lasting: float, only_bad: bool) -> None:
        self._smooth = smooth
        self.timeline, self._health = Timeline(), Health(least, lasting)
        self._source, self._least, self._only_bad = source, least, only_bad
        self._counts, self._images = Counter[str](), list[dict[str, object]]()
        self._started, self._wall, self._first, self._last = time.monotonic(), 0.0, 0.0, 0.0

    @property
    def frames(self) -> int:
        """The number of frames so far."""
        return self._counts.total()

    @property
    def seconds(self) -> float:
        """How long the source is watched."""
        return time.monotonic() - self._started

    @property
    def problems(self) -> set[str]:
        """The problems of alerts and bad images."""
        bad = {str(row["problem"]) for row in self._images if row["bad"]}
        return bad | self._health.problems

    def add(self, frame: Frame, observe: Callable[[Frame], Belief]) -> None:
        """Observe a frame, and print what is to be said of it; if the oracle fails on it, that is all."""
        try:
            belief = observe(frame)
            belief = self._smooth.update(belief) if self._source.sequential else belief
        except RwsError as error:
            self._smooth.reset()
            say(f"{frame.name}: {error}")
            return
        problem = problem_of(belief)
        at = self._time(frame) if self._source.sequential else float(self.frames)
        self._counts[problem] += 1
        self.timeline.add(belief, at)
        if self._source.sequential:
            self._tell(self._health.add(belief, at))
            return
        severity, bad = round(belief.type_severity, 3), bool(problem) and belief.type_severity >= self._least
        row = {"file": frame.name, "problem": problem, "corruption": belief.type, "severity": severity, "bad": bad}
        self._images.append(row)
        if bad or not self._only_bad:
            show(f"{frame.name}  " + (f"{problem}, severity {severity:.1f} ({belief.type})" if problem else "good"))

    def idle(self) -> None:
        """Forget the past of a camera that is lost: it comes back to other weather."""
        if self._source.gone:
            self._smooth.reset()

    def _time(self, frame: Frame) -> float:
        """Return the seconds since the first frame, which never go back; a camera's own clock may."""
        own = self._source.live or frame.media_time is None
        moment = frame.captured_at if own else frame.media_time or 0.0
        if not self.frames:
            self._first, self._wall = moment, time.time()
        self._last = max(self._last, moment - self._first)
        return self._last

    def _tell(self, alert: Alert | None) -> None:
        if alert is None:
            return
        since = self._moment(alert.began)
        if alert.ended is None:
            show(f"alert: {alert.problem} since {since}, severity {alert.severity:.1f}")
        else:
            show(f"over: {alert.problem}, {since} to {self._moment(alert.ended)}, at worst {alert.severity:.1f}")

    def _moment(self, at: float) -> str:
        if not self._source.live:
            return f"{at:.1f} s"
        return time.strftime("%H:%M:%S", time.localtime(self._wall + at))

    def summarise(self) -> None:
        """Print how many frames had which problem, and what is wrong now."""
        found = self._counts.most_common()
        shares = ", ".join(f"{problem or 'good'} {count / self.frames:.0%}" for problem, count in found)
        say(f"frames {self.frames}, rejected {self._source.rejected}" + (f": {shares}" if found else ""))
        if (now := self._health.condition) is None:
            return
        trend = now.trend or 0.0
        way = "getting worse" if trend > STEADY else "getting better" if trend < -STEADY else "steady"
        since = self._moment(now.since)
        show(f"now: {now.problem}, severity {now.severity:.1f}, since {since}, {way}" if now.problem else "now: good")

    def record(self) -> dict[str, object]:
        """Return all of it in plain types."""
        now = self._health.condition
        return {
            "frames": self.frames,
            "rejected": self._source.rejected,
            "shares": {problem or "good": 100 * count / self.frames for problem, count in self._counts.items()},
            "alerts": [asdict(alert) for alert in self._health.alerts],
            "now": None if now is None else asdict(now),
            "images": self._images,
        }


def write_plot(path: Path, timeline: Timeline, corruptions: tuple[str, ...], seconds: bool) -> None:
    """Write the severity of each type over time, or by image, as PNG; MissingExtraError without Matplotlib."""
    with require("demo"):
        from matplotlib.figure import Figure
    times, severities = timeline.curves()
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(corruptions, 1):
        if len(times) and severities[:, number].max() >= SHOWN:
            axes.plot(times, severities[:, number], label=name.replace("_", " "), marker="." if len(times) < 60 else "")
    axes.set(ylim=(0, 5.1), xlabel="seconds" if seconds else "image", ylabel="severity")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=120, format="png")
