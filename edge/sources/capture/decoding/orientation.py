"""Turns video frames upright: phones store them on their side, with a display matrix."""

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av import VideoFrame

_MATRIX = "DISPLAYMATRIX"


def upright(image: NDArray[np.uint8], frame: "VideoFrame") -> NDArray[np.uint8]:
    """Return pixels (H, W, 3) as the display matrix of their frame says: mirrored, and turned to the nearest 90°."""
    from av.sidedata.sidedata import SideDataContainer

    # `frame.side_data` would make frame and container refer to each other: a hundred frames would wait for the garbage
    # collector, which counts objects and not their megabytes.
    data: Any = SideDataContainer(frame).get(_MATRIX)  # type: ignore[call-arg]  # its stub has no constructor
    if data is None:
        return image
    # Row vectors, 16.16 fixed point: x' = a·x + c·y, y' = b·x + d·y.
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data)[:36])
    turned = abs(b) + abs(c) > abs(a) + abs(d)
    if turned:
        image = image.transpose(1, 0, 2)
    along, across = (c, b) if turned else (a, d)
    return image[:: -1 if across < 0 else 1, :: -1 if along < 0 else 1]
