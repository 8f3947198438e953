"""From a frame of any size to the model's input."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from rws.errors import InputError


def preprocess(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """Fit a frame to the model: crop the centre to the input's shape, resize, scale to 0…1.

    An image that has the right size already is not resampled: its values are x / 255, exactly. Shrinking averages
    areas, growing interpolates linearly.

    Args:
        image: uint8, shape (H, W, 3), RGB, any size.
        height: the model's input height, pixels.
        width: the model's input width, pixels.

    Returns:
        float32, shape (3, height, width), RGB, range 0…1, contiguous, not normalised.

    Raises:
        InputError: if the image has another dtype, number of channels, or no pixels.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise InputError(f"frame: found {image.dtype} of shape {image.shape}, expected uint8 of shape (H, W, 3), RGB")
    fitted = image if image.shape[:2] == (height, width) else cover(image, height, width)
    x: NDArray[np.float32] = np.ascontiguousarray(fitted.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
    return x


def cover(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Crop the centre to the shape that is wanted, and resize it.

    Args:
        image: uint8, shape (H, W, 3), any colour order.
        height: wanted height, pixels.
        width: wanted width, pixels.

    Returns:
        uint8, shape (height, width, 3).
    """
    scale = max(height / image.shape[0], width / image.shape[1])
    # Cropped first: what is cut off is not computed, and a whole-numbered scale stays whole, which OpenCV does faster.
    rows, columns = (
        max(1, min(round(wanted / scale), found))
        for wanted, found in zip((height, width), image.shape[:2], strict=True)
    )
    top, left = (image.shape[0] - rows) // 2, (image.shape[1] - columns) // 2
    covered: NDArray[np.uint8] = cv2.resize(
        image[top : top + rows, left : left + columns],
        (width, height),
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
    )
    return covered
