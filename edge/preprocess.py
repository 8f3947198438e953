"""From a frame of any size to the model's input."""

import os
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from rws.errors import InputError

Colour = Literal["rgb", "bgr"]  # the order of an image's channels; OpenCV reads and writes BGR


def to_rgb(image: NDArray[np.uint8], colour: Colour) -> NDArray[np.uint8]:
    """Return an image from outside, uint8 (H, W, 3), in RGB, itself if it is so already; all else: `InputError`."""
    if colour not in ("rgb", "bgr"):
        raise InputError(f'colour is {colour!r}, expected "rgb" or "bgr"; images that OpenCV reads are "bgr"')
    check_image(image)
    return image if colour == "rgb" else np.ascontiguousarray(image[:, :, ::-1])


def check_image(image: object) -> None:
    """Refuse anything but an image, uint8 of shape (H, W, 3), with an `InputError` that says what to do."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size and image.shape[2:] == (3,):
        return
    found, advice = type(image).__name__, "give a NumPy array"
    if image is None:
        found, advice = "None", "OpenCV gives None for a file or frame that it cannot read: check what was read"
    elif isinstance(image, (str, os.PathLike)):
        found, advice = f"the name {os.fspath(image)!r}", "read the image first, or give the name to `Runtime.stream`"
    elif isinstance(image, (list, tuple)):
        advice = "give one image, as np.asarray(image, np.uint8)"
    elif isinstance(image, np.ndarray):
        found = f"{image.dtype} of shape {image.shape}"
        if image.size == 0:
            advice = "it has no pixels: check the crop"
        elif image.dtype != np.uint8:
            advice = "scale its values to 0…255 and convert it with .astype(np.uint8)"
        elif image.ndim == 2 or image.shape[-1:] == (1,):
            advice = "it is grey: cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) gives three channels"
        elif image.ndim == 3 and image.shape[2] == 4:
            advice = "it has a fourth channel: image[:, :, :3] leaves it out"
        else:
            advice = "give one image with the channels last"
    raise InputError(f"image: found {found}, expected uint8 of shape (H, W, 3); {advice}")


def preprocess(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """Fit a frame to the model: crop the centre to the input's shape, resize, scale to 0…1.

    An image that has the right size already is not resampled: its values are x / 255, exactly. Shrinking averages
    areas, growing interpolates linearly.

    Args:
        image: uint8, shape (H, W, 3), RGB, any size; an `InputError` if it is something else.
        height, width: size of the model's input, pixels.

    Returns float32, shape (3, height, width), RGB, range 0…1, contiguous, not normalised.
    """
    check_image(image)
    fitted = image if image.shape[:2] == (height, width) else cover(image, height, width)
    x: NDArray[np.float32] = np.ascontiguousarray(fitted.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
    return x


def cover(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Crop the centre of an image, uint8 (H, W, 3), any colour order, to the wanted shape, and resize it."""
    scale = max(height / image.shape[0], width / image.shape[1])
    # Cropped first: what is cut off is not computed, and a whole-numbered scale stays whole, which OpenCV does faster.
    rows, columns = (
        max(1, min(round(wanted / scale), found))
        for wanted, found in zip((height, width), image.shape[:2], strict=True)
    )
    top, left = (image.shape[0] - rows) // 2, (image.shape[1] - columns) // 2
    cropped, method = image[top : top + rows, left : left + columns], cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(cropped, (width, height), interpolation=method), np.uint8)
