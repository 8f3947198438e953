"""`Source`: the base class of all sources of frames."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from rws.edge.common.closing import Closing
from rws.records import Frame

TICK = 0.25  # seconds after which `Source.frames` yields None while no frame comes
GONE_AFTER = 2.0  # seconds: a camera that is lost for less is back before its weather has changed
Sleep = Callable[[float], None]  # waits for that many seconds
State = Literal["opening", "running", "reconnecting", "lost", "ended"]


class Source(Closing):
    """Frames in order, read once: `for frame in source`. A context manager that releases its device or file.

    Always `received` = `delivered` + `dropped` + `rejected` + `buffered`, all of them frames so far.
    """

    name: str  # for people, printable; of a URL scheme and host only
    live: bool = False  # frames arrive at their own rate and are lost if they are not read
    sequential: bool = False  # frames follow one another in time, so a temporal filter applies
    paths: tuple[Path, ...] = ()  # the files that are read
    length: int | None = None  # number of frames if known in advance; a video's header may be wrong
    fps: float | None = None  # as declared
    bursts: bool = False  # live frames arrive many at a time, and are spaced by `Frame.media_time`
    media_end: float | None = None  # when its last frame ends, as in `Frame.media_time`; known at its regular end
    state: State = "running"  # `reconnecting`: lost, being reopened; `lost`: no more attempts
    error: str = ""  # the last one, in one line
    received: int = 0
    delivered: int = 0  # yielded
    dropped: int = 0  # undamaged, skipped for newer ones
    buffered: int = 0  # undamaged and decoded, not read yet; they stay so if the source is closed early
    reconnects: int = 0
    idle_for: float = 0.0  # seconds since the last frame, as of the last None of `frames`; 0 at a frame

    def __init__(self) -> None:
        self.rejections: Counter[str] = Counter()  # frames kept from the oracle, by reason (`damaged`, `black`, …)
        self.left_out: Counter[str] = Counter()  # files that are not read, by suffix
        self.stopped = False

    def stop(self) -> None:
        """End the iteration soon, as if the source had ended; any thread or signal handler may call it."""
        self.stopped = True

    @property
    def rejected(self) -> int:
        """Frames kept from the oracle so far."""
        return self.rejections.total()

    @property
    def gone(self) -> bool:
        """Whether the camera is lost for so long that what was seen of it says nothing any more."""
        return self.state != "running" and self.idle_for >= GONE_AFTER

    def take_back(self, dropped: bool) -> None:
        """Count a delivered frame as dropped, since a newer one took its place, or as `buffered`: nobody used it."""
        self.delivered -= 1
        self.dropped += dropped
        self.buffered += not dropped

    @abstractmethod
    def frames(self) -> Iterator[Frame | None]:
        """Yield the frames left, None each `TICK` seconds without one; a `SourceError` if lost or all undecodable."""

    def __iter__(self) -> Iterator[Frame]:
        return (frame for frame in self.frames() if frame is not None)

    def close(self) -> None:
        """Release the device or file; most sources hold none."""
