"""An MP4 file, written frame by frame: H.264 if PyAV has an encoder for it, else MPEG-4."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from typing import cast

import av
import cv2
import numpy as np
from av.packet import Packet
from av.video.frame import PictureType
from av.video.stream import VideoStream
from numpy.typing import NDArray

from rws.edge.sinks.file import WholeFile
from rws.errors import RwsError

# Encoders and their settings, the best first. PyAV's wheels have both; a build without FFmpeg's GPL parts lacks
# libx264. Two threads: each further one delays the output by a frame, and the model needs the other cores.
ENCODERS = {"libx264": {"preset": "veryfast", "threads": "2"}, "mpeg4": {"qmin": "5", "qmax": "5"}}
TICKS = 60_000  # time units per second; mpeg4 accepts at most 65,535
# Between two frames: MP4 has 31 bits, for three steps of frames in another order. More is spread over several frames.
LONGEST_STEP = 10_000 * TICKS
KEYFRAME_EVERY = 2.0  # seconds; an endless file starts a fragment at each key frame
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


class VideoFile:
    """Writes an MP4 file. A context manager; the file can be read after its exit, an endless one at any time.

    Args:
        path: an existing file is overwritten.
        size: width and height of every frame, pixels, even.
        fps: frames per second; in a `timed` file of those without a time.
        timed: each frame has its time; the first is shown from 0 on (in an endless file, it may start later).
        endless: write fragments: after each key frame, every two seconds, all earlier frames can be played, even after
            a crash.

    `end`: seconds at which the last frame of a timed file ends, to be set before the exit; None: after one more step.

    Raises an `OSError` if a write fails, an `RwsError` without an encoder, an `av.FFmpegError` for a bad size or rate.
    """

    def __init__(
        self, path: str | os.PathLike[str], size: tuple[int, int], fps: Fraction, timed: bool, endless: bool
    ) -> None:
        self.end: float | None = None
        self._endless = endless
        self._tick = Fraction(1, TICKS) if timed else 1 / fps
        self._timed, self._period = timed, round(1 / fps / self._tick)
        self._step = self._period  # of the last frame, if it was no pause
        self._at, self._next_key = -1, 0.0
        self._first_dts: int | None = None  # below 0 if frames are stored in another order than they are shown
        self._held: list[Packet[VideoStream]] = []  # the last packet, whose duration is known at the end
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

    def write(self, image: NDArray[np.uint8], at: float | None = None) -> None:
        """Append a frame, uint8, shape (height, width, 3), RGB; in a timed file `at` seconds, or after the last one."""
        # OpenCV converts three times as fast as FFmpeg, to the same values.
        frame = av.VideoFrame.from_ndarray(cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420), format="yuv420p")
        if self._at < 0:
            self._at = 0
        elif at is None or not self._timed:
            self._at += self._period
        else:
            before, self._at = self._at, max(self._at + 1, min(round(at * TICKS), self._at + LONGEST_STEP))
            self._step = min(self._at - before, self._period)
        frame.pts, frame.time_base = self._at, self._tick
        if self._endless and self._at * self._tick >= self._next_key:
            frame.pict_type = PictureType.I
            self._next_key = float(self._at * self._tick) + KEYFRAME_EVERY
        with self._true_errors():
            packets = self._encode(frame)
            kept = 0 if self._endless else min(1, len(packets))
            self._held = packets[len(packets) - kept :]
            self._container.mux(packets[: len(packets) - kept])

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file, self._true_errors():
            try:
                packets = self._encode(None)
                if self._timed and packets:
                    end = self._at + self._step if self.end is None else round(self.end * TICKS)
                    end = min(end, self._at + LONGEST_STEP)
                    # The last frame that is shown may not be the last one that is stored, which ends the file.
                    max(packets, key=lambda packet: packet.pts or 0).duration = max(1, end - self._at)
                    packets[-1].duration = max(1, end + (self._first_dts or 0) - (packets[-1].dts or 0))
                self._container.mux(packets)
            finally:
                self._container.close()

    def _encode(self, frame: av.VideoFrame | None) -> list[Packet[VideoStream]]:
        packets = self._held + self._stream.encode(frame)
        if packets and self._first_dts is None:
            self._first_dts = packets[0].dts
        return packets

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
