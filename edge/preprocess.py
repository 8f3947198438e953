"""From a frame of any size to the model's input, and from the input's pixels back to the frame's."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as schema

from rws.edge.common.schema import STRICT, Whole
from rws.errors import InputError

Colour = Literal["rgb", "bgr"]  # the order of an image's channels; OpenCV reads and writes BGR
Side = Annotated[int, Field(gt=0, le=4096)]
Fit = Literal["crop", "stretch", "letterbox"]
PADDING = 114  # grey around an image that was letterboxed

_COLOURS: Mapping[str, Callable[[NDArray[np.uint8]], Any]] = {
    "RGB": lambda image: image,
    "BGR": lambda image: image[:, :, ::-1],
    "GREY": lambda image: cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None],
    "RGBA": lambda image: cv2.cvtColor(image, cv2.COLOR_RGB2RGBA),
}


@schema(frozen=True, config=STRICT)
class InputSpec:
    """What a model takes: its size in pixels, channels (alpha is opaque), layout, dtype, and values from 0 to `high`.

    `fit` says how a frame of another shape becomes one of this size: `crop` cuts its centre out, `stretch` changes its
    proportions, `letterbox` keeps all of it and adds grey at two sides. A uint8 input has values to 255.
    """

    height: Side
    width: Side
    colour: Literal["RGB", "BGR", "GREY", "RGBA"]
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    high: Annotated[Literal[1, 255], Whole] = 1
    fit: Fit = "crop"

    @model_validator(mode="after")
    def _check_range(self) -> "InputSpec":
        if self.dtype == "uint8" and self.high == 1:
            raise ValueError("a uint8 input with high 255")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image, as the model takes it, without the batch axis."""
        channels = {"GREY": 1, "RGBA": 4}.get(self.colour, 3)
        size = (self.height, self.width)
        return (channels, *size) if self.layout == "NCHW" else (*size, channels)

    @property
    def view(self) -> "InputSpec":
        """What an oracle takes of the same size: float32, NCHW, RGB, 0…1, cropped."""
        return InputSpec(self.height, self.width, "RGB")

    def take(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the input that a frame gives; see `preprocess`."""
        return preprocess(image, self)[0]


@schema(frozen=True, config=STRICT)
class TileView:
    """What an oracle of whole camera frames sees: the frame, shrunk to a tile, and `grid` x `grid` tiles cut out of it.

    Tiles have the frame's own pixels: most corruptions show in the finest structure, which shrinking averages away. Of
    frames whose shorter side is twice `nominal` or more, a tile's pixels are means of 2 x 2 of theirs, and so on: such
    frames are soft at their own resolution without a fault.
    """

    tile: Annotated[int, Field(ge=16, le=256)] = 48
    grid: Annotated[int, Field(ge=1, le=16)] = 3
    nominal: Side = 480

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Tiles, channels, height and width; the first tile is the whole frame."""
        return 1 + self.grid**2, 3, self.tile, self.tile

    @property
    def dtype(self) -> Literal["uint8"]:
        """Of the tiles."""
        return "uint8"

    def take(self, image: NDArray[np.uint8], places: NDArray[np.floating[Any]] | None = None) -> NDArray[np.uint8]:
        """Return the tiles of a frame, uint8 of `shape`, RGB; a frame smaller than a tile is enlarged.

        Args:
            image: uint8, shape (H, W, 3), RGB, any size; an `InputError` if it is something else.
            places: down and across, 0…1, (grid, grid, 2): where the tiles lie in their cells; None: in the middle.
        """
        check_image(image)
        side = self.tile
        if (shortest := min(image.shape[:2])) < side:
            height, width = (max(side, round(length * side / shortest)) for length in image.shape[:2])
            image = _resize(image, height, width)
        height, width = image.shape[:2]
        # Few of its pixels are read: the whole frame says what is large, such as how bright it is, and costs little so.
        read = cv2.resize(image, (2 * side, 2 * side), interpolation=cv2.INTER_NEAREST)
        found = np.empty((self.shape[0], side, side, 3), np.uint8)
        found[0] = cv2.resize(read, (side, side), interpolation=cv2.INTER_AREA)
        scale = max(1, min(height, width) // self.nominal)
        for number, (row, column) in enumerate(product(range(self.grid), repeat=2), 1):
            down, across = (0.5, 0.5) if places is None else places[row, column]
            top = _within((row + down) * height / self.grid, scale * side, height)
            left = _within((column + across) * width / self.grid, scale * side, width)
            cut = image[top : top + scale * side, left : left + scale * side]
            found[number] = cut if scale == 1 else _resize(cut, side, side)
        return np.ascontiguousarray(found.transpose(0, 3, 1, 2))


View = InputSpec | TileView  # what an oracle sees of a frame


@dataclass(frozen=True)
class Placement:
    """Where a frame lies in the model's input: x there is x · `scale_x` + `left`, y there is y · `scale_y` + `top`."""

    frame_size: tuple[int, int]  # height, width, pixels
    input_size: tuple[int, int]
    scale_x: float
    scale_y: float
    left: float
    top: float

    @property
    def seen(self) -> tuple[int, int, int, int] | None:
        """The part of the frame that the model sees: left, top, right, bottom, in its pixels; None if it is all."""
        (height, width), (rows, columns) = self.frame_size, self.input_size
        left, right = (round((x - self.left) / self.scale_x) for x in (0, columns))
        top, bottom = (round((y - self.top) / self.scale_y) for y in (0, rows))
        box = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        return None if box == (0, 0, width, height) else box

    def to_frame(self, boxes: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Return boxes (N, 4), x0 y0 x1 y1 in pixels of the input, in pixels of the frame: float32, within it."""
        shift, scale = (self.left, self.top) * 2, (self.scale_x, self.scale_y) * 2
        height, width = self.frame_size
        placed = (boxes.astype(np.float64) - shift) / scale
        return np.asarray(placed.clip(0, (width, height, width, height)), np.float32)


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


def preprocess(image: NDArray[np.uint8], spec: InputSpec) -> tuple[NDArray[Any], Placement]:
    """Fit a frame to the model: its size, channels, layout, dtype and range; return also how it was fitted.

    An image that has the right size already is not resampled: its values are x / 255, exactly, for a range to 1.
    Shrinking averages areas, growing interpolates linearly.

    Args:
        image: uint8, shape (H, W, 3), RGB, any size; an `InputError` if it is something else.

    Returns an array of `spec.shape` and `spec.dtype`, contiguous, not normalised.
    """
    check_image(image)
    fitted, placement = _fit(image, spec)
    x: NDArray[Any] = _COLOURS[spec.colour](fitted)
    x = np.ascontiguousarray(x.transpose(2, 0, 1) if spec.layout == "NCHW" else x)
    if spec.dtype != "uint8":
        x = x.astype(np.float32)
        x = (x if spec.high == 255 else x / np.float32(255)).astype(spec.dtype, copy=False)
    return x, placement


def _fit(image: NDArray[np.uint8], spec: InputSpec) -> tuple[NDArray[np.uint8], Placement]:
    height, width = image.shape[:2]
    sizes = (height, width), (spec.height, spec.width)
    if sizes[0] == sizes[1]:
        return image, Placement(*sizes, 1.0, 1.0, 0.0, 0.0)
    if spec.fit == "crop":
        top, left, rows, columns = _centre(height, width, spec.height, spec.width)
        scale_y, scale_x = spec.height / rows, spec.width / columns
        placement = Placement(*sizes, scale_x, scale_y, -left * scale_x, -top * scale_y)
        return _resize(image[top : top + rows, left : left + columns], spec.height, spec.width), placement
    rows, columns = spec.height, spec.width
    if spec.fit == "letterbox":
        scale = min(rows / height, columns / width)
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    # A border of an odd number of pixels has the smaller half on the left and at the top.
    top, left = (spec.height - rows) // 2, (spec.width - columns) // 2
    fitted = np.full((spec.height, spec.width, 3), PADDING, np.uint8)
    fitted[top : top + rows, left : left + columns] = _resize(image, rows, columns)
    return fitted, Placement(*sizes, columns / width, rows / height, float(left), float(top))


def _within(middle: float, length: int, side: int) -> int:
    return min(max(int(middle - length / 2), 0), side - length)


def cover(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Crop the centre of an image, uint8 (H, W, 3), any colour order, to the wanted shape, and resize it."""
    # Cropped first: what is cut off is not computed, and a whole-numbered scale stays whole, which OpenCV does faster.
    top, left, rows, columns = _centre(image.shape[0], image.shape[1], height, width)
    return _resize(image[top : top + rows, left : left + columns], height, width)


def _centre(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int, int, int]:
    """Return top, left, rows and columns of the part of an image that has the wanted proportions."""
    scale = max(to_height / height, to_width / width)
    rows, columns = max(1, min(round(to_height / scale), height)), max(1, min(round(to_width / scale), width))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    shrinks = height < image.shape[0] or width < image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)
