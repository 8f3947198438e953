"""One coded image (JPEG, PNG, TIFF, …) as 8-bit RGB. BGR, OpenCV's colour order, stays inside this function."""

import contextlib
import struct

import numpy as np
from numpy.typing import NDArray

from rws.errors import SourceError

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jfif", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
TWELVE_BITS = "its 16-bit values end at 4095, so they are read as 12-bit ones"
PAGES = "holds several pages, of which the first is read"
_TIFF_ENTRY = 12  # bytes
_MAXIMUM_TAG = 281


def decode_image(data: bytes) -> tuple[NDArray[np.uint8], str]:
    """Return an image, uint8 (H, W, 3) RGB, and what was assumed about it, or "".

    It is turned upright as its EXIF tag says. Transparency is ignored. Values of more than 8 bits are scaled by the
    maximum that the file states, else by 65535, or by 4095 if none is larger; floating point by 1, or 255 if one is
    larger than 1.

    Raises a `SourceError` if it cannot be decoded.
    """
    import cv2

    image, tiff = None, data[:4] in (b"II*\0", b"MM\0*")
    # A TIFF of one channel of floating point cannot be asked for in colour.
    for colour in (cv2.IMREAD_COLOR, cv2.IMREAD_GRAYSCALE) if tiff else (cv2.IMREAD_COLOR,):
        with contextlib.suppress(cv2.error):
            if data and image is None:
                image = cv2.imdecode(np.frombuffer(data, np.uint8), colour | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise SourceError("is not an image that can be decoded")
    pages, stated = _tiff(data) if tiff else (1, _pnm_maximum(data))
    full, note = _full_scale(image, stated)
    if full != 255 or image.dtype != np.uint8:
        image = np.rint(np.clip(image * np.float32(255 / full), 0, 255)).astype(np.uint8)
    rgb = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB)
    return np.asarray(rgb, np.uint8), "; ".join(filter(None, (note, PAGES if pages > 1 else "")))


def _full_scale(image: NDArray[np.generic], stated: int | None) -> tuple[float, str]:
    """Return the value that means white, and what was assumed."""
    largest = float(image.max())
    if image.dtype == np.uint8:
        return min(stated or 255, 255), ""
    if image.dtype == np.uint16:
        # A true 16-bit image that is this dark would be black in 8 bits.
        twelve = stated is None and 0 < largest <= 4095
        return stated or (4095 if twelve else 65535), TWELVE_BITS if twelve else ""
    if image.dtype.kind == "f" and np.isfinite(image).all() and largest <= 255:
        return (1 if largest <= 1 else 255), ""
    raise SourceError(
        f"has {image.dtype} values up to {largest:g}; expected 8 or 16 bits, or floats from 0 to 1 or 255"
    )


def _pnm_maximum(data: bytes) -> int | None:
    """Return the largest value that the header of a PGM or PPM states; OpenCV scales texts of 8 bits itself."""
    if data[:2] not in (b"P2", b"P3", b"P5", b"P6"):
        return None
    fields = b"\n".join(line.partition(b"#")[0] for line in data[:4096].split(b"\n")).split(None, 4)
    maximum = int(fields[3][:9]) if len(fields) > 3 and fields[3].isdigit() else 0
    return maximum if (255 if data[:2] in (b"P2", b"P3") else 0) < maximum < 65536 else None


def _tiff(data: bytes) -> tuple[int, int | None]:
    """Return whether a TIFF has one page or more, and the largest value that its first page states."""
    order = "<" if data[:2] == b"II" else ">"
    maximum = None
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        for entry in range(start + 2, start + 2 + count * _TIFF_ENTRY, _TIFF_ENTRY):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", data, entry)
            if (tag, kind) == (_MAXIMUM_TAG, 3) and value > 255:
                maximum = value
        (following,) = struct.unpack_from(order + "I", data, start + 2 + count * _TIFF_ENTRY)
    except struct.error:
        return 1, None
    return 1 + bool(following), maximum
