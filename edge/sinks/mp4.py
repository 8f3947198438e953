"""An MP4 file, written frame by frame: H.264 if PyAV has an encoder for it, else MPEG-4."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from typing import cast

import av
import cv2
import numpy as np
from av.video.frame import PictureType
from av.video.stream import VideoStream
from numpy.typing import NDArray

from rws.edge.sinks.file import WholeFile
from rws.errors import RwsError

# Encoders and their settings, the best first. PyAV's wheels have both; a build without FFmpeg's GPL parts lacks
# libx264. Two threads: each further one delays the output by a frame, and the model needs the other cores.
ENCODERS = {"libx264": {"preset": "veryfast", "threads": "2"}, "mpeg4": {"qmin": "5", "qmax": "5"}}
TICKS = 60_000  # time units per second; mpeg4 accepts at most 65,535
KEYFRAME_EVERY = 2.0  # seconds; an endless file starts a fragment at each key frame
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


class VideoFile:
    """Writes an MP4 file. A context manager; the file can be read after its exit, an endless one at any time.

    Args:
        path: an existing file is overwritten.
        size: width and height of every frame, pixels, even.
        endless: use capture times instead of a constant rate (the first frame may start after 0), and write
            fragments: after each key frame, every two seconds, all earlier frames can be played, even after a crash.

    Raises an `OSError` if a write fails, an `RwsError` without an encoder, an `av.FFmpegError` for a bad size or rate.
    """

    def __init__(self, path: str | os.PathLike[str], size: tuple[int, int], fps: Fraction, endless: bool) -> None:
        self._endless = endless
        self._tick = Fraction(1, TICKS) if endless else 1 / fps
        self._at, self._next_key = -1, 0.0
        self._first: float | None = None
        name = _choose_encoder()
        with ExitStack() as failed:
            self._file = failed.enter_context(WholeFile(path, "wb"))
            self._container = av.open(self._file, "w", format="mp4", container_options=FRAGMENTED if endless else {})
            self._stream = cast(VideoStream, self._container.add_stream(name, rate=fps, options=ENCODERS[name]))
            self._stream.width, self._stream.height = size
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = self._tick
            # Now and not with the first packet: PyAV crashes the process if a container without a written header is
            # closed, or if any other is not closed.
            self._container.start_encoding()
            failed.pop_all()

    def write(self, image: NDArray[np.uint8], captured_at: float) -> None:
        """Append a frame, uint8, shape (height, width, 3), RGB; in an endless file at its time since the first one."""
        # OpenCV converts three times as fast as FFmpeg, to the same values.
        frame = av.VideoFrame.from_ndarray(cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420), format="yuv420p")
        self._at += 1
        if self._endless:
            self._first = captured_at if self._first is None else self._first
            elapsed = captured_at - self._first
            self._at = max(self._at, round(elapsed * TICKS))
            if elapsed >= self._next_key:
                frame.pict_type = PictureType.I
                self._next_key = elapsed + KEYFRAME_EVERY
        frame.pts, frame.time_base = self._at, self._tick
        with self._true_errors():
            self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_: object) -> None:
        with self._file, self._true_errors():
            try:
                self._container.mux(self._stream.encode(None))
            finally:
                self._container.close()

    @contextmanager
    def _true_errors(self) -> Iterator[None]:
        # After a failed write, every later call fails for a reason that does not help.
        try:
            yield
        except av.FFmpegError:
            if self._file.error is None:
                raise
            raise self._file.error from None


def _choose_encoder() -> str:
    for name in ENCODERS:
        with suppress(av.codec.codec.UnknownCodecError):
            av.Codec(name, "w")
            return name
    raise RwsError(
        f"this PyAV can encode none of {', '.join(ENCODERS)}; install the wheel (pip install av) or write JSON lines "
        "instead"
    )
