"""A moving test image, to try a run without a camera."""

import math
import time
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from rws.edge.sources.base import TICK, Sleep, Source
from rws.errors import InputError
from rws.records import Clock, Frame


class PatternSource(Source):
    """A moving test image: colour bars, a grey ramp, a hand that turns once per four seconds, and the frame's number.

    It is live: if the loop is late, frames whose time has passed are counted as received and dropped.
    """

    live = sequential = True

    def __init__(
        self, width: int, height: int, fps: float, *, clock: Clock = time.monotonic, sleep: Sleep = time.sleep
    ) -> None:
        super().__init__()
        if not (32 <= width <= 8192 and 32 <= height <= 8192 and 0 < fps <= 10_000):
            size = f"{width}x{height}@{fps:g}"
            raise InputError(f"test pattern: {size}: expected 32 to 8192 pixels, up to 10000 per second")
        self.name = f"test pattern {width}x{height}"
        self.fps = self._rate = fps
        self._clock, self._sleep = clock, sleep
        bars = np.array([(1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 1, 0), (1, 0, 1), (1, 0, 0), (0, 0, 1)], np.uint8)
        self._still = np.empty((height, width, 3), np.uint8)
        self._still[:] = 191 * bars[np.arange(width) * len(bars) // width]
        self._still[height * 3 // 4 :] = np.linspace(0, 255, width, dtype=np.uint8)[:, None]

    def frames(self) -> Iterator[Frame | None]:
        """Yield images at the declared rate, and None while the next frame is not due."""
        start = self._clock()
        index = 0
        while not self.stopped:
            early = start + index / self._rate - self._clock()
            if early > 0:
                self._sleep(min(early, TICK))
                self.idle_for += min(early, TICK)
                if early >= TICK:
                    yield None
                continue
            self.idle_for = 0.0
            skipped = int(-early * self._rate)
            index += skipped
            self.received += skipped + 1
            self.dropped += skipped
            self.delivered += 1
            yield Frame(index, self._draw(index), self._clock(), self.name, index / self._rate)
            index += 1

    def _draw(self, index: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self._still.copy()
        height, width = image.shape[:2]
        angle = 2 * math.pi * index / (4 * self._rate)
        centre, reach = (width // 2, height * 3 // 8), height / 3
        tip = round(centre[0] + reach * math.sin(angle)), round(centre[1] - reach * math.cos(angle))
        cv2.line(image, centre, tip, (255, 255, 255), max(1, height // 60), cv2.LINE_AA)
        cv2.putText(image, str(index), (4, height - 6), cv2.FONT_HERSHEY_SIMPLEX, height / 480, (255, 255, 255), 1)
        return image
