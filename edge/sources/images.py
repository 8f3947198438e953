"""Image files as a source."""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rws.edge.common.files import read_regular
from rws.edge.sources.base import Source
from rws.edge.sources.capture.decoding.still import decode_image
from rws.errors import SourceError
from rws.records import Clock, Frame
from rws.text import printable

LARGEST_FILE = 2**29  # bytes

log = logging.getLogger(__name__)


class ImageSource(Source):
    """Image files, one frame each. One that cannot be decoded is counted in `rejections` and named in a warning.

    What is assumed about a file, such as its number of bits, is said once.
    """

    def __init__(self, paths: Sequence[Path], name: str, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self.name, self.length, self.paths, self._clock = name, len(paths), tuple(paths), clock
        self._noted = {""}

    def frames(self) -> Iterator[Frame | None]:
        """Yield the images, in order; a `SourceError` if none of them can be decoded."""
        for index, path in enumerate(self.paths):
            if self.stopped:
                return
            self.received += 1
            try:
                image = self._decode(path)
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

    def _decode(self, path: Path) -> NDArray[np.uint8]:
        name = printable(str(path))
        try:
            image, note = decode_image(read_regular(path, LARGEST_FILE))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise SourceError(f"{name}: {getattr(error, 'strerror', '') or error}") from error
        except SourceError as error:
            raise SourceError(f"{name}: {error}") from error
        if note not in self._noted:
            self._noted.add(note)
            log.warning("%s: %s; said once, others may be alike", name, note)
        return image
