"""What opens and decodes: OpenCV for cameras, PyAV (FFmpeg) for files and network streams. Runs in the capture process.

PyAV, because it says what OpenCV keeps to itself: that a frame was damaged, that a connection timed out rather than
ended, and when a packet arrived. What follows a damaged frame is built on it, so it is held to be damaged too until
the next key frame.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge.capture.checks import DAMAGED, UNDECODABLE
from edge.errors import SourceError, first_line

if TYPE_CHECKING:
    import av
    from av.packet import Packet

# How long a picture is distrusted at most after damage, where a stream has no key frames (intra refresh).
DISTRUST_SECONDS = 10.0
_JPEG_END = b"\xff\xd9"
_NETWORK_OPTIONS = {"flags": "low_delay", "analyzeduration": "1000000", "fpsprobesize": "0"}


@dataclass(frozen=True)
class Picture:
    """A picture as it came.

    Args:
        image: uint8, shape (H, W, 3), RGB; None where nothing could be decoded.
        captured_at: when it arrived, before it was decoded, seconds of the monotonic clock.
        flaw: `damaged` or `undecodable`, or "" as far as the decoder knows.
    """

    image: NDArray[np.uint8] | None
    captured_at: float
    flaw: str = ""


class Decoder(ABC):
    """An open camera, file or stream.

    Attributes:
        fps: frames a second as declared, else None.
        length: number of frames as declared, else None.
        finite: whether it has an end that is no failure.
    """

    fps: float | None = None
    length: int | None = None
    finite: bool = False

    @abstractmethod
    def __iter__(self) -> Iterator[Picture]:
        """The pictures until the end.

        Raises:
            SourceError: if the source is lost, with why.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the device, file or connection."""


class CameraDecoder(Decoder):
    """A camera, or a GStreamer pipeline (`… ! appsink`), through OpenCV."""

    def __init__(self, target: int | str, clock: Callable[[], float] = time.monotonic) -> None:
        import cv2

        self._cv2 = cv2
        self._clock = clock
        pipeline = isinstance(target, str) and " ! " in target
        self._capture = cv2.VideoCapture(target, cv2.CAP_GSTREAMER if pipeline else cv2.CAP_ANY)
        if not self._capture.isOpened():
            raise SourceError(
                "cannot be opened; check with gst-launch-1.0 that it runs, and that this OpenCV has GStreamer"
                if pipeline
                else "cannot be opened; check that it is connected and that no other program uses it"
            )
        self.fps = _positive(self._capture.get(cv2.CAP_PROP_FPS))

    def __iter__(self) -> Iterator[Picture]:
        while self._capture.grab():
            captured_at = self._clock()
            decoded, image = self._capture.retrieve()
            if decoded and image is not None:
                yield Picture(self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB), captured_at)
            else:
                yield Picture(None, captured_at, UNDECODABLE)
        raise SourceError("gives no more frames; check the cable")

    def close(self) -> None:
        """Let go of the camera."""
        self._capture.release()


class StreamDecoder(Decoder):
    """A video file or network stream through PyAV.

    Args:
        target: path or URL.
        network: whether it comes over a network, at its own pace.
        timeout: seconds after which opening or reading is given up.
        clock: seconds, monotonic.

    Raises:
        SourceError: if it cannot be opened, or holds no video.
    """

    def __init__(
        self, target: str, *, network: bool, timeout: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        import av
        from av.video.reformatter import Interpolation, VideoReformatter

        av.logging.set_level(None)
        self._av, self._clock, self._timeout = av, clock, timeout
        options = dict(_NETWORK_OPTIONS) if network else {}
        if target.startswith("rtsp"):
            # What was read to find out about a live stream is old by the time that is known.
            options |= {"rtsp_transport": "tcp", "fflags": "nobuffer"}
        try:
            self._container: Any = av.open(target, options=options, timeout=(timeout, timeout) if network else None)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            why = _why(error, timeout)
            raise SourceError(why if network else f"is not a video, or {why}; expected .mp4, .avi or .mkv") from error
        if not self._container.streams.video or self._container.format.name == "tty":  # FFmpeg draws any text
            self._container.close()
            raise SourceError("is not a video; expected for example .mp4, .avi or .mkv")
        self._stream = self._container.streams.video[0]
        self.fps = _positive(self._stream.average_rate or self._stream.guessed_rate)
        self.finite = not network or bool(self._container.duration and self._stream.duration)
        self.length = self._declared_length() if self.finite else None
        # Decoding several frames side by side delays each of them; a live picture should be fresh.
        self._stream.thread_type = "AUTO" if self.finite else "SLICE"
        self._reformatter, self._interpolation = VideoReformatter(), Interpolation.FAST_BILINEAR
        self._arrivals: dict[int | None, float] = {}
        self._distrusted_since: float | None = None

    def __iter__(self) -> Iterator[Picture]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (self._av.error.FFmpegError, OSError) as error:
                raise SourceError(_why(error, self._timeout)) from error
            if packet is None:
                break
            yield from self._decode(packet, self._clock())
        if not self.finite:
            raise SourceError("was ended by the other side")

    def close(self) -> None:
        """Let go of the file or connection."""
        self._container.close()

    def _declared_length(self) -> int | None:
        if self._stream.frames:
            return int(self._stream.frames)
        seconds = (self._container.duration or 0) / self._av.time_base
        return round(seconds * self.fps) or None if self.fps else None

    def _decode(self, packet: Packet[Any], now: float) -> Iterator[Picture]:
        if len(self._arrivals) > 64:
            self._arrivals.clear()
        self._arrivals[packet.pts] = now
        cut = self._stream.codec_context.name == "mjpeg" and packet.size > 0 and not _jpeg_complete(packet)
        try:
            frames = packet.decode()
        except (self._av.error.FFmpegError, OSError):
            self._distrusted_since = now
            yield Picture(None, now, UNDECODABLE)
            return
        for frame in frames:
            arrived = self._arrivals.pop(frame.pts, now)
            flaw = DAMAGED if cut or self._distrusted(frame, packet.is_corrupt, now) else ""
            rgb = self._reformatter.reformat(frame, format="rgb24", interpolation=self._interpolation)
            # Phones store upright pictures lying on their side, with a note of how to turn them.
            upright = np.rot90(rgb.to_ndarray(), round(frame.rotation / 90) % 4)
            yield Picture(upright.astype(np.uint8, copy=False), arrived, flaw)

    def _distrusted(self, frame: av.VideoFrame, packet_is_corrupt: bool, now: float) -> bool:
        if frame.is_corrupt or packet_is_corrupt:
            self._distrusted_since = now
        elif frame.key_frame or (
            self._distrusted_since is not None and now - self._distrusted_since > DISTRUST_SECONDS and not self.finite
        ):
            self._distrusted_since = None
        return self._distrusted_since is not None


def _jpeg_complete(packet: Packet[Any]) -> bool:
    # Cameras pad a JPEG's end with zeros.
    return bytes(memoryview(packet)[-64:]).rstrip(b"\x00").endswith(_JPEG_END)


def _positive(rate: Any) -> float | None:
    value = float(rate) if rate else 0.0
    return value if math.isfinite(value) and value > 0 else None


def _why(error: BaseException, timeout: float) -> str:
    name = type(error).__name__
    if name in ("ExitError", "TimeoutError"):
        return f"timed out: nothing came for {timeout:g} s"
    # PyAV repeats the address, with its password, in the message.
    text = getattr(error, "strerror", None) or first_line(error)
    return f"cannot be read ({text})"
