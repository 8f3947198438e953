"""Finds frames of H.264 that are damaged though FFmpeg decodes them without a report.

A damaged code is often still a code. The decoder goes on with wrong ones until the frame is full, and leaves the rest
of its data; FFmpeg does not look whether all were read. So each packet is decoded once more, without its last bytes:
if they belong to the frame, that fails. If it does not, they were not needed, so the decoder had lost its way before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rws.edge.sources.capture.decoding.evidence.h264 import length_bytes, parts

if TYPE_CHECKING:
    from av.packet import Packet

# Shares of a frame's data and of another 900 bytes that are left out. Without one of them, one sound frame of a hundred
# ends in time too; the more is left out, the less damage leaves as much unread.
_SHARES, _MORE = (0.015, 0.02, 0.025, 0.03), 900
_SMALLEST = 150  # bytes of a slice that is looked at: of a smaller one, a few bytes are many blocks
_FILLED = 4  # frames with data left, more than there are others, after which an encoder is believed to fill frames up
_MOST_WAITING = 64  # packets whose frame is still to come
_CHEAP = {"ec": "favor_inter", "skip_loop_filter": "all", "skip_idct": "all", "flags": "+output_corrupt"}


class UnreadData:
    """Says which frames left a part of their data unread.

    It reads the last slice of a frame, so of a frame of several only that one is looked at.

    Args:
        header: the codec's data for all packets, b"" if there are none.
        max_pixels: most pixels of a frame.
    """

    def __init__(self, header: bytes, max_pixels: int) -> None:
        self._header, self._prefix, self._max_pixels = header, length_bytes(header), max_pixels
        self._decoder = self._new_decoder()
        self._key: Packet[Any] | None = None
        self._waiting: dict[int, tuple[Packet[Any], Packet[Any] | None]] = {}  # pts → packet, key frame before it
        self._sound = self._found = 0

    def look(self, packet: Packet[Any], whole: bool) -> list[int]:
        """Return the pts of frames that left data unread; each is known before a decoder gives it that has all data.

        `whole`: its frame refers to no other.
        """
        if self._found > _FILLED + self._sound:
            return []
        if packet.size and packet.pts is not None:
            key, self._key = (None, packet) if whole else (self._key, self._key)
            if self._last_slice(bytes(packet)):
                self._waiting[packet.pts] = packet, key
            if len(self._waiting) > _MOST_WAITING:
                del self._waiting[next(iter(self._waiting))]
        found = []
        for shown, failed in self._decoded(self._decoder, packet, _SHARES[0]):
            waiting = self._waiting.pop(shown, None)
            if waiting is None:
                continue
            left = not failed and all(self._ends_without(share, *waiting) for share in _SHARES[1:])
            self._found, self._sound = self._found + left, self._sound + (not left)
            if left and self._found <= 1 + self._sound // 2:
                found.append(shown)
        return found

    def _ends_without(self, share: float, packet: Packet[Any], key: Packet[Any] | None) -> bool:
        """Return whether a new decoder can do without a share of this frame; how it reads depends on no other frame."""
        decoder = self._new_decoder()
        failures: dict[int | None, bool] = dict(self._decoded(decoder, key, 0) if key else ())
        failures |= dict(self._decoded(decoder, packet, share))
        failures |= dict(self._decoded(decoder, None, 0))
        return not failures.get(packet.pts, True)

    def _decoded(self, decoder: Any, packet: Packet[Any] | None, share: float) -> Iterator[tuple[int, bool]]:
        """Give the pts of frames that a decoder gives for a packet without a share of it, and whether each failed."""
        import av

        shortened = None
        if packet is not None and packet.size:
            shortened = av.Packet(self._without_end(bytes(packet), share))
            shortened.pts, shortened.dts = packet.pts, packet.dts
        try:
            for frame in decoder.decode(shortened):
                if frame.pts is not None:
                    yield frame.pts, frame.is_corrupt
        except (av.error.FFmpegError, OSError, ValueError):
            return

    def _without_end(self, data: bytes, share: float) -> bytes:
        place = self._last_slice(data) if share else None
        if place is None:
            return data
        start, length, end = place
        length -= round(share * (length + _MORE))
        prefix = length.to_bytes(self._prefix, "big") if self._prefix else b""
        return data[: start - self._prefix] + prefix + data[start : start + length] + data[end:]

    def _last_slice(self, data: bytes) -> tuple[int, int, int] | None:
        """Return where the last slice of a packet begins, its length, and where it ends; None if it is too small."""
        slices = [at for at in parts(data, self._prefix) if 1 <= data[at[0]] & 31 <= 5]
        start, end = slices[-1] if slices else (0, 0)
        length = len(data[start:end].rstrip(b"\0\3"))  # an encoder may fill a frame up with such
        return (start, length, end) if length >= _SMALLEST else None

    def _new_decoder(self) -> Any:
        import av

        decoder = av.CodecContext.create("h264", "r")
        decoder.extradata, decoder.thread_type = self._header or None, "NONE"
        decoder.options = {**_CHEAP, "max_pixels": str(self._max_pixels)}
        return decoder
