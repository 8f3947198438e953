"""How good a camera's frames are: what is wrong with it, since when, and whether it gets worse. It needs no model."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rws.oracle.belief import CLEAN, Belief

PROBLEMS: Mapping[str, str] = {
    "gaussian_noise": "noisy",
    "shot_noise": "noisy",
    "impulse_noise": "noisy",
    "speckle_noise": "noisy",
    "defocus_blur": "out of focus",
    "glass_blur": "out of focus",
    "gaussian_blur": "out of focus",
    "zoom_blur": "out of focus",
    "motion_blur": "shaking",
    "snow": "snow",
    "frost": "frost on the lens",
    "fog": "fog",
    "brightness": "too bright",
    "contrast": "low contrast",
    "elastic_transform": "distorted",
    "pixelate": "blocky",
    "jpeg_compression": "blocky",
    "spatter": "lens dirty",
    "lens_dirt": "lens dirty",
    "saturate": "wrong colours",
    "low_light": "too dark",
    "infrared": "night vision",
    "rain": "rain",
}
"""What a person calls each corruption; one that is not here keeps its name."""
MARGIN = 0.5  # of severity, below which a problem is over
RECENT = 60.0  # seconds that a trend is read from, of which there must be a sixth
MOST_BINS = 2000
MOST_ALERTS = 1000  # that are kept, the newest ones


def problem_named(corruption: str) -> str:
    """Return the problem that a corruption is."""
    return PROBLEMS.get(corruption, corruption.replace("_", " "))


def problem_of(belief: Belief) -> str:
    """Return what is wrong by the most probable type; "" if it is `clean`."""
    return "" if belief.type == CLEAN else problem_named(belief.type)


@dataclass(frozen=True)
class Condition:
    """What is wrong with the frame of a moment, `at`; all times are seconds on the frames' time line."""

    at: float
    problem: str  # "" if nothing is
    severity: float  # 0…5
    since: float  # when the camera began to have this problem, or none
    trend: float | None  # change of severity in a minute; None while too little is known


@dataclass(frozen=True)
class Alert:
    """A problem that lasts."""

    problem: str
    severity: float  # the worst
    began: float
    ended: float | None = None  # None: it goes on


class Health:
    """Watches the beliefs about the frames of one camera.

    A problem is an alert after `lasting` seconds of a severity of `least` or more; it is over after as long without it,
    or with less than `least` − 0.5.
    """

    def __init__(self, least: float = 3.0, lasting: float = 10.0) -> None:
        self.least, self.lasting = least, lasting
        self.condition: Condition | None = None  # of the last frame
        self.alerts: deque[Alert] = deque(maxlen=MOST_ALERTS)  # the last one may go on
        self.problems: set[str] = set()  # of all alerts so far
        self._recent: deque[tuple[float, float]] = deque(maxlen=MOST_BINS)
        self._begun: tuple[str, float] | None = None  # a problem that may become an alert
        self._better: float | None = None  # since when the alert's problem is absent

    def add(self, belief: Belief, at: float) -> Alert | None:
        """Take the belief about the next frame; returns an alert that begins or ends with it."""
        problem, severity, last = problem_of(belief), belief.type_severity, self.condition
        since = last.since if last is not None and last.problem == problem else at
        self._recent.append((at, severity))
        while at - self._recent[0][0] > RECENT:
            self._recent.popleft()
        self.condition = Condition(at, problem, severity, since, self._trend())
        alert = self.alerts[-1] if self.alerts and self.alerts[-1].ended is None else None
        return self._begin(problem, severity, at) if alert is None else self._go_on(alert, problem, severity, at)

    def _begin(self, problem: str, severity: float, at: float) -> Alert | None:
        if not problem or severity < self.least:
            self._begun = None
            return None
        if self._begun is None or self._begun[0] != problem:
            self._begun = (problem, at)
        if at - self._begun[1] < self.lasting:
            return None
        self.alerts.append(Alert(problem, severity, self._begun[1]))
        self.problems.add(problem)
        self._begun = self._better = None
        return self.alerts[-1]

    def _go_on(self, alert: Alert, problem: str, severity: float, at: float) -> Alert | None:
        if problem == alert.problem and severity >= self.least - MARGIN:
            self._better = None
            self.alerts[-1] = replace(alert, severity=max(alert.severity, severity))
            return None
        self._better = at if self._better is None else self._better
        if at - self._better < self.lasting:
            return None
        self.alerts[-1] = replace(alert, ended=self._better)
        return self.alerts[-1]

    def _trend(self) -> float | None:
        times, severities = np.array(self._recent).T
        if times[-1] - times[0] < RECENT / 6:
            return None
        times = times - times.mean()
        return float(60 * (times @ severities) / (times @ times))


class Timeline:
    """The severity of each type over time, in bins that grow as the time does."""

    def __init__(self) -> None:
        self.width = 1.0  # of a bin, seconds
        self._bins: dict[int, tuple[int, NDArray[np.float32]]] = {}  # number → frames, sum

    def add(self, belief: Belief, at: float) -> None:
        """Add the expected severity of each type, 0 if it is improbable."""
        frames, total = self._bins.get(place := int(at / self.width), (0, np.float32(0)))
        self._bins[place] = frames + 1, total + belief.probability * belief.severity
        if len(self._bins) > MOST_BINS:
            self.width *= 2
            bins, self._bins = self._bins, {}
            for number, (frames, total) in bins.items():
                known, before = self._bins.get(number // 2, (0, np.float32(0)))
                self._bins[number // 2] = known + frames, before + total

    def curves(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the middles of the bins, seconds, (B,), and the mean severity of each type there, (B, 1 + C)."""
        rows = sorted(self._bins.items())
        times = np.array([(number + 0.5) * self.width for number, _ in rows])
        return times, np.array([total / frames for _, (frames, total) in rows], np.float64)
