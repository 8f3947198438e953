"""The newest frame with what was found in it as a JPEG, encoded only on demand; and the last seconds of them."""

import asyncio
import tempfile
import time
from collections import deque
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rws.edge.pipeline import Result
from rws.edge.sinks.mp4 import VideoFile
from rws.edge.tasks.annotate import annotate, draw, to_jpeg
from rws.errors import first_line
from rws.records import Frame, SinkStatus
from rws.text import shown

MAX_WIDTH, TILE_WIDTH = 960, 480  # pixels of a frame on a page of its camera, and on that of all
CLIP_SECONDS, CLIP_BYTES = 10.0, 16 * 2**20  # of the JPEGs that are kept for a clip, at most


class JpegEncoder:
    """Encodes the newest frame, at most `max_fps` per second; any thread may replace it, one event loop asks for it.

    `width`: of the image at most, pixels.
    """

    def __init__(self, max_fps: float, width: int) -> None:
        self._width = width
        self.newest_result: tuple[Frame, Result] | None = None
        self.status = SinkStatus()
        self._shown, self.clip_bytes = deque[tuple[float, bytes]](), 0
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
                    self._jpeg = await asyncio.to_thread(_encode_drawn, *shows, self._width)
                    self._keep(self._jpeg)
                    self.status = self.status.after()
                except Exception as error:  # no memory, no thread: the viewers wait for the next frame
                    self.status = self.status.after(shown(f"the image cannot be encoded ({first_line(error)})"))
            return self._jpeg

    async def snapshot(self) -> bytes | None:
        """Return the newest frame with its result next to it as a JPEG; None before the first."""
        if (shows := self.newest_result) is None:
            return None
        frame, result = shows
        return await asyncio.to_thread(lambda: to_jpeg(annotate(frame.image, result, frame.original)))

    async def clip(self) -> bytes | None:
        """Return what was shown in the last seconds as an MP4 file, None before the first frame.

        Raises as `VideoFile`.
        """
        await self.newest(at_once=True)
        return await asyncio.to_thread(_encode_clip, list(self._shown)) if self._shown else None

    def _keep(self, jpeg: bytes) -> None:
        now = time.monotonic()
        self._shown.append((now, jpeg))
        self.clip_bytes += len(jpeg)
        while self.clip_bytes > CLIP_BYTES or self._shown[0][0] < now - CLIP_SECONDS:
            self.clip_bytes -= len(self._shown.popleft()[1])


def _encode_drawn(frame: Frame, result: Result, width: int) -> bytes:
    return to_jpeg(draw(frame.image, result, width))


def _encode_clip(shown: list[tuple[float, bytes]]) -> bytes:
    size = _decode(shown[-1][1]).shape
    height, width = (side // 2 * 2 for side in size[:2])
    with tempfile.TemporaryDirectory(prefix="rws-clip-") as folder:
        path = Path(folder, "clip.mp4")
        with VideoFile(path, (width, height), Fraction(15), timed=True, endless=False) as video:
            for at, jpeg in shown:
                if (image := _decode(jpeg)).shape == size:  # a source that was reopened may have had another size
                    video.write(np.ascontiguousarray(image[:height, :width]), at - shown[0][0])
        return path.read_bytes()


def _decode(jpeg: bytes) -> NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
