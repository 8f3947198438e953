"""Which frames of a video are damaged: the evidence of demuxer and decoder, carried to the frames that refer to it.

The evidence arrives in the order of decoding, frames are shown in another. Both are joined by time stamps (pts).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from rws.edge.sources.capture.decoding.evidence.h264 import HeaderReader, Headers
from rws.edge.sources.capture.decoding.evidence.unread import UnreadData

if TYPE_CHECKING:
    from av import VideoFrame
    from av.packet import Packet

MOST_HELD = 16  # frames that H.264 and HEVC may show in another order than they are decoded
_REMEMBERED = 128  # packets
_B = 3  # FFmpeg's AV_PICTURE_TYPE_B
_PLAIN_B = ("mpeg1video", "mpeg2video", "mpeg4")  # no frame refers to a B-frame; in H.264, some may


class _Start(NamedTuple):
    """From packet `number` on, what is shown at `pts` or later does not refer to what came before packet `whole`."""

    number: int
    pts: int | None
    whole: int


class DamageTracker:
    """Says of each frame whether it is damaged, or refers to one that is.

    Call `sent` for each packet before it is decoded, then `failed` or, for each frame, `received`. A frame waits until
    all frames that were decoded before it are known; without B-frames it never waits.

    Args:
        container: FFmpeg's name of the container; None if its marks of damage mean nothing.
        codec: FFmpeg's name of the codec.
        header: the codec's data for all packets, b"" if there are none.
        unread: finds damage that no decoder reports, of H.264; None: it is not looked for.
    """

    def __init__(self, container: str | None, codec: str, header: bytes, unread: UnreadData | None = None) -> None:
        # In MPEG-TS, FFmpeg's parser puts the mark of a damaged packet on the one before.
        self._container, self._marked, self._codec = container or "", False, codec
        self._headers, self._unread = HeaderReader(header) if codec == "h264" else None, unread
        self._count = 0
        self._numbers: dict[int | None, int] = {}  # pts → number of the packet, in the order of decoding
        self._unseen: dict[int, int] = {}  # number → pts of packets whose frame is still to come
        self._disposable = deque[int](maxlen=_REMEMBERED)
        self._alone = deque[int](maxlen=_REMEMBERED)  # damaged, but no other frame refers to them
        self._damaged = deque[int](maxlen=_REMEMBERED)
        self._starts = deque[_Start](maxlen=8)
        self._refresh_began = self._refresh_left = 0  # number of a packet; how many are still to come
        self._held = deque[tuple[Any, int]]()

    def sent(self, packet: Packet[Any]) -> None:
        """Note a packet that is going to be decoded."""
        number = self._count
        self._count += 1
        self._numbers[packet.pts] = number
        if packet.pts is not None and not packet.is_discard:  # no frame comes of what an edit list leaves out
            self._unseen[number] = packet.pts
        if len(self._numbers) > _REMEMBERED:
            oldest = next(iter(self._numbers))
            self._unseen.pop(self._numbers.pop(oldest), None)
        found = self._headers.look(bytes(packet)) if self._headers else Headers()
        if found.disposable:
            self._disposable.append(number)
        if found.hole:
            self._blame(number)
        if self._unread:
            for left in self._unread.look(packet, number, whole=packet.is_keyframe and not found.refresh):
                self._blame(left)
        marked = packet.is_corrupt and bool(self._container)
        if self._marked if self._container == "mpegts" else marked:
            # Of what was lost before a frame without a number, all frames may refer to it.
            self._damaged.append(number) if found.gap is None else self._blame(number)
        self._marked = marked
        if found.gap and (found.refresh or not packet.is_keyframe):
            self._damaged.append(number)
        if found.refresh and not self._refresh_left:
            self._refresh_began, self._refresh_left = number, found.refresh
        elif self._refresh_left and not found.disposable:
            self._refresh_left -= 1
            if not self._refresh_left:
                self._starts.append(_Start(number, packet.pts, self._refresh_began))

    def failed(self) -> None:
        """Note that a packet could not be decoded, the last one if not several are decoded at a time."""
        if self._codec != "h264":
            self._damaged.append(self._count - 1)

    def skipped(self) -> None:
        """Note that packets were left out before the next one."""
        self._damaged.append(self._count)
        self._count += 1

    def received(self, frame: VideoFrame) -> Iterator[tuple[VideoFrame, bool]]:
        """Note a decoded frame; yield those that are known by now, in order, each with whether it is damaged."""
        number = self._numbers.get(frame.pts, self._count - 1)
        if frame.is_corrupt:
            self._blame(number, alone=self._codec in _PLAIN_B and int(frame.pict_type) == _B)
        if frame.key_frame:
            self._starts.append(_Start(number, frame.pts, number))
        shown = frame.pts
        # AVI has the order of decoding only.
        ordered = self._container != "avi" and not frame.interlaced_frame
        if self._codec == "h264" and shown is not None and ordered:
            # What is decoded before and was to be shown before was lost in the decoder. FFmpeg also holds back what
            # follows damage, until a refresh is complete; that is no new damage.
            key = self._starts[-1] if self._starts else _Start(0, None, 0)
            lost = [(n, pts) for n, pts in self._unseen.items() if n < number and (key.pts or pts - 1) < pts < shown]
            for place, _ in [at for at in lost if not self._is_damaged(*at)]:
                self._blame(place)
        self._unseen = {} if shown is None else {n: pts for n, pts in self._unseen.items() if pts > shown}
        self._held.append((frame, number))
        if len(self._held) > MOST_HELD:
            self._unseen.clear()  # The time stamps have jumped.
        while self._held and not any(earlier < self._held[0][1] for earlier in self._unseen):
            yield self._released()

    def rest(self) -> Iterator[tuple[VideoFrame, bool]]:
        """Yield the frames that still wait, at the end of the stream."""
        while self._held:
            yield self._released()

    def _blame(self, number: int, alone: bool = False) -> None:
        (self._alone if alone or number in self._disposable else self._damaged).append(number)

    def _released(self) -> tuple[Any, bool]:
        frame, number = self._held.popleft()
        return frame, self._is_damaged(number, frame.pts)

    def _is_damaged(self, number: int, pts: int | None) -> bool:
        # What is decoded after a key frame and shown before it may refer to what came before that key frame.
        whole = max(
            (
                start.whole
                for start in self._starts
                if start.number <= number and (start.pts is None or pts is None or start.pts <= pts)
            ),
            default=0,
        )
        return number in self._alone or any(whole <= damaged <= number for damaged in self._damaged)
