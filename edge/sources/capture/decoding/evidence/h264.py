"""What the headers of H.264 say of a packet, without decoding it (ITU-T H.264, Sec. 7.3 and 7.4)."""

import re
from collections.abc import Iterator
from typing import NamedTuple

# H.264 marks two zeros that are followed by a value up to 3, so they only stand before a start code, or at the end.
_HOLE = re.compile(rb"\x00\x00(?:\x02|\x00+[^\x00\x01])")
_COLOURS = (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244)  # profiles that say more of the pixels
_HEADER = 40  # bytes that hold the header of a slice, and more


class Headers(NamedTuple):
    """What is known of a packet.

    Args:
        disposable: no other frame refers to it.
        refresh: after how many more that are referred to a gradual refresh that begins here is complete; 0: none does.
        hole: it holds bytes that no encoder writes, as where a disk or network left a hole.
        gap: a frame that is referred to is missing before it; None: unknown.
    """

    disposable: bool = False
    refresh: int = 0
    hole: bool = False
    gap: bool | None = None


def length_bytes(header: bytes) -> int:
    """Return how many bytes of its length stand before each part of a packet, by the codec's data for all packets.

    0: a start code does, as everywhere but in MP4 and Matroska.
    """
    return (header[4] & 3) + 1 if header[:1] == b"\1" and len(header) > 4 else 0


def parts(data: bytes, prefix: int) -> Iterator[tuple[int, int]]:
    """Give where each part of a packet begins and ends, behind its start code or the `prefix` bytes of its length."""
    place = 0 if prefix else data.find(b"\0\0\1")
    while 0 <= place < len(data) - 8:
        start = place + (prefix or 3)
        place = start + int.from_bytes(data[place:start], "big") if prefix else data.find(b"\0\0\1", start)
        yield start, min(place, len(data)) if place >= 0 else len(data)


class HeaderReader:
    """Looks into the packets of a stream, in their order; `header`: the codec's data for all, b"" if there are none."""

    def __init__(self, header: bytes) -> None:
        self._prefix = length_bytes(header)
        self._bits: int | None = None  # of a frame's number
        self._last: int | None = None  # number of the last frame that others refer to
        if not self._prefix:
            self.look(header)

    def look(self, data: bytes) -> Headers:
        """Return what is known of a packet."""
        hole, refresh = self._has_hole(data), 0
        for start, _ in parts(data, self._prefix):
            unit = data[start : start + _HEADER]
            kind = unit[0] & 31
            if 1 <= kind <= 5:
                disposable = unit[0] >> 5 & 3 == 0
                return Headers(disposable, refresh, hole, self._gap(unit, disposable))
            try:
                if kind == 7:
                    self._bits = _number_bits(unit)
                elif kind == 6 and unit[1] == 6:
                    refresh = _Bits(unit[3:]).golomb()
            except ValueError:  # it ends too early
                continue
        return Headers(refresh=refresh, hole=hole)

    def _gap(self, slice_: bytes, disposable: bool) -> bool | None:
        """Compare the number of a frame with that of the last one that is referred to; each of those adds one."""
        before, self._last = self._last, None
        if self._bits is None:
            return None
        bits = _Bits(slice_[1:])
        try:
            bits.golomb(), bits.golomb(), bits.golomb()
            number = bits.take(self._bits)
        except ValueError:
            return None
        self._last = before if disposable else number
        if before is None or slice_[0] & 31 == 5:  # it begins at 0 again
            return False
        return (number - before) % (1 << self._bits) > 1

    def _has_hole(self, data: bytes) -> bool:
        if not self._prefix:
            return _HOLE.search(data) is not None
        place = 0
        while place < len(data):
            start = place + self._prefix
            place = start + int.from_bytes(data[place:start], "big")
            if place > len(data) or _HOLE.search(data, start, place):
                return True
        return False


def _number_bits(unit: bytes) -> int | None:
    """Return how many bits a frame's number has, by a sequence parameter set (Sec. 7.3.2.1.1).

    None if numbers may be left out, or if the set has parts that are not read here.
    """
    bits = _Bits(unit[1:])
    profile = bits.take(8)
    bits.take(16), bits.golomb()
    if profile in _COLOURS:
        if bits.golomb() == 3:
            return None
        bits.golomb(), bits.golomb()
        if bits.take(2) & 1:
            return None
    length, order = 4 + bits.golomb(), bits.golomb()
    if order == 0:
        bits.golomb()
    bits.golomb()
    return None if order == 1 or bits.take(1) else length


class _Bits:
    """Reads numbers from a part of a packet; ValueError where it ends."""

    def __init__(self, data: bytes) -> None:
        self._text = "".join(f"{byte:08b}" for byte in data.replace(b"\0\0\3", b"\0\0"))
        self._place = 0

    def take(self, count: int) -> int:
        """Return a number of that many bits."""
        self._place += count
        if self._place > len(self._text):
            raise ValueError("ends too early")
        return int(self._text[self._place - count : self._place] or "0", 2)

    def golomb(self) -> int:
        """Return a number that has as many zeros before it as bits after its first one (Sec. 9.1)."""
        zeros = self._text.index("1", self._place) - self._place
        self._place += zeros
        return self.take(zeros + 1) - 1
