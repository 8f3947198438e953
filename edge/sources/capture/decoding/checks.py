"""Detects unusable frames: black, frozen or half-decoded ones. They are kept from the oracle.

Transport damage is not weather: the oracle would mistake the grey lower half of a cut JPEG for fog.
"""

import numpy as np
from numpy.typing import NDArray

DAMAGED, UNDECODABLE, EMPTY, BLACK, HALF, FROZEN = "damaged", "undecodable", "empty", "black", "half-decoded", "frozen"
REPEATED = "repeated"  # the same answer of a camera that is polled
REASONS = (DAMAGED, UNDECODABLE, EMPTY, BLACK, HALF, FROZEN, REPEATED)
BLACK_LEVEL = 10  # no pixel above it; video codes black as 0 after expansion, with a little ringing
FILL_TOLERANCE = 3
# What decoders leave where nothing was decoded: libjpeg and FFmpeg grey (128), and YUV zeros as BT.601 or BT.709 RGB.
FILLS = np.array([(128, 128, 128), (0, 135, 0), (0, 154, 0), (0, 77, 0)], np.int16)
STRIDE = 8


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


class FreezeDetector:
    """Detects a live source that repeats one image: a driver or camera that hangs, not a quiet scene.

    A sensor is never without noise, so no two of its images are equal. If images are coded one from another (H.264), an
    encoder drops that noise until its next key frame; so an image
    counts as frozen if it stays equal across a key frame and for `patience` seconds.
    """

    def __init__(self, patience: float) -> None:
        self.patience, self._since, self._key_seen = patience, 0.0, False
        self._sample: NDArray[np.uint8] | None = None

    def frozen(self, image: NDArray[np.uint8], at: float, key: bool = True) -> bool:
        """Return whether the image, uint8 (H, W, 3), captured `at` seconds, was the same for longer than `patience`.

        Every eighth pixel of every eighth row is compared. `key`: it was coded on its own, as every JPEG is.
        """
        sample = image[::STRIDE, ::STRIDE]
        if self._sample is None or sample.shape != self._sample.shape or not np.array_equal(sample, self._sample):
            self._sample, self._since, self._key_seen = sample.copy(), at, False
            return False
        self._key_seen = self._key_seen or key
        return self._key_seen and at - self._since > self.patience
