"""Video files and network streams, through PyAV (FFmpeg).

PyAV reports what OpenCV hides: that a frame was damaged, that a connection timed out, and when a packet arrived.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from rws.edge.sources.capture.decoding.base import DecodedFrame, Decoder, credible, lost_frame
from rws.edge.sources.capture.decoding.checks import DAMAGED, TOO_LARGE, UNDECODABLE, UNREAD
from rws.edge.sources.capture.decoding.evidence.damage import DamageTracker
from rws.edge.sources.capture.decoding.evidence.encoded import encoded_flaw
from rws.edge.sources.capture.decoding.evidence.unread import UnreadData
from rws.edge.sources.capture.decoding.opening import LONGEST_SILENCE, why
from rws.edge.sources.capture.decoding.orientation import upright
from rws.edge.sources.capture.decoding.packets import BURST_LAG, CATCH_UP_SECONDS, PacketReader
from rws.edge.sources.capture.decoding.timeline import LONGEST_GAP, LONGEST_PAUSE, Timeline
from rws.edge.sources.capture.protocol import CaptureSettings
from rws.errors import SourceError

if TYPE_CHECKING:
    import av
    from av.packet import Packet

DROPPED = "dropped"
JUMPS = "its time stamps jump; what lies between its parts is left out"
_PLAYLISTS = ("hls", "dash")  # formats that fetch one file after another
_INVENTS_TIMES, _TIMES_JUMP = 0x80, 0x200  # FFmpeg's AVFMT_NOTIMESTAMPS and AVFMT_TS_DISCONT


class StreamDecoder(Decoder):
    """A video file or network stream through PyAV.

    A `PacketReader` reads a live stream, so that packets are stamped on arrival and none waits in the network. If
    decoding is slower than the stream, waiting packets are skipped up to the newest key frame.

    Args:
        container: what was opened; a `SourceError` if it contains no video that can be decoded.
        settings: what was asked for.
    """

    tells_damage = True

    def __init__(self, container: Any, settings: CaptureSettings) -> None:
        import av
        from av.video.reformatter import Interpolation, VideoReformatter

        self._av, network = av, settings.kind == "network"
        self._container = container
        self.malformed = False  # whether it was lost because the parts of its multipart answer are not as announced
        self._stream: Any = container.streams.best("video")
        # FFmpeg renders any text file as a video.
        if self._stream is None or self._stream.codec_context is None or container.format.name == "tty":
            container.close()
            raise SourceError("contains no video that can be decoded; expected for example .mp4, .avi or .mkv")
        self.fps = credible(self._stream.average_rate) or credible(self._stream.guessed_rate)
        self._playlist = container.format.name in _PLAYLISTS
        self.finite = not network or bool(container.duration) or _is_whole_file(container)
        self.bursts = self._playlist and not self.finite
        self.length = self._declared_length() if self.finite else None
        self._skips = not self.finite and settings.latest is not False
        self._jpeg = self._stream.codec_context.name == "mjpeg"
        self._max_pixels = settings.max_pixels
        self._prepare(self._stream.codec_context)
        self._reformatter, self._interpolation = VideoReformatter(), Interpolation.FAST_BILINEAR
        self._arrivals: dict[int | None, float] = {}
        context = self._stream.codec_context
        # No packet is lost over HTTP: the counters of TS start again if another recording begins.
        marked = None if self._playlist else container.format.name
        header = bytes(context.extradata or b"")
        looks = self.finite and not network and context.name == "h264" and UNREAD not in settings.accept.split(",")
        # It costs as much as decoding; what comes by network has checksums.
        unread = UnreadData(header, self._max_pixels) if looks else None
        self._damage = DamageTracker(marked, context.name, header, unread)
        self._reader: PacketReader | None = None
        flags = container.format.flags
        pause = LONGEST_GAP if flags & _TIMES_JUMP else LONGEST_PAUSE
        self._timeline = None if flags & _INVENTS_TIMES else Timeline(pause, 1 / (self.fps or 25))
        self._packets = 0

    def __iter__(self) -> Iterator[DecodedFrame]:
        packets: Iterable[tuple[Packet[Any] | None, float]]
        if self.finite:
            packets = ((packet, time.monotonic()) for packet in self._demux())
        else:
            self._reader = PacketReader(self._demux())
            lag = BURST_LAG if self.bursts else CATCH_UP_SECONDS
            packets = self._reader.fresh(independent=self._jpeg, lag=lag) if self._skips else self._reader
        for packet, at in packets:
            if packet is None:
                self._damage.skipped()
                yield lost_frame(at, DROPPED)
            else:
                yield from self._decode(packet, at)
        if not self.finite:
            raise SourceError("was closed by the other side")

    def _prepare(self, context: Any) -> None:
        if context.width * context.height > self._max_pixels:
            size = f"{context.width} x {context.height}"
            self._container.close()
            raise SourceError(f"has frames of {size} pixels; --max-pixels allows {self._max_pixels}")
        # A stream may change its size; a JPEG ends at its first error.
        context.options = {"max_pixels": str(self._max_pixels)} | ({"err_detect": "explode"} if self._jpeg else {})
        # Decoding several frames in parallel delays each of them; a live frame should be new. With slices in parallel,
        # FFmpeg does not look for damage in H.264.
        context.thread_type = "AUTO" if self.finite else "NONE" if context.name == "h264" else "SLICE"

    @property
    def remark(self) -> str:
        """That its time stamps have jumped."""
        return JUMPS if self._timeline and self._timeline.jumps else ""

    @property
    def media_end(self) -> float | None:
        """When the last frame ends; as declared if it has as many frames as declared."""
        if self._timeline is None:
            return None
        stream = self._stream
        if self.length is not None and self._packets >= self.length and stream.duration:
            self._timeline.declare_end(float(((stream.start_time or 0) + stream.duration) * stream.time_base))
        return self._timeline.end

    def close(self) -> None:
        """Release the file or connection."""
        if self._reader is None or self._reader.stop():
            self._container.close()

    def _demux(self) -> Iterator[Packet[Any]]:
        try:
            yield from self._container.demux(self._stream)
        except (self._av.error.FFmpegError, OSError) as error:
            parts, late = self._container.format.name == "mpjpeg", isinstance(error, self._av.error.ExitError)
            self.malformed = parts and (late or isinstance(error, self._av.error.InvalidDataError))
            reason = "sends no part of the length that it announces" if parts and late else why(error, LONGEST_SILENCE)
            raise SourceError(reason) from error

    def _declared_length(self) -> int | None:
        if self._stream.frames:
            return int(self._stream.frames)
        seconds = (self._container.duration or 0) / self._av.time_base
        return round(seconds * self.fps) or None if self.fps else None

    def _decode(self, packet: Packet[Any], now: float) -> Iterator[DecodedFrame]:
        if len(self._arrivals) > 64:
            self._arrivals.clear()
        self._arrivals[packet.pts] = now
        self._packets += packet.size > 0
        if self._jpeg and packet.size and (flaw := encoded_flaw(_from_start(bytes(packet)), self._max_pixels)):
            yield lost_frame(now, flaw)
            return
        self._damage.sent(packet)
        try:
            frames = packet.decode()
        except (self._av.error.FFmpegError, OSError, ValueError):
            self._damage.failed()
            frames = []
            yield lost_frame(now, self._failure())
        for frame in frames:
            for known, damaged in self._damage.received(frame):
                yield self._to_image(known, damaged, now)
        if not packet.size:
            for known, damaged in self._damage.rest():
                yield self._to_image(known, damaged, now)

    def _media_time(self, frame: av.VideoFrame) -> float | None:
        if self._timeline is None:
            return None
        # AVI has the order of decoding only.
        stamp = frame.dts if self._container.format.name == "avi" else frame.pts
        base = float(self._stream.time_base)
        return self._timeline.place(None if stamp is None else stamp * base, frame.duration * base)

    def _failure(self) -> str:
        context = self._stream.codec_context
        if context.width * context.height > self._max_pixels:
            return TOO_LARGE
        return DAMAGED if self._jpeg else UNDECODABLE

    def _to_image(self, frame: av.VideoFrame, damaged: bool, now: float) -> DecodedFrame:
        arrived = self._arrivals.pop(frame.pts, now)
        rgb = self._reformatter.reformat(frame, format="rgb24", interpolation=self._interpolation)
        pixels = upright(np.asarray(rgb.to_ndarray(), np.uint8), frame)
        return DecodedFrame(pixels, arrived, DAMAGED if damaged else "", bool(frame.key_frame), self._media_time(frame))


def _is_whole_file(container: Any) -> bool:
    """Return whether a server has said how long the file is; a camera may claim any length for its stream of JPEGs."""
    name = container.format.name
    return container.size > 0 and name not in ("mpjpeg", *_PLAYLISTS) and not name.endswith("_pipe")


def _from_start(jpeg: bytes) -> bytes:
    return jpeg[max(0, jpeg.find(b"\xff\xd8")) :]
