"""What opens and decodes: OpenCV for cameras, PyAV (FFmpeg) for files and network streams. Runs in the capture process.

PyAV, because it says what OpenCV keeps to itself: that a frame was damaged, that a connection timed out rather than
ended, and when a packet arrived. What follows a damaged frame is built on it, so it is held to be damaged too until
the next key frame.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rws.edge.sources.capture.checks import DAMAGED, UNDECODABLE
from rws.errors import SourceError, first_line

if TYPE_CHECKING:
    import av
    from av.packet import Packet

# How long a picture is distrusted at most after damage, where a stream has no key frames (intra refresh).
DISTRUST_SECONDS = 10.0
LONGEST_SILENCE = 300.0  # seconds after which even a reader without a watchdog gives up
CATCH_UP_SECONDS = 0.5  # lag at which pictures that depend on one another are skipped up to the next key frame
MOST_BYTES = 32 * 2**20  # of packets that wait for the decoder
DROPPED = "dropped"
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
_NETWORK_OPTIONS = {"analyzeduration": "1000000", "fpsprobesize": "0"}


@dataclass(frozen=True)
class Picture:
    """A picture as it came.

    Args:
        image: uint8, shape (H, W, 3), RGB; None where nothing could be decoded.
        captured_at: when it arrived, before it was decoded, seconds of the monotonic clock.
        flaw: `damaged` or `undecodable`; `dropped` if it was skipped; or "" as far as the decoder knows.
        key: whether it was coded on its own.
    """

    image: NDArray[np.uint8] | None
    captured_at: float
    flaw: str = ""
    key: bool = True


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

    A live stream is read by a thread of its own, so that what comes is stamped when it comes, and nothing waits in the
    network when decoding is slower than that: then what waits is skipped up to the newest key frame.

    Args:
        target: path or URL.
        network: whether it comes over a network, at its own pace.
        timeout: seconds after which opening is given up.
        latest: whether pictures may be skipped; None: those of a live stream.
        clock: seconds, monotonic.

    Raises:
        SourceError: if it cannot be opened, or holds no video that can be decoded.
    """

    def __init__(
        self,
        target: str,
        *,
        network: bool,
        timeout: float,
        latest: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        import av
        from av.video.reformatter import Interpolation, VideoReformatter

        av.logging.set_level(None)
        self._av, self._clock = av, clock
        options = dict(_NETWORK_OPTIONS) if network else {}
        if target.startswith("rtsp"):
            # What was read to find out about a live stream is old by the time that is known.
            options |= {"rtsp_transport": "tcp", "fflags": "nobuffer"}
        # A silent stream is for the loop to judge, which knows its rhythm; only opening has a limit here.
        limits = (timeout, LONGEST_SILENCE) if network else None
        try:
            container: Any = av.open(target, options=options, timeout=limits)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            why = _why(error, timeout)
            raise SourceError(why if network else f"is not a video, or {why}; expected .mp4, .avi or .mkv") from error
        self._container = container
        self._stream: Any = container.streams.best("video")
        # FFmpeg draws any text as a video.
        if self._stream is None or self._stream.codec_context is None or self._container.format.name == "tty":
            self._container.close()
            raise SourceError("holds no video that can be decoded; expected for example .mp4, .avi or .mkv")
        self.fps = _positive(self._stream.average_rate or self._stream.guessed_rate)
        self.finite = not network or bool(self._container.duration)
        self.length = self._declared_length() if self.finite else None
        # Decoding several frames side by side delays each of them; a live picture should be fresh.
        self._stream.thread_type = "AUTO" if self.finite else "SLICE"
        self._skips = not self.finite and latest is not False
        self._jpeg = self._stream.codec_context.name == "mjpeg"
        self._jpegs_end = False
        self._reformatter, self._interpolation = VideoReformatter(), Interpolation.FAST_BILINEAR
        self._arrivals: dict[int | None, float] = {}
        self._distrusted_since: float | None = None
        self._reader: PacketReader | None = None

    def __iter__(self) -> Iterator[Picture]:
        packets: Iterator[tuple[Packet[Any] | None, float]]
        if self.finite:
            packets = ((packet, self._clock()) for packet in self._demux())
        else:
            self._reader = PacketReader(self._demux(), self._clock)
            packets = self._fresh(self._reader)
        for packet, at in packets:
            if packet is None:
                yield Picture(None, at, DROPPED)
            else:
                yield from self._decode(packet, at)
        if not self.finite:
            raise SourceError("was ended by the other side")

    def close(self) -> None:
        """Let go of the file or connection."""
        if self._reader is None or self._reader.stop():
            self._container.close()

    def _demux(self) -> Iterator[Packet[Any]]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (self._av.error.FFmpegError, OSError) as error:
                raise SourceError(_why(error, LONGEST_SILENCE)) from error
            if packet is None:
                return
            yield packet

    def _fresh(self, reader: PacketReader) -> Iterator[tuple[Packet[Any] | None, float]]:
        """The packets as they come; None for each that is skipped because decoding lags behind."""
        for packet, at in reader:
            waiting = reader.waiting()
            # Where each picture stands for itself, the newest will do; otherwise a little lag is caught up with.
            if self._skips and waiting and (self._jpeg or self._clock() - at > CATCH_UP_SECONDS):
                keys = [place for place, (later, _) in enumerate(waiting) if later.is_keyframe]
                if keys:
                    yield None, at
                    yield from ((None, later_at) for _, later_at in reader.skip(keys[-1]))
                    continue
            yield packet, at

    def _declared_length(self) -> int | None:
        if self._stream.frames:
            return int(self._stream.frames)
        seconds = (self._container.duration or 0) / self._av.time_base
        return round(seconds * self.fps) or None if self.fps else None

    def _decode(self, packet: Packet[Any], now: float) -> Iterator[Picture]:
        if len(self._arrivals) > 64:
            self._arrivals.clear()
        self._arrivals[packet.pts] = now
        cut = self._jpeg and packet.size > 0 and self._is_cut(packet)
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
            yield Picture(upright.astype(np.uint8, copy=False), arrived, flaw, bool(frame.key_frame))

    def _is_cut(self, packet: Packet[Any]) -> bool:
        """Whether a JPEG has no end; some cameras never send one, so it counts only where others had it."""
        data = bytes(packet)
        # No end mark can stand within the coded picture, which begins at the last mark of a scan.
        complete = data.rfind(_JPEG_END) > data.rfind(_JPEG_SCAN)
        self._jpegs_end = self._jpegs_end or complete
        return self._jpegs_end and not complete

    def _distrusted(self, frame: av.VideoFrame, packet_is_corrupt: bool, now: float) -> bool:
        if frame.is_corrupt or packet_is_corrupt:
            self._distrusted_since = now
        elif frame.key_frame or (
            self._distrusted_since is not None and now - self._distrusted_since > DISTRUST_SECONDS and not self.finite
        ):
            self._distrusted_since = None
        return self._distrusted_since is not None


class PacketReader:
    """Reads packets in a thread of its own and stamps each when it comes; iterate over it in another.

    Args:
        packets: the source.
        clock: seconds, monotonic.
    """

    def __init__(self, packets: Iterator[Packet[Any]], clock: Callable[[], float]) -> None:
        self._packets, self._clock = packets, clock
        self._queue: deque[tuple[Packet[Any], float]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._ended = self._stopped = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[Packet[Any], float]]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._ended)
                if not self._queue:
                    break
                item = self._take()
            yield item
        if self._error is not None:
            raise self._error

    def waiting(self) -> list[tuple[Packet[Any], float]]:
        """What has come and was not taken yet."""
        with self._changed:
            return list(self._queue)

    def skip(self, count: int) -> list[tuple[Packet[Any], float]]:
        """Take the next `count` at once."""
        with self._changed:
            return [self._take() for _ in range(count)]

    def stop(self) -> bool:
        """Stop reading; whether the thread has ended, so that the container can be closed."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)
        return not self._thread.is_alive()

    def _take(self) -> tuple[Packet[Any], float]:
        packet, at = self._queue.popleft()
        self._bytes -= packet.size
        self._changed.notify_all()
        return packet, at

    def _read(self) -> None:
        try:
            for packet in self._packets:
                with self._changed:
                    self._changed.wait_for(lambda: self._bytes < MOST_BYTES or self._stopped)
                    if self._stopped:
                        return
                    self._queue.append((packet, self._clock()))
                    self._bytes += packet.size
                    self._changed.notify_all()
        except Exception as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()


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
