"""Clean photographs of several sources, at their own sizes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import cv2
import numpy as np
from numpy.typing import NDArray

from rws.edge.sources.open import open_source
from rws.errors import InputError

Image = NDArray[np.uint8]
SMALLEST, LARGEST = 64, 1400  # pixels, of a photograph's shorter side


@dataclass(frozen=True)
class Photographs:
    """Clean photographs by source, each uint8 (H, W, 3), RGB; a source weighs as the root of their number."""

    by_source: Mapping[str, Sequence[Image]]

    @classmethod
    def load(cls, sources: Sequence[str], *, every: int = 1, limit: int = 10_000) -> "Photographs":
        """Read folders, files or videos, each a source; a photograph's shorter side is shrunk to `LARGEST` pixels.

        `every`: of a video, only every n-th frame; `limit`: of a source.
        Raises InputError if a source holds none of 64 pixels or more, SourceError if it cannot be read.
        """
        found: dict[str, list[Image]] = {}
        for name in sources:
            with open_source(name, latest=False) as opened:
                step = every if opened.sequential else 1
                images = (frame.image for frame in islice(opened, 0, limit * step, step))
                found[name] = [_at_most(image, LARGEST) for image in images if min(image.shape[:2]) >= SMALLEST]
            if not found[name]:
                raise InputError(f"{name}: holds no photograph of {SMALLEST} pixels or more")
        return cls(found)

    def split(self, share: float) -> tuple["Photographs", "Photographs"]:
        """Return the photographs to train on, and those held out, of each source the same share, at least one."""
        kept: dict[str, Sequence[Image]] = {}
        held_out: dict[str, Sequence[Image]] = {}
        for name, images in self.by_source.items():
            order = np.random.default_rng(0).permutation(len(images))
            count = max(1, round(share * len(images)))
            held_out[name] = [images[place] for place in order[:count]]
            kept[name] = [images[place] for place in order[count:]] or held_out[name]
        return Photographs(kept), Photographs(held_out)

    def draw(self, rng: np.random.Generator) -> Image:
        """Draw a source, and one of its photographs."""
        weights = np.sqrt([len(images) for images in self.by_source.values()])
        images = list(self.by_source.values())[rng.choice(len(weights), p=weights / weights.sum())]
        return images[int(rng.integers(len(images)))]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all photographs in their order, by source."""
        found = hashlib.sha256()
        for images in self.by_source.values():
            found.update(repr([image.shape for image in images]).encode())
            for image in images:
                found.update(image.tobytes())
        return found.hexdigest()


def _at_most(image: Image, largest: int) -> Image:
    scale = largest / min(image.shape[:2])
    if scale >= 1:
        return image
    return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
