"""Records that travel through the whole project. A leaf: it imports nothing of ours."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Clock = Callable[[], float]  # seconds, monotonic
Mix = dict[str, float]  # signature name → strength alpha; {} is the clean model


@dataclass(frozen=True)
class Frame:
    """One image of a source."""

    index: int  # its number in the source, from 0; a rejected frame keeps its number, so a gap shows
    image: NDArray[np.uint8]  # (H, W, 3), RGB
    captured_at: float  # when it was read, in seconds of the source's clock (monotonic, no calendar time)
    name: str  # the file it came from, or the name of the camera, stream or array
    original: NDArray[np.uint8] | None = None  # `image` before it was corrupted on purpose (`rws run --corrupt`)


@dataclass(frozen=True)
class Prediction:
    """A predicted class: its name, its index in the bundle's classes, and its softmax probability, 0…1."""

    label: str
    class_index: int
    confidence: float
