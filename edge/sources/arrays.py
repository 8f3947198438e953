"""An array of images as a source."""

import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rws.edge.sources.base import Source
from rws.errors import InputError
from rws.records import Clock, Frame


class ArraySource(Source):
    """The images of an array.

    Args:
        images: uint8, shape (N, H, W, 3), RGB (else an `InputError`); a memory-mapped array is read image by image.
        names: one name per frame (default: `name` for all).
        name: what the source is called.
        sequential: whether neighbouring frames follow one another in time.
        fps: frames per second; None: unknown.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        names: Sequence[str] | None = None,
        *,
        name: str = "array",
        sequential: bool = False,
        fps: float | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            found = f"{images.dtype} of shape {images.shape}"
            raise InputError(f"{name}: found {found}, expected uint8 of shape (N, H, W, 3), RGB")
        if names is not None and len(names) != len(images):
            raise InputError(f"{name}: found {len(names)} names for {len(images)} images, expected one each")
        super().__init__()
        self.name, self.sequential, self.fps, self.length = name, sequential, fps, len(images)
        self._images, self._names, self._clock = images, names, clock

    def frames(self) -> Iterator[Frame | None]:
        """Yield the images, in order."""
        for index, image in enumerate(self._images):
            if self.stopped:
                return
            self.received += 1
            self.delivered += 1
            yield Frame(index, np.asarray(image), self._clock(), self._names[index] if self._names else self.name)
