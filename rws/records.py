"""Records that travel through the whole project. A leaf: it imports nothing of ours."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray

Clock = Callable[[], float]  # seconds, monotonic
WallClock = Callable[[], float]  # seconds since 1970, UTC; may jump, so nothing waits or measures by it
_LAST_SECOND = 253402300799.0  # of the year 9999
Mix = dict[str, float]  # signature name → strength alpha; {} is the clean model


@dataclass(frozen=True)
class Frame:
    """One image of a source."""

    index: int  # its number in the source, from 0; a rejected frame keeps its number, so a gap shows
    image: NDArray[np.uint8]  # (H, W, 3), RGB
    captured_at: float  # when it was read, in seconds of the source's clock (monotonic, no calendar time)
    name: str  # the file it came from, or the name of the camera, stream or array
    media_time: float | None = None  # when the source shows it, seconds on its time line; None: it has none
    original: NDArray[np.uint8] | None = None  # `image` before it was corrupted on purpose (`rws run --corrupt`)


@dataclass(frozen=True)
class Prediction:
    """A predicted class: its name, its index in the bundle's classes, and its softmax probability, 0…1."""

    label: str
    class_index: int
    confidence: float


@dataclass(frozen=True)
class SinkStatus:
    """The state and the counters of an output, in frames (of console and systemd: in pieces of text).

    `accepted` = `written` + `dropped` + `failed` + `waiting` + `writing`.
    """

    state: str = "up"  # or `failing` (it is tried again), `failed` (for good), `abandoned` (it has not returned)
    error: str = ""  # of the failure that lasts
    failures: int = 0  # times that it has failed, attempts to reopen it included
    accepted: int = 0
    written: int = 0
    dropped: int = 0  # it was too slow
    failed: int = 0
    waiting: int = 0
    writing: int = 0

    def after(self, error: str = "") -> "SinkStatus":
        """Return the status after one more write, which has failed if there is an error."""
        bad = bool(error)
        counts = {"accepted": self.accepted + 1, "written": self.written + (not bad), "failed": self.failed + bad}
        return replace(self, state="failing" if bad else "up", error=error, failures=self.failures + bad, **counts)


def utc(seconds: float) -> str:
    """Return seconds since 1970 as ISO 8601 in UTC, with milliseconds, `2026-11-29T08:45:54.000Z`; years 1970…9999."""
    seconds = min(max(seconds, 0.0), _LAST_SECOND)  # a frame may carry any stamp
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
