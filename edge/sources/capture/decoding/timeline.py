"""Seconds since the first frame, from time stamps that start anywhere, wrap around or jump."""

LONGEST_PAUSE = 108_000.0  # seconds between two frames of one recording; FFmpeg's limit, too
LONGEST_GAP = 10.0  # the same if the format allows its time stamps to jump, as TS and HLS do
SHORTEST_STEP, LONGEST_STEP = 1 / 300, 1.0  # seconds; others do not say how long a frame usually lasts


class Timeline:
    """Places each frame of a source on one time line that starts at 0 and never runs backwards.

    A time stamp that lies before the last one, or more than `longest_pause` seconds after it, is a jump: a cut between
    two recordings, or a counter that wraps around. The frame is then shown when the last one ends.

    Args:
        longest_pause: seconds.
        step: seconds that a frame lasts until that is known.
    """

    def __init__(self, longest_pause: float, step: float) -> None:
        self.jumps = 0
        self.end: float | None = None  # of the last frame, seconds; None without a frame
        self._longest_pause, self._step = longest_pause, step
        self._last = self._shift = 0.0

    def place(self, stamp: float | None, lasts: float = 0.0) -> float:
        """Return when a frame is shown; `stamp` and `lasts`, its duration, are seconds, None and 0 if unknown."""
        at = 0.0
        if self.end is None:
            self._shift = -(stamp or 0.0)
        else:
            at = self.end if stamp is None else stamp + self._shift
            if not 0 <= at - self._last <= self._longest_pause:
                self.jumps += 1
                self._shift += self.end - at
                at = self.end
            if SHORTEST_STEP < at - self._last < LONGEST_STEP:
                self._step = at - self._last
        lasts = lasts if lasts > SHORTEST_STEP else self._step  # without a rate, FFmpeg takes it for one tick
        self._last, self.end = at, at + min(lasts, self._longest_pause)
        return at

    def declare_end(self, stamp: float) -> None:
        """Note when the source says that it ends, as a time stamp; after a jump that means nothing."""
        if self.end is not None and not self.jumps:
            self.end = min(max(self.end, stamp + self._shift), self.end + self._longest_pause)
