"""Video files and network streams, through PyAV (FFmpeg).

PyAV reports what OpenCV hides: that a frame was damaged, that a connection timed out, and when a packet arrived.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from rws.edge.sources.capture.decoding.base import DecodedFrame, Decoder, credible, lost_frame
from rws.edge.sources.capture.decoding.checks import DAMAGED, UNDECODABLE
from rws.edge.sources.capture.decoding.opening import LONGEST_SILENCE, why
from rws.edge.sources.capture.decoding.orientation import upright
from rws.edge.sources.capture.decoding.packets import BURST_LAG, CATCH_UP_SECONDS, PacketReader
from rws.edge.sources.capture.decoding.timeline import LONGEST_GAP, LONGEST_PAUSE, Timeline
from rws.edge.sources.capture.protocol import CaptureSettings
from rws.errors import SourceError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.packet import Packet

# Seconds after damage during which frames count as damaged, if a stream has no key frames (intra refresh).
DISTRUST_SECONDS = 10.0
DROPPED = "dropped"
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
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

    def __init__(self, container: InputContainer, settings: CaptureSettings) -> None:
        import av
        from av.video.reformatter import Interpolation, VideoReformatter

        self._av, network = av, settings.kind == "network"
        self._container: Any = container
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
        # Decoding several frames in parallel delays each of them; a live frame should be new.
        self._stream.thread_type = "AUTO" if self.finite else "SLICE"
        self._skips = not self.finite and settings.latest is not False
        self._jpeg = self._stream.codec_context.name == "mjpeg"
        self._jpegs_end = False
        self._reformatter, self._interpolation = VideoReformatter(), Interpolation.FAST_BILINEAR
        self._arrivals: dict[int | None, float] = {}
        self._distrusted_since: float | None = None
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
                yield lost_frame(at, DROPPED)
            else:
                yield from self._decode(packet, at)
        if not self.finite:
            raise SourceError("was closed by the other side")

    @property
    def jumps(self) -> int:
        """How often its time stamps have jumped."""
        return 0 if self._timeline is None else self._timeline.jumps

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
            self.malformed = (
                isinstance(error, self._av.error.InvalidDataError) and self._container.format.name == "mpjpeg"
            )
            raise SourceError(why(error, LONGEST_SILENCE)) from error

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
        cut = self._jpeg and packet.size > 0 and self._is_cut(packet)
        try:
            frames = packet.decode()
        except (self._av.error.FFmpegError, OSError):
            self._distrusted_since = now
            yield lost_frame(now, UNDECODABLE)
            return
        for frame in frames:
            arrived = self._arrivals.pop(frame.pts, now)
            # No packet is lost over HTTP: the counters of TS start again if another recording begins.
            corrupt = packet.is_corrupt and not self._playlist
            loss = DAMAGED if cut or self._distrusted(frame, corrupt, now) else ""
            rgb = self._reformatter.reformat(frame, format="rgb24", interpolation=self._interpolation)
            image = upright(rgb.to_ndarray(), frame).astype(np.uint8, copy=False)
            yield DecodedFrame(image, arrived, loss, bool(frame.key_frame), self._media_time(frame))

    def _media_time(self, frame: av.VideoFrame) -> float | None:
        if self._timeline is None:
            return None
        # AVI has the order of decoding only.
        stamp = frame.dts if self._container.format.name == "avi" else frame.pts
        base = float(self._stream.time_base)
        return self._timeline.place(None if stamp is None else stamp * base, frame.duration * base)

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


def _is_whole_file(container: Any) -> bool:
    """Return whether a server has said how long the file is; a camera may claim any length for its stream of JPEGs."""
    name = container.format.name
    return container.size > 0 and name not in ("mpjpeg", *_PLAYLISTS) and not name.endswith("_pipe")
