"""Pictures that carry their own number, so that the drill knows when each was really sent, and what came of it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

BITS, CELL = 24, 16


def stamped(image: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """The picture with `number` as a row of black and white squares at its top left; survives JPEG and H.264.

    Args:
        image: uint8, shape (H, W, 3), at least 32 high and 384 wide.
        number: 0…2²⁴ − 1.
    """
    marked: NDArray[np.uint8] = image.copy()
    bits = np.array([(number >> bit) & 1 for bit in range(BITS)], np.uint8) * 255
    # The second row is the first one's negative: what does not read as such was no stamp.
    squares = np.kron(np.stack([bits, 255 - bits]), np.ones((CELL, CELL), np.uint8))
    marked[: 2 * CELL, : BITS * CELL] = squares[..., None]
    return marked


def read_stamp(image: NDArray[np.uint8]) -> int | None:
    """The number that a picture carries; None if it carries none that can be read."""
    if image.shape[0] < 2 * CELL or image.shape[1] < BITS * CELL:
        return None
    cells = image[: 2 * CELL, : BITS * CELL].mean(axis=2).reshape(2, CELL, BITS, CELL).mean(axis=(1, 3))
    if not (np.abs(cells[0] - cells[1]) > 100).all():
        return None
    return int(sum(1 << bit for bit in range(BITS) if cells[0, bit] > cells[1, bit]))


def scene(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A picture with soft shapes and the grain of a sensor, uint8 (height, width, 3), RGB."""
    rng = np.random.default_rng(seed)
    soft = cv2.resize(rng.integers(40, 216, (6, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    grain = rng.integers(-6, 7, (height, width, 3), np.int16)
    grainy: NDArray[np.uint8] = np.clip(soft.astype(np.int16) + grain, 0, 255).astype(np.uint8)
    return grainy


def encode_jpeg(image: NDArray[np.uint8], quality: int = 90) -> bytes:
    """An RGB picture, uint8 (H, W, 3), as JPEG."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return bytes(encoded)
