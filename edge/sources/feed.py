"""The frames of a source, read in a thread, so that one loop can wait for several sources."""

import logging
import threading
import time
from collections.abc import Callable

from rws.edge.common.closing import Closing
from rws.edge.sources.base import Source
from rws.records import Clock, Frame

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds that `close` waits for a source that does not stop


class Feed(Closing):
    """Reads a source in a thread, and holds one frame for the loop: of a live source the newest, else the next one.

    A context manager, which opens nothing: the source is open, and the thread closes it when it ends. The
    source gets back what a newer frame replaces, and what nobody takes.

    Args:
        arrived: called in the thread when there is a frame, and when the source has ended.
        latest: whether a newer frame replaces the one that is held; None: if the source is live.
    """

    def __init__(
        self,
        source: Source,
        arrived: Callable[[], None],
        *,
        latest: bool | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.source = source
        self.error: Exception | None = None  # that has ended the source
        self._arrived, self._latest, self._clock = arrived, latest, clock
        self._held: tuple[Frame, float] | None = None
        self._changed = threading.Condition()
        self._closing = self._read_all = False
        # A daemon, so that the process can end although a source hangs.
        self._thread = threading.Thread(target=self._read, name=f"reads {source.name}", daemon=True)

    @property
    def waiting(self) -> bool:
        """Whether a frame is held."""
        return self._held is not None

    @property
    def ended(self) -> bool:
        """Whether there is no frame, and there will be none."""
        return self._read_all and self._held is None

    def take(self) -> tuple[Frame, float]:
        """Return the frame that is held, and the milliseconds that reading it took; ask `waiting` before."""
        with self._changed:
            held, self._held = self._held, None
            self._changed.notify_all()
        assert held is not None
        return held

    def __enter__(self) -> "Feed":
        self._thread.start()
        return self

    def stop(self) -> None:
        """End soon, without the frame that is held."""
        self.source.stop()
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the source and wait until it is closed; one that hangs is abandoned with a warning."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(PATIENCE)
        if self._thread.is_alive():
            log.warning("%s has not stopped for %g s and is abandoned", self.source.name, PATIENCE)

    def _read(self) -> None:
        try:
            with self.source:
                asked = self._clock()
                for frame in self.source.frames():
                    if frame is not None:
                        if not self._hand_over(frame, (self._clock() - asked) * 1e3):
                            break
                        asked = self._clock()
                self._wait_until_taken()
        except Exception as error:
            self.error = error
            self._wait_until_taken()
        finally:
            self._read_all = True
            self._arrived()

    def _hand_over(self, frame: Frame, read_ms: float) -> bool:
        """Hold a frame, after waiting for room if none may be dropped; return False if the feed is closing."""
        with self._changed:
            if not self._drops:
                self._changed.wait_for(lambda: self._held is None or self._closing)
            self._let_go()
            if self._closing:
                self.source.take_back(self._drops)
                return False
            self._held = frame, read_ms
        self._arrived()
        return True

    @property
    def _drops(self) -> bool:
        return self.source.live if self._latest is None else self._latest

    def _let_go(self) -> None:
        """Give back the frame that is held, if any."""
        if self._held is not None:
            self._held = None
            self.source.take_back(self._drops)

    def _wait_until_taken(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._held is None or self._closing)
            self._let_go()
