"""Looks at encoded images before they become frames: how many pixels they have, and if their data is damaged."""

import io
import zlib

import numpy as np

from rws.edge.sources.capture.decoding.checks import DAMAGED, TOO_LARGE, UNDECODABLE

_JPEG, _JPEG_END, _PNG = b"\xff\xd8\xff", b"\xff\xd9", b"\x89PNG\r\n\x1a\n"
_JP2_SIZE = b"\xff\x4f\xff\x51"  # the marker of the size that a JPEG 2000 decoder obeys, whatever its file says before


def encoded_flaw(data: bytes, max_pixels: int, thorough: bool = False) -> str:
    """Return what is wrong with an encoded image before it is decoded: `too large`, `undecodable`, `damaged`, or "".

    JPEG is checked by libjpeg, and if `thorough` by FFmpeg too, which knows of codes that libjpeg ignores; PNG by its
    checksums. Of other formats, only their decoder can say more.
    """
    import imagesize

    try:
        width, height = imagesize.get(io.BytesIO(data))
    except (ValueError, OSError, ArithmeticError, LookupError):
        return UNDECODABLE
    if (place := data.find(_JP2_SIZE)) >= 0 and not data.startswith(_JPEG):
        size = data[place + 8 : place + 24]
        width, height = (max(found, int.from_bytes(size[n : n + 4], "big")) for found, n in ((width, 0), (height, 4)))
    if width < 1 or height < 1:
        return UNDECODABLE
    if width * height > max_pixels:
        return TOO_LARGE
    if data.startswith(_JPEG) and (jpeg_damage(data) or (thorough and _ffmpeg_refuses(data, max_pixels))):
        return DAMAGED
    return DAMAGED if data.startswith(_PNG) and not _is_whole_png(data) else ""


def jpeg_damage(data: bytes) -> str:
    """Return what libjpeg warns of, or "". A missing end mark and zeros before it are no damage: cameras send such."""
    import simplejpeg

    if _JPEG_END not in data[data.rfind(b"\xff\xda") :]:
        data = data.rstrip(b"\0\r\n") + _JPEG_END
    try:
        # A small grey image: the data are read in full, but little is computed.
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        # What this reader cannot do, such as 12 bits or rare subsampling, is left to others.
        unable = any(word in str(error) for word in ("precision", "conversion", "subsampling"))
        return "" if unable and _opencv_reads(data) else str(error)
    return ""


def _opencv_reads(data: bytes) -> bool:
    import cv2

    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8) is not None
    except cv2.error:
        return False


def _ffmpeg_refuses(data: bytes, max_pixels: int) -> bool:
    import av

    av.logging.set_level(None)
    decoder = av.CodecContext.create("mjpeg", "r")
    # A small image, because only the data are of interest.
    decoder.options = {"err_detect": "explode", "lowres": "3", "max_pixels": str(max_pixels)}
    decoder.thread_type = "NONE"
    try:
        decoder.decode(av.Packet(data))
    except av.error.InvalidDataError:
        return True
    except (av.error.FFmpegError, OSError, ValueError):  # what this decoder cannot do
        return False
    return False


def _is_whole_png(data: bytes) -> bool:
    place, kind = len(_PNG), b""
    while kind != b"IEND" and place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : place + 8]
        if zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        place = end + 4
    return kind == b"IEND"
