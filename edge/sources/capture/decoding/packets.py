"""Packets of a live stream, read in a separate thread: stamped on arrival, skipped if decoding lags."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.packet import Packet

CATCH_UP_SECONDS = 0.5  # lag at which frames that depend on one another are skipped up to the next key frame
BURST_LAG = 15.0  # the same if many frames arrive at a time, to be shown one after the other
MOST_BYTES = 32 * 2**20  # of packets that wait for the decoder
Arrival = tuple["Packet[Any]", float]  # a packet, and when it arrived, seconds


class PacketReader:
    """Reads packets in a separate thread and stamps each on arrival; iterate over it in another."""

    def __init__(self, packets: Iterator[Packet[Any]], clock: Callable[[], float] = time.monotonic) -> None:
        self._packets, self._clock = packets, clock
        self._queue, self._bytes = deque[Arrival](), 0
        self._changed = threading.Condition()
        self._ended = self._stopped = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Arrival]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._ended)
                if not self._queue:
                    break
                item = self._take()
            yield item
        if self._error is not None:
            raise self._error

    def fresh(self, *, independent: bool, lag: float = CATCH_UP_SECONDS) -> Iterator[tuple[Packet[Any] | None, float]]:
        """Iterate over the packets; None stands for each that is skipped because decoding lags.

        `independent` frames are skipped to the newest; others, after `lag` seconds, to the newest key frame.
        """
        for packet, at in self:
            keys = [place for place, (later, _) in enumerate(self.waiting()) if later.is_keyframe]
            if keys and (independent or self._clock() - at > lag):
                yield None, at
                yield from ((None, later_at) for _, later_at in self.skip(keys[-1]))
            else:
                yield packet, at

    def waiting(self) -> list[Arrival]:
        """Return the packets that have arrived and were not taken yet."""
        with self._changed:
            return list(self._queue)

    def skip(self, count: int) -> list[Arrival]:
        """Take the next `count` packets."""
        with self._changed:
            return [self._take() for _ in range(count)]

    def stop(self) -> bool:
        """Stop reading; return whether the thread has ended, so that the container can be closed."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)
        return not self._thread.is_alive()

    def _take(self) -> Arrival:
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
