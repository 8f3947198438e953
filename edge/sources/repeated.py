"""A file, or a list of images, that starts again at its end."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from rws.edge.sources.base import Source
from rws.records import Frame

COUNTED = ("received", "delivered", "dropped", "buffered")


class RepeatedSource(Source):
    """Reads what `reopen` opens from start to end until it is stopped; counters are those of all rounds.

    The numbers of its frames go on, and so do their times: a round begins when the last frame of the one before ends.
    """

    def __init__(self, reopen: Callable[[], Source]) -> None:
        super().__init__()
        self._reopen, self._source = reopen, reopen()
        self.name, self.sequential, self.fps = self._source.name, self._source.sequential, self._source.fps
        self.paths, self.left_out = self._source.paths, self._source.left_out
        self._before = Counter[str](), Counter[str]()  # of the finished rounds: counters, rejections

    def stop(self) -> None:
        """End the iteration soon."""
        self.stopped = True
        self._source.stop()

    def close(self) -> None:
        """Release the file."""
        self._source.close()
        self._count()

    def take_back(self, dropped: bool) -> None:
        """Count a delivered frame as dropped or buffered; see `Source.take_back`."""
        self._source.take_back(dropped)
        self._count()

    def frames(self) -> Iterator[Frame | None]:
        """Yield frames as the source does; a `SourceError` if it can no longer be opened or gives no frame."""
        first, start, end = 0, 0.0, 0.0
        while not self.stopped:
            for frame in self._source.frames():
                self._count()
                if frame is not None and frame.media_time is not None:
                    end = start + frame.media_time + 1 / (self.fps or 25)
                    frame = replace(frame, media_time=start + frame.media_time)
                yield frame if frame is None else replace(frame, index=first + frame.index)
            if self.stopped:
                break
            first, start = self._source.received + first, max(end, start + (self._source.media_end or 0.0))
            self.close()
            again = self._reopen()  # if that fails, the counters stay as they are
            self._before = Counter({name: getattr(self, name) for name in COUNTED}), self.rejections
            self._source = again
        self.state = "ended"

    def _count(self) -> None:
        counted, rejections = self._before
        for name in COUNTED:
            setattr(self, name, counted[name] + getattr(self._source, name))
        self.rejections = rejections + self._source.rejections
        self.idle_for, self.error = self._source.idle_for, self._source.error
        self.state = "running" if self._source.state == "ended" else self._source.state
