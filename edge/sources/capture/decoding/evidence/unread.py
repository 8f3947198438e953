"""Finds frames of H.264 that are damaged though FFmpeg decodes them without a report.

A damaged code is often still a code. The decoder goes on with wrong ones until the frame is full, and leaves the rest
of its data; FFmpeg does not look whether all were read. So each packet is decoded once more, without its last bytes:
if they belong to the frame, that fails. If it does not, they were not needed, so the decoder had lost its way before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from rws.edge.sources.capture.decoding.evidence.h264 import length_bytes, parts

if TYPE_CHECKING:
    from av.packet import Packet

# Shares of a slice's data and of another 900 bytes that are left out. Each cut alone lets one sound frame of a hundred
# pass, so all must agree. Larger cuts find less damage.
_SHARES, _MORE = (0.015, 0.02, 0.025, 0.03), 900
_SMALLEST = 150  # bytes of a slice that is looked at: of a smaller one, a few bytes are many blocks
_MOST_WAITING, _MOST_BYTES = 64, 2**27  # packets whose frame is still to come, and their bytes
# FFmpeg marks no damaged frame if `ec` is 0; `output_corrupt` gives those that it would hold back.
_OPTIONS = {"ec": "favor_inter", "skip_loop_filter": "all", "flags": "+output_corrupt"}


class _Cut(NamedTuple):
    """A packet's data, where its largest slice begins, how many bytes of it count, and where it ends."""

    data: bytes
    start: int
    length: int
    end: int
    key: bytes  # the last packet before it whose frame refers to no other; b"" if it is that itself

    def size(self) -> int:
        """Return how many bytes are kept for it."""
        return len(self.data) + len(self.key)

    def without(self, share: float, prefix: int) -> bytes:
        """Return the data without a share of the slice; `prefix`: as in `parts`."""
        length = self.length - round(share * (self.length + _MORE))
        lengths = length.to_bytes(prefix, "big") if prefix else b""
        return self.data[: self.start - prefix] + lengths + self.data[self.start :][:length] + self.data[self.end :]


class UnreadData:
    """Says which frames left a part of their data unread; of a frame of several slices it looks at the largest one.

    Args:
        header: the codec's data for all packets, b"" if there are none.
        max_pixels: most pixels of a frame.
    """

    def __init__(self, header: bytes, max_pixels: int) -> None:
        self._header, self._prefix, self._max_pixels = header, length_bytes(header), max_pixels
        self._decoder = self._new_decoder()
        self._key = b""
        self._waiting: dict[int, _Cut] = {}
        self._ended = False
        self.sound = self.found = 0  # frames that needed all of their data, and others

    def look(self, packet: Packet[Any], number: int, whole: bool) -> list[int]:
        """Return the numbers of packets whose frame left data unread, before the main decoder gives it.

        `whole`: the frame of this packet refers to no other.
        """
        data = bytes(packet)
        if packet.has_sidedata("new_extradata"):  # It would have to reach these decoders, too.
            self._ended = True
            self._waiting.clear()
        if self._ended:
            return []
        cut = self._cut(data, b"" if whole else self._key)
        self._key = data if whole else self._key
        if cut is not None:
            self._waiting[number] = cut
            while len(self._waiting) > _MOST_WAITING or sum(map(_Cut.size, self._waiting.values())) > _MOST_BYTES:
                del self._waiting[next(iter(self._waiting))]
        shortened, found = cut.without(_SHARES[0], self._prefix) if cut else data, []
        for shown, failed in self._decoded(self._decoder, shortened, number):
            if shown in self._waiting:
                waiting = self._waiting.pop(shown)
                left = not failed and all(self._ends_without(share, waiting) for share in _SHARES[1:])
                self.found, self.sound = self.found + left, self.sound + (not left)
                # Where more than every third frame leaves data, the encoder fills frames up.
                if left and self.found <= 1 + self.sound // 2:
                    found.append(shown)
        return found

    def _ends_without(self, share: float, cut: _Cut) -> bool:
        """Return whether a new decoder can do without a share of this frame; how it reads depends on no other frame."""
        decoder, failures = self._new_decoder(), dict[int, bool]()
        for number, data in enumerate((cut.key, cut.without(share, self._prefix), b"")):
            if data or number == 2:
                failures |= self._decoded(decoder, data, number)
        return not failures.get(1, True)

    def _decoded(self, decoder: Any, data: bytes, number: int) -> Iterator[tuple[int, bool]]:
        """Give the numbers of the packets whose frames a decoder gives now, and whether each failed; b"" ends it."""
        import av

        packet = av.Packet(data) if data else None
        if packet is not None:
            packet.pts = packet.dts = number
        try:
            for frame in decoder.decode(packet):
                # FFmpeg marks no missing blocks of a field.
                yield frame.pts, frame.is_corrupt or frame.interlaced_frame
        except (av.error.FFmpegError, OSError, ValueError):
            return

    def _cut(self, data: bytes, key: bytes) -> _Cut | None:
        """Return a packet with its largest slice; None if that is too small."""
        slices = [at for at in parts(data, self._prefix) if 1 <= data[at[0]] & 31 <= 5]
        start, end = max(slices, key=lambda at: at[1] - at[0], default=(0, 0))
        length = len(data[start:end].rstrip(b"\0\3"))  # an encoder may fill a frame up with such
        return _Cut(data, start, length, end, key) if length >= _SMALLEST else None

    def _new_decoder(self) -> Any:
        import av

        decoder = av.CodecContext.create("h264", "r")
        decoder.extradata, decoder.thread_type = self._header or None, "NONE"
        decoder.options = {**_OPTIONS, "max_pixels": str(self._max_pixels)}
        return decoder
