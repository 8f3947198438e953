"""Decodes an open source in a separate thread, and keeps its usable frames until they are taken."""

import threading
import time
from collections import deque
from dataclasses import replace

from rws.edge.sources.capture.decoding.base import DecodedFrame, Decoder
from rws.edge.sources.capture.decoding.checks import FROZEN, FlawCheck, FreezeDetector
from rws.edge.sources.capture.pacing import Pacer
from rws.edge.sources.capture.shared import Counters
from rws.errors import SourceError, first_line

LIVE_BUFFER = 1  # frames that wait at most; of a live stream only the newest is needed
BUFFER = 4
OUT_OF_MEMORY = "needs more memory than capture may use; a lower --max-pixels refuses such frames"


class Grabber(threading.Thread):
    """Decodes an open source, counts and checks each frame, and keeps the usable ones until they are taken.

    Args:
        latest: whether a full buffer drops its oldest frame (counted); otherwise decoding waits.
        flaws: finds flaws of single frames.
        freeze: detects frozen frames; None if equal frames are usable.
        pace: play a recording at its own speed, as if it were live; a stream that comes in bursts is always paced.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        latest: bool,
        flaws: FlawCheck,
        freeze: FreezeDetector | None,
        pace: bool,
        counters: Counters,
    ) -> None:
        super().__init__(daemon=True)
        self.reason: str | None = None  # why the source ended, "" for a regular end
        self._decoder, self._latest, self._counters = decoder, latest, counters
        self._flaws, self._freeze = flaws, freeze
        self.media_end: float | None = None  # of the decoder, at a regular end
        self._pacer = Pacer(decoder.fps, decoder.bursts) if pace or decoder.bursts else None
        self._restamps = pace
        self._frames: deque[tuple[int, DecodedFrame]] = deque()
        # Frames that come in bursts are evenly spaced and old already: none need be lost while the loop is busy.
        self._capacity = LIVE_BUFFER if latest and not decoder.bursts else BUFFER
        self._changed = threading.Condition()
        self._stopped = False

    def run(self) -> None:
        """Decode until the source ends."""
        reason = ""
        try:
            for frame in self._decoder:
                self._pace(frame)
                if not self._take(frame):
                    return
            self.media_end = self._decoder.media_end
        except SourceError as error:
            reason = str(error)
        except MemoryError:
            reason = OUT_OF_MEMORY
        except Exception as error:
            reason = f"cannot be read ({type(error).__name__}: {first_line(error)})"
        finally:
            self._decoder.close()
            with self._changed:
                self.reason = reason
                self._changed.notify_all()

    def next(self, timeout: float) -> tuple[int, DecodedFrame] | None:
        """Return the next usable frame with its number among all received; None after `timeout` seconds without one."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self.reason is not None, timeout)
            if not self._frames:
                return None
            self._changed.notify_all()
            return self._frames.popleft()

    def stop(self) -> None:
        """Release the source after the current frame."""
        with self._changed:
            self._stopped = True
            self._counters.add("dropped", len(self._frames))
            self._frames.clear()
            self._changed.notify_all()

    def _pace(self, frame: DecodedFrame) -> None:
        if self._pacer is None:
            return
        if frame.loss == "dropped":
            self._pacer.restart()
        elif frame.image.size:  # a frame without an image has no time
            with self._changed:
                self._changed.wait_for(lambda: self._stopped, self._pacer.wait(frame, time.monotonic()))

    def _take(self, frame: DecodedFrame) -> bool:
        index = self._counters.add("received")
        loss = frame.loss or self._flaws.flaw(frame.image)
        # Checked for every undamaged image, so that a black one does not count as a change.
        if not loss and self._freeze is not None and self._freeze.frozen(frame.image, frame.captured_at, frame.key):
            loss = FROZEN
        if loss:
            self._counters.add(loss)
            return not self._stopped
        with self._changed:
            if self._latest and len(self._frames) >= self._capacity:
                self._frames.popleft()
                self._counters.add("dropped")
            else:
                self._changed.wait_for(lambda: len(self._frames) < self._capacity or self._stopped)
            if self._stopped:
                self._counters.add("dropped")
                return False
            # A recording arrives as a live source would.
            self._frames.append((index, replace(frame, captured_at=time.monotonic()) if self._restamps else frame))
            self._changed.notify_all()
        return True
