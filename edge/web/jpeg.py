"""The newest frame with what was found in it as a JPEG, encoded only on demand."""

import asyncio
import time

import cv2
import numpy as np
from numpy.typing import NDArray

from rws.edge.pipeline import Result
from rws.edge.tasks.annotate import draw
from rws.errors import first_line
from rws.records import Frame, SinkStatus
from rws.text import shown

MAX_WIDTH = 960
QUALITY = 80


class JpegEncoder:
    """Encodes the newest frame, at most `max_fps` per second; any thread may replace it, one event loop asks for it."""

    def __init__(self, max_fps: float) -> None:
        self.newest_result: tuple[Frame, Result] | None = None
        self.status = SinkStatus()
        self._period = 1 / max_fps
        self._lock = asyncio.Lock()
        self._encoded: tuple[Frame, Result] | None = None
        self._jpeg: bytes | None = None
        self.next_at = 0.0  # when the next frame may be encoded, seconds of `time.monotonic`

    async def newest(self, at_once: bool = False) -> bytes | None:
        """Return a JPEG at most one period old, the same object until there is a newer one; None before the first.

        `at_once` gives the newest frame whatever the rate.
        """
        async with self._lock:
            shows, now = self.newest_result, time.monotonic()
            if shows is not None and shows is not self._encoded and (at_once or now >= self.next_at):
                # A delay of less than a period is compensated, so that the mean rate is `max_fps`.
                self.next_at = (self.next_at if now < self.next_at + self._period else now) + self._period
                self._encoded = shows
                try:
                    self._jpeg = await asyncio.to_thread(_encode_drawn, *shows)
                    self.status = self.status.after()
                except Exception as error:  # no memory, no thread: the viewers wait for the next frame
                    self.status = self.status.after(shown(f"the image cannot be encoded ({first_line(error)})"))
            return self._jpeg


def _encode_drawn(frame: Frame, result: Result) -> bytes:
    return encode(draw(frame.image, result, MAX_WIDTH))


def encode(image: NDArray[np.uint8]) -> bytes:
    """Return an image, uint8 (H, W, 3), RGB, as a JPEG."""
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return encoded.tobytes()
