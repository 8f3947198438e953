"""Opening and decoding, in the capture process: OpenCV for cameras, PyAV (FFmpeg) for files and network streams.

PyAV reports what OpenCV hides: that a frame was damaged, that a connection timed out, and when a packet arrived.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rws.edge.sources.capture.checks import DAMAGED, UNDECODABLE
from rws.edge.sources.capture.packets import PacketReader
from rws.errors import SourceError, first_line
from rws.text import encoding_advice

if TYPE_CHECKING:
    import av
    from av.packet import Packet

# Seconds after damage during which frames count as damaged, if a stream has no key frames (intra refresh).
DISTRUST_SECONDS = 10.0
LONGEST_SILENCE = 300.0  # seconds after which reading fails even without a watchdog
DROPPED = "dropped"
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
_NETWORK_OPTIONS = {"analyzeduration": "1000000", "fpsprobesize": "0"}


@dataclass(frozen=True, eq=False)
class DecodedFrame:
    """A frame as it was received."""

    image: NDArray[np.uint8]  # shape (H, W, 3), RGB; without pixels if there is a `loss`, unless it is only damaged
    captured_at: float  # when it arrived, before it was decoded, seconds of the monotonic clock
    loss: str = ""  # `damaged` or `undecodable`; `dropped` if it was skipped; "": the decoder has found no damage
    key: bool = True  # whether it was coded without reference to another


def lost_frame(captured_at: float, loss: str) -> DecodedFrame:
    """Return a frame without an image."""
    return DecodedFrame(np.empty((0, 0, 3), np.uint8), captured_at, loss)


class Decoder(ABC):
    """An open camera, file or stream: `fps` and `length` (frames) as declared; `finite` if its end is not a failure."""

    fps: float | None = None
    length: int | None = None
    finite: bool = False

    @abstractmethod
    def __iter__(self) -> Iterator[DecodedFrame]:
        """Yield the frames until the end; a `SourceError` says why the source is lost."""

    @abstractmethod
    def close(self) -> None:
        """Release the device, file or connection."""


class CameraDecoder(Decoder):
    """A camera, or a GStreamer pipeline (`… ! appsink`), through OpenCV."""

    def __init__(self, target: int | str) -> None:
        import cv2

        self._cv2 = cv2
        pipeline = isinstance(target, str) and " ! " in target
        self._capture = cv2.VideoCapture(target, cv2.CAP_GSTREAMER if pipeline else cv2.CAP_ANY)
        if not self._capture.isOpened():
            raise SourceError(
                "cannot be opened; check with gst-launch-1.0 that it runs, and that this OpenCV has GStreamer"
                if pipeline
                else "cannot be opened; check that it is connected and that no other program uses it"
            )
        self.fps = _positive(self._capture.get(cv2.CAP_PROP_FPS))

    def __iter__(self) -> Iterator[DecodedFrame]:
        while self._capture.grab():
            captured_at = time.monotonic()
            decoded, image = self._capture.retrieve()
            if decoded and image is not None:
                rgb = self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
                yield DecodedFrame(rgb, captured_at)
            else:
                yield lost_frame(captured_at, UNDECODABLE)
        raise SourceError("gives no more frames; check the cable")

    def close(self) -> None:
        """Release the camera."""
        self._capture.release()


class StreamDecoder(Decoder):
    """A video file or network stream through PyAV.

    A `PacketReader` reads a live stream, so that packets are stamped on arrival and none waits in the network. If
    decoding is slower than the stream, waiting packets are skipped up to the newest key frame.

    Args:
        target: path or URL; a `SourceError` if it cannot be opened or contains no video that can be decoded.
        network: whether it comes over a network, at its own rate.
        timeout: seconds after which an attempt to open it ends.
        latest: False if no frame of a live stream may be skipped.
    """

    def __init__(self, target: str, network: bool, timeout: float, latest: bool | None = None) -> None:
        import av
        from av.video.reformatter import Interpolation, VideoReformatter

        av.logging.set_level(None)
        self._av = av
        options = dict(_NETWORK_OPTIONS) if network else {}
        if target.startswith("rtsp"):
            # Packets that were read to identify a live stream are old when it is open.
            options |= {"rtsp_transport": "tcp", "fflags": "nobuffer"}
        # The loop decides if a stream is silent, because it knows its rhythm; only opening has a limit here.
        limits = (timeout, LONGEST_SILENCE) if network else None
        try:
            container: Any = av.open(target, options=options, timeout=limits)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            why = _why(error, timeout) + (encoding_advice(target) if network else "")
            raise SourceError(why if network else f"is not a video, or {why}; expected .mp4, .avi or .mkv") from error
        self._container = container
        self._stream: Any = container.streams.best("video")
        # FFmpeg renders any text file as a video.
        if self._stream is None or self._stream.codec_context is None or container.format.name == "tty":
            container.close()
            raise SourceError("contains no video that can be decoded; expected for example .mp4, .avi or .mkv")
        self.fps = _positive(self._stream.average_rate or self._stream.guessed_rate)
        self.finite = not network or bool(self._container.duration)
        self.length = self._declared_length() if self.finite else None
        # Decoding several frames in parallel delays each of them; a live frame should be new.
        self._stream.thread_type = "AUTO" if self.finite else "SLICE"
        self._skips = not self.finite and latest is not False
        self._jpeg = self._stream.codec_context.name == "mjpeg"
        self._jpegs_end = False
        self._reformatter, self._interpolation = VideoReformatter(), Interpolation.FAST_BILINEAR
        self._arrivals: dict[int | None, float] = {}
        self._distrusted_since: float | None = None
        self._reader: PacketReader | None = None

    def __iter__(self) -> Iterator[DecodedFrame]:
        packets: Iterable[tuple[Packet[Any] | None, float]]
        if self.finite:
            packets = ((packet, time.monotonic()) for packet in self._demux())
        else:
            self._reader = PacketReader(self._demux())
            packets = self._reader.fresh(independent=self._jpeg) if self._skips else self._reader
        for packet, at in packets:
            if packet is None:
                yield lost_frame(at, DROPPED)
            else:
                yield from self._decode(packet, at)
        if not self.finite:
            raise SourceError("was closed by the other side")

    def close(self) -> None:
        """Release the file or connection."""
        if self._reader is None or self._reader.stop():
            self._container.close()

    def _demux(self) -> Iterator[Packet[Any]]:
        try:
            yield from self._container.demux(self._stream)
        except (self._av.error.FFmpegError, OSError) as error:
            raise SourceError(_why(error, LONGEST_SILENCE)) from error

    def _declared_length(self) -> int | None:
        if self._stream.frames:
            return int(self._stream.frames)
        seconds = (self._container.duration or 0) / self._av.time_base
        return round(seconds * self.fps) or None if self.fps else None

    def _decode(self, packet: Packet[Any], now: float) -> Iterator[DecodedFrame]:
        if len(self._arrivals) > 64:
            self._arrivals.clear()
        self._arrivals[packet.pts] = now
        cut = self._jpeg and packet.size > 0 and self._is_cut(packet)
        try:
            frames = packet.decode()
        except (self._av.error.FFmpegError, OSError):
            self._distrusted_since = now
            yield lost_frame(now, UNDECODABLE)
            return
        for frame in frames:
            arrived = self._arrivals.pop(frame.pts, now)
            loss = DAMAGED if cut or self._distrusted(frame, packet.is_corrupt, now) else ""
            rgb = self._reformatter.reformat(frame, format="rgb24", interpolation=self._interpolation)
            # Phones store upright images on their side, with the rotation as metadata.
            upright = np.rot90(rgb.to_ndarray(), round(frame.rotation / 90) % 4)
            yield DecodedFrame(upright.astype(np.uint8, copy=False), arrived, loss, bool(frame.key_frame))

    def _is_cut(self, packet: Packet[Any]) -> bool:
        """Return whether a JPEG lacks its end mark; some cameras never send it, so it counts only if others had it."""
        data = bytes(packet)
        # The coded image, which begins at the last scan mark, cannot contain an end mark.
        complete = data.rfind(_JPEG_END) > data.rfind(_JPEG_SCAN)
        self._jpegs_end = self._jpegs_end or complete
        return self._jpegs_end and not complete

    def _distrusted(self, frame: av.VideoFrame, packet_is_corrupt: bool, now: float) -> bool:
        # The frames after a damaged frame refer to it, so they count as damaged too, until the next key frame.
        if frame.is_corrupt or packet_is_corrupt:
            self._distrusted_since = now
        elif frame.key_frame or (
            self._distrusted_since is not None and now - self._distrusted_since > DISTRUST_SECONDS and not self.finite
        ):
            self._distrusted_since = None
        return self._distrusted_since is not None


def _positive(rate: Any) -> float | None:
    value = float(rate) if rate else 0.0
    return value if math.isfinite(value) and value > 0 else None


def _why(error: BaseException, timeout: float) -> str:
    if type(error).__name__ in ("ExitError", "TimeoutError"):
        return f"timed out: nothing received for {timeout:g} s"
    # PyAV repeats the address, with its password, in the message.
    return f"cannot be read ({getattr(error, 'strerror', None) or first_line(error)})"
