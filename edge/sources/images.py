"""Image files as a source. BGR, OpenCV's colour order, is used in this module only."""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rws.edge.sources.base import Source
from rws.errors import SourceError
from rws.records import Clock, Frame
from rws.text import printable

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

log = logging.getLogger(__name__)


class ImageSource(Source):
    """Image files, one frame each. One that cannot be decoded is counted in `rejections` and named in a warning."""

    def __init__(self, paths: Sequence[Path], name: str, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self.name, self.length, self.paths, self._clock = name, len(paths), tuple(paths), clock

    def frames(self) -> Iterator[Frame | None]:
        """Yield the images, in order; a `SourceError` if none of them can be decoded."""
        for index, path in enumerate(self.paths):
            if self.stopped:
                return
            self.received += 1
            try:
                image = _decode(path)
            except SourceError as error:
                self.rejections["undecodable"] += 1
                if len(self.paths) == 1:
                    raise
                log.warning("rejected %s", error)
                continue
            self.delivered += 1
            yield Frame(index, image, self._clock(), printable(str(path)))
        if self.rejected == len(self.paths):
            raise SourceError(f"{self.name}: none of its {self.rejected} image files could be decoded")


def _decode(path: Path) -> NDArray[np.uint8]:
    try:
        data = np.fromfile(path, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise SourceError(f"{printable(str(path))}: {getattr(error, 'strerror', '') or error}") from error
    except cv2.error:
        image = None
    if image is None:
        raise SourceError(f"{printable(str(path))}: is not an image that can be decoded")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
