"""When each frame of a recording, or of a stream that comes in bursts, is due. Pure: no clock, no waiting."""

import math

from rws.edge.sources.capture.decoding.base import DecodedFrame

WINDOW = 10.0  # seconds over which the delay of a stream is measured
SPARE = 1.0  # seconds that each frame of a window may wait; the time beyond is caught up


class Pacer:
    """Spaces frames as their `media_time` says, or evenly at `fps`.

    A recording keeps its own pace: after a frame that is late, the next ones hurry. A stream that comes in `bursts`
    waits instead, so that later bursts may be as late; if all frames of a window have waited for longer than needed,
    it catches up.
    """

    def __init__(self, fps: float | None, bursts: bool) -> None:
        self._period, self._bursts = 1 / fps if fps else 0.0, bursts
        self._zero: float | None = None  # when time 0 of the source is due, seconds of the clock
        self._at = 0.0
        self._window, self._least = 0.0, math.inf

    def restart(self) -> None:
        """Start again at the next frame: some before it are missing."""
        self._zero = None

    def wait(self, frame: DecodedFrame, now: float) -> float:
        """Return for how many seconds a frame that is decoded `now` has to wait, 0 or more."""
        self._at = self._at + self._period if frame.media_time is None else frame.media_time
        if self._zero is None:
            self._zero, self._window, self._least = now - self._at, self._at, math.inf
        if self._bursts:
            self._zero = max(self._zero, frame.captured_at - self._at)
        wait = max(self._zero + self._at - now, 0.0)
        if self._bursts:
            self._catch_up(now + wait - frame.captured_at)
        return wait

    def _catch_up(self, waited: float) -> None:
        self._least = min(self._least, waited)
        if self._at - self._window > WINDOW:
            assert self._zero is not None
            self._zero -= max(self._least - SPARE, 0.0)
            self._window, self._least = self._at, math.inf
