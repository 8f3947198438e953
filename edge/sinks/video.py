"""Annotated frames as a video file."""

import math
import os
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from rws.edge.common.files import atomic_path
from rws.edge.pipeline import Result
from rws.edge.sinks.file import FileSink
from rws.edge.sinks.mp4 import VideoFile
from rws.edge.sources.base import Source
from rws.edge.tasks.annotate import annotate, resize
from rws.errors import InputError, UsageError
from rws.records import Frame

LONGEST_LAG = 20.0  # seconds between the arrival of a frame and when its source's time line shows it


class VideoSink(FileSink):
    """Writes annotated frames (`rws.edge.tasks.annotate.annotate`) as a video; without a frame, no file appears.

    The first frame decides the size; a frame of another size is fitted into it. Each frame is shown at its
    `media_time`, so that the video lasts as long as its source; frames that have none follow at a constant rate.

    Args:
        path: see `FileSink`; ends in `.mp4`.
        fps: frames per second of frames without a time, 0.001…1000; None for 25.
        endless: show each frame at its `captured_at`, and write fragments: after a crash all but about the last two
            seconds and a dozen frames can be played. An existing file is renamed to the first free of `<name>.1.mp4`,
            `<name>.2.mp4`, …, so is what was written before a failure if it is entered again.
        source: where the frames come from. It is `endless` if it is live, which is asked at the first frame, because
            the source is open then; it also knows when its last frame ends.

    Raises an `InputError` or `RwsError` if an argument is out of range or no encoder works, and as `FileSink`.
    """

    errors = (OSError, av.FFmpegError)

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float | None = None,
        *,
        endless: bool = False,
        source: Source | None = None,
    ) -> None:
        super().__init__(path, endless=endless or (source is not None and source.live))
        self._source = source
        if self.path.suffix.lower() != ".mp4":
            raise UsageError(f"{self.path}: annotated video is written as .mp4; use a .mp4 extension")
        if fps is not None and not 0.001 <= fps <= 1000:
            raise InputError(f"{self.path}: cannot show {fps:g} frames per second; expected 0.001 to 1000")
        self.fps = Fraction(25 if fps is None else fps).limit_denominator(1001)
        self.frames, self._size = 0, (0, 0)
        self._video: VideoFile | None = None
        self._zero: float | None = None  # when time 0 of the video was, seconds of the clock or of the source
        self._media_time, self._lead = 0.0, math.nan  # of the last frame; of the clock over its time line, seconds

    def write(self, frame: Frame, result: Result) -> None:
        """Draw the result next to the frame and append it."""
        image = self.draw(frame, result)
        with self._one_line_errors():
            self._renew()
            if self._video is None:
                self.endless = self.endless if self._source is None else self._source.live
                self._size = (image.shape[1], image.shape[0])
                if self.endless:
                    _set_aside(self.path)
                    self.path.touch()
                    self._remember()
                target = self.path if self.endless else self._stack.enter_context(atomic_path(self.path))
                timed = self.endless or frame.media_time is not None
                self._video = self._stack.enter_context(VideoFile(target, self._size, self.fps, timed, self.endless))
            self._video.write(_letterbox(image, *self._size), self._shown_at(frame))
        self.frames += 1

    def _open(self) -> None:
        self._video = self._identity = None
        self._zero, self._media_time, self._lead = None, 0.0, math.nan

    def __exit__(self, *failure: Any) -> None:
        if self._video is not None and self._source is not None:
            self._video.end = self._source.media_end
        try:
            super().__exit__(*failure)
        finally:
            if self._identity is not None and not self._is_gone():
                _remove_empty(self.path)

    def draw(self, frame: Frame, result: Result) -> NDArray[np.uint8]:
        """Return a frame with its result as an image, uint8, shape (h, w, 3), RGB, h and w even."""
        return annotate(frame.image, result, frame.original)

    def _shown_at(self, frame: Frame) -> float | None:
        if not self.endless:
            return frame.media_time
        at = frame.captured_at
        if self._source is not None and self._source.bursts and frame.media_time is not None:
            # Unless the source was reopened, its own time line tells when; many frames arrive at one time.
            if frame.media_time < self._media_time or not abs(self._lead + frame.media_time - at) < LONGEST_LAG:
                self._lead = at - frame.media_time
            self._media_time = frame.media_time
            at = self._lead + frame.media_time
        self._zero = at if self._zero is None else self._zero
        return at - self._zero


def _set_aside(path: Path) -> None:
    if path.is_file() and path.stat().st_size:
        names = (path.with_suffix(f".{number}{path.suffix}") for number in count(1))
        path.rename(next(name for name in names if not name.exists()))


def _remove_empty(path: Path) -> None:
    """Remove a video from which no frame can be read: a full disk has no room for its first fragment."""
    try:
        with av.open(str(path)) as container:
            next(container.decode(video=0))
    except (av.InvalidDataError, EOFError, StopIteration):
        path.unlink(missing_ok=True)
    except OSError:
        pass  # A file that cannot be read now may be whole.


def _letterbox(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return image
    fitted = resize(image, min(width / image.shape[1], height / image.shape[0]))
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - len(fitted)) // 2, (width - fitted.shape[1]) // 2
    canvas[top : top + len(fitted), left : left + fitted.shape[1]] = fitted
    return canvas
