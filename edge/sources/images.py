"""Image files as a source."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rws.edge.common.files import read_regular
from rws.edge.sources.base import Source
from rws.edge.sources.capture.decoding.checks import (
    DAMAGED,
    DEFAULT_CHECKS,
    HALF,
    TOO_LARGE,
    UNDECODABLE,
    Checks,
    FlawCheck,
)
from rws.edge.sources.capture.decoding.evidence.encoded import encoded_flaw
from rws.edge.sources.capture.decoding.still import decode_image
from rws.edge.sources.capture.protocol import FILE_PIXELS
from rws.errors import SourceError
from rws.records import Clock, Frame
from rws.text import printable

LARGEST_FILE = 2**29  # bytes

_FOUND = {
    DAMAGED: "is damaged",
    TOO_LARGE: "has more pixels than --max-pixels allows",
    UNDECODABLE: "is not an image that can be decoded",
}

log = logging.getLogger(__name__)


class FlawError(SourceError):
    """An image that cannot be used; `flaw` is the reason, as in `Source.rejections`."""

    def __init__(self, message: str, flaw: str = UNDECODABLE) -> None:
        super().__init__(message)
        self.flaw = flaw


class ImageSource(Source):
    """Image files, one frame each. One that cannot be decoded is counted in `rejections` and named in a warning.

    What is assumed about a file, such as its number of bits, is said once.

    Args:
        checks: the most pixels of an image, and flaws that are none.
        others: files that are not read, by suffix.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        name: str,
        clock: Clock = time.monotonic,
        checks: Checks = DEFAULT_CHECKS,
        others: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.left_out.update(others or {})
        self.name, self.length, self.paths, self._clock = name, len(paths), tuple(paths), clock
        self._noted = {""}
        self._max_pixels = checks.max_pixels or FILE_PIXELS
        # Nothing is guessed from a grey bar: the decoders of images tell if one is cut.
        self._flaws = FlawCheck((*checks.accept, HALF))

    def frames(self) -> Iterator[Frame | None]:
        """Yield the images, in order; a `SourceError` if none of them can be decoded."""
        for index, path in enumerate(self.paths):
            if self.stopped:
                return
            self.received += 1
            try:
                image = self._decode(path)
            except FlawError as error:
                self.rejections[error.flaw] += 1
                if len(self.paths) == 1:
                    raise
                log.warning("rejected %s", error)
                continue
            self.delivered += 1
            yield Frame(index, image, self._clock(), printable(str(path)))
        if self.rejected == len(self.paths):
            raise SourceError(f"{self.name}: none of its {self.rejected} image files can be used")

    def _decode(self, path: Path) -> NDArray[np.uint8]:
        name = printable(str(path))
        try:
            data = read_regular(path, LARGEST_FILE)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise FlawError(f"{name}: {getattr(error, 'strerror', '') or error}") from error
        if flaw := encoded_flaw(data, self._max_pixels, thorough=True):
            raise FlawError(f"{name}: {_FOUND[flaw]}", flaw)
        try:
            image, note = decode_image(data)
        except SourceError as error:
            raise FlawError(f"{name}: {error}") from error
        if flaw := self._flaws.flaw(image):
            raise FlawError(f"{name}: is {flaw}; --accept {flaw} takes it as it is", flaw)
        for remark in (note, self._flaws.remark):
            if remark not in self._noted:
                self._noted.add(remark)
                log.warning("%s: %s; said once, others may be alike", name, remark)
        return image
