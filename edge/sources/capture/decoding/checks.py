"""Detects unusable frames: black, frozen or half-decoded ones. They are kept from the oracle.

Transport damage is not weather: the oracle would mistake the grey lower half of a cut JPEG for fog.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rws.errors import UsageError, check_known

DAMAGED, UNDECODABLE, EMPTY, BLACK, HALF, FROZEN = "damaged", "undecodable", "empty", "black", "half-decoded", "frozen"
TOO_LARGE = "too large"
REPEATED = "repeated"  # the same answer of a camera that is polled
REASONS = (DAMAGED, UNDECODABLE, EMPTY, BLACK, HALF, FROZEN, REPEATED, TOO_LARGE)
UNREAD = "unread"  # damage that only shows in what a decoder did not read; such a frame counts as damaged
HEURISTICS = (BLACK, HALF, FROZEN, UNREAD)  # what is only guessed
PATIENCE = 10  # images, all with one flaw, after which that is how the source looks
BLACK_LEVEL = 10  # no pixel above it; video codes black as 0 after expansion, with a little ringing
FILL_TOLERANCE = 3
# What decoders leave where nothing was decoded: libjpeg and FFmpeg grey (128), and YUV zeros as BT.601 or BT.709 RGB.
FILLS = np.array([(128, 128, 128), (0, 135, 0), (0, 154, 0), (0, 77, 0)], np.int16)
STRIDE = 8


@dataclass(frozen=True)
class Checks:
    """What the user says of a source's images.

    Args:
        max_pixels: most pixels of an image, which is looked up before it is decoded; None: 64 million of an image file,
            34 million of a camera, video or stream.
        accept: flaws that are none, of `HEURISTICS`.
    """

    max_pixels: int | None = None
    accept: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise a `UsageError` if a value is impossible."""
        check_known("flaw", self.accept, HEURISTICS)
        if self.max_pixels is not None and self.max_pixels < 1:
            raise UsageError(f"the most pixels are {self.max_pixels}; expected 1 or more")


DEFAULT_CHECKS = Checks()


def image_flaw(image: NDArray[np.uint8]) -> str:
    """Return what is wrong with a single image, uint8 (H, W, 3) RGB, or "".

    It is `empty`, `black` (no value above 10), or `half-decoded`: only the lowest eighth is one flat decoder's fill.
    """
    if image.size == 0:
        return EMPTY
    if image[::STRIDE, ::STRIDE].max() <= BLACK_LEVEL and image.max() <= BLACK_LEVEL:
        return BLACK
    lowest = image[-max(1, len(image) // 8) :]
    colour = lowest[-1, 0].astype(np.int16)
    if (np.abs(FILLS - colour).max(axis=1) <= FILL_TOLERANCE).any():
        flat = np.abs(lowest.astype(np.int16) - colour).max() <= FILL_TOLERANCE
        if flat and np.abs(image[: len(image) // 8 + 1].astype(np.int16) - colour).max() > FILL_TOLERANCE:
            return HALF
    return ""


class FlawCheck:
    """Applies `image_flaw` to the images of a source, in order.

    A guess gives way if more than ten images came and all of them had that flaw: so the source looks.

    Args:
        accept: flaws that are none.
    """

    def __init__(self, accept: Collection[str] = ()) -> None:
        self.remark = ""  # for people, once a guess has given way
        self._accept, self._total, self._counts = accept, 0, Counter[str]()

    def flaw(self, image: NDArray[np.uint8]) -> str:
        """Return what is wrong with the next image, uint8 (H, W, 3) RGB, or ""."""
        flaw = image_flaw(image)
        self._total += 1
        self._counts[flaw] += 1
        if flaw in HEURISTICS and self._counts[flaw] == self._total > PATIENCE and flaw not in self._accept:
            self.remark = f"every frame looks {flaw}, so that is accepted from frame {PATIENCE + 1} on"
            return ""
        return "" if flaw in self._accept else flaw


class FreezeDetector:
    """Detects a live source that repeats one image: a driver or camera that hangs, not a quiet scene.

    A sensor is never without noise, so no two of its images are equal. If images are coded one from another (H.264), an
    encoder drops that noise until its next key frame; so an image
    counts as frozen if it stays equal across a key frame and for `patience` seconds.

    If no image was ever another, and reopening the source does not help, it shows a still image, and none is frozen.
    """

    def __init__(self, patience: float) -> None:
        self.patience, self._since, self._key_seen = patience, 0.0, False
        self._sample: NDArray[np.uint8] | None = None
        self._moved = self._was_frozen = self._still = False

    def reopened(self) -> None:
        """Note that the source was reopened."""
        self._still = self._was_frozen and not self._moved

    def frozen(self, image: NDArray[np.uint8], at: float, key: bool = True) -> bool:
        """Return whether the image, uint8 (H, W, 3), captured `at` seconds, was the same for longer than `patience`.

        Every eighth pixel of every eighth row is compared. `key`: it was coded on its own, as every JPEG is.
        """
        sample = image[::STRIDE, ::STRIDE]
        if self._sample is None or sample.shape != self._sample.shape or not np.array_equal(sample, self._sample):
            self._moved, self._still = self._sample is not None, False
            self._sample, self._since, self._key_seen = sample.copy(), at, False
            return False
        self._key_seen = self._key_seen or key
        self._was_frozen = self._key_seen and at - self._since > self.patience
        return self._was_frozen and not self._still
