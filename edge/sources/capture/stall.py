"""Decides if a live source is lost, and how long to wait before it is reopened. Pure: no clock, no I/O."""

from collections.abc import Callable

OPEN_TIMEOUT = 10.0  # seconds after which an attempt to open a connection ends
FREEZE_SECONDS = 2.0  # after which equal frames of a live source count as frozen
FIRST_BACKOFF, LAST_BACKOFF = 0.1, 1.0  # a camera that returns is seen within two seconds
LONGEST_PATIENCE = 300.0
FORGETTING = 0.9995  # of the longest gap, per frame: half of it is forgotten after 1,400
PROMPT = 1.0  # seconds after opening within which a source with a steady rate has sent a frame
FLOWING_FRAMES, FLOWING_SECONDS = 10, 10.0  # after either, an opened source works


class StallDetector:
    """Decides when a live source has been silent for too long, and learns its rhythm.

    Its patience is `stall` seconds, or three times the longest recent gap between frames, declared or seen. If an
    opening gives no frame, the former doubles, up to five minutes, so that a camera with one frame per minute is
    recognised instead of being reopened in a loop. `silent`: seconds since the last frame or other sign of life.
    """

    def __init__(self, stall: float) -> None:
        self.silent = 0.0
        self._stall, self._stretch = stall, 1
        self._longest_gap = self._gap = self._waited = 0.0
        self._frames, self._fell_silent = 0, False

    @property
    def patience(self) -> float:
        """Seconds that the source may be silent, at most 300."""
        return min(max(self._stall * self._stretch, 3 * self._longest_gap), LONGEST_PATIENCE)

    @property
    def flowing(self) -> bool:
        """Whether the source has worked since it was opened: for 10 frames, or 10 s of waiting."""
        return self._frames >= FLOWING_FRAMES or self._waited >= FLOWING_SECONDS

    def opened(self, fps: float | None = None) -> None:
        """Note that the source was opened, and the frames per second that it declares."""
        self._longest_gap = max(self._longest_gap, 1 / fps if fps else 0.0)
        self.silent = self._gap = self._waited = 0.0
        self._frames = 0

    def waited(self, seconds: float, alive: bool) -> bool:
        """Note seconds without a usable frame (`alive`: a black one came); return whether the source is stalled."""
        self._gap += seconds
        self._waited += seconds
        self.silent = 0.0 if alive else self.silent + seconds
        return self.silent > self.patience

    def fell_silent(self, something_came: bool) -> None:
        """Note that the source counts as silent, and whether any frame came since it was opened."""
        self._fell_silent = True
        if not something_came:
            # It may be slower than expected.
            self._stretch = min(2 * self._stretch, round(LONGEST_PATIENCE))

    def frame_came(self, idle_for: float) -> None:
        """Note a frame, received `idle_for` seconds after the previous one, reopening included."""
        self._frames += 1
        if self._frames > 1:
            self._stretch = 1
            self._longest_gap = max(self._gap, FORGETTING * self._longest_gap)
        elif self._fell_silent and self._gap > PROMPT:
            # It was open, and silent as before: reopening has not helped, so that is its frame interval.
            self._longest_gap = max(idle_for, self._longest_gap)
        self._fell_silent = False
        self.silent = self._gap = 0.0


class Backoff:
    """Pauses between attempts to open a source: they double from 0.1 s to 1 s and are jittered.

    `retries`: consecutive attempts, None: no limit; `jitter`: 0…1 for each pause, longest at 1, half as long at 0.
    """

    def __init__(self, retries: int | None, jitter: Callable[[], float]) -> None:
        self._retries, self._jitter, self._failures = retries, jitter, 0

    def failed(self) -> float | None:
        """Count a failure; return the seconds to wait before the next attempt, or None if there is none left."""
        self._failures += 1
        if self._retries is not None and self._failures > self._retries:
            return None
        return min(FIRST_BACKOFF * 2.0 ** min(self._failures - 1, 10), LAST_BACKOFF) * (1 + self._jitter()) / 2

    def reset(self) -> None:
        """Start again at the shortest pause: the source works."""
        self._failures = 0
