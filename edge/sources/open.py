"""`open_source`: the source that a user means, whether camera, file, folder, glob, URL or test pattern."""

import codecs
import glob
import logging
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import cv2

from rws.edge.common.arrays import map_array
from rws.edge.common.files import read_regular
from rws.edge.sources.arrays import ArraySource
from rws.edge.sources.base import Source
from rws.edge.sources.capture.decoding.checks import DEFAULT_CHECKS, Checks
from rws.edge.sources.capture.decoding.still import IMAGE_SUFFIXES
from rws.edge.sources.capture.protocol import (
    DEFAULT_NETWORK,
    FILE_PIXELS,
    STREAM_PIXELS,
    CaptureSettings,
    NetworkOptions,
)
from rws.edge.sources.capture.source import CapturedSource
from rws.edge.sources.folders import CONVERTIBLE, describe, find_images
from rws.edge.sources.images import ImageSource
from rws.edge.sources.test_pattern import PatternSource
from rws.errors import FormatError, SourceError, UsageError
from rws.text import printable, shown_address

_READ_HERE = IMAGE_SUFFIXES | {".txt", ".npy"}
_PATTERN = re.compile(r"pattern(?::(\d{1,9})x(\d{1,9})(?:@(\d{1,9}(?:\.\d{1,9})?))?)?")
_LARGEST_LIST = 2**28  # bytes
LONGEST_NAME = 255  # characters of a source in an error
_CAMERA = re.compile(r"[0-9]{1,9}")
_CREDENTIALS = re.compile(r"[^/]*:.*@", re.DOTALL)  # a URL without its scheme, or with half of it
_DESCRIPTOR = re.compile(r"-|/dev/stdin|/(?:dev|proc/self)/fd/(\d{1,9})")
_NO_CAMERAS = ("/dev/fd/", "/dev/mapper/", "/dev/pts/", "/dev/shm/")
_PLAYABLE = (".avif", ".gif")  # of what should be converted, what FFmpeg reads as a whole
_PIPELINE = re.compile(r"\s!\s")

log = logging.getLogger(__name__)


def open_source(
    spec: str | int | os.PathLike[str],
    clock: Callable[[], float] = time.monotonic,
    *,
    latest: bool | None = None,
    retries: int | None = None,
    stall: float = 5.0,
    label: str = "",
    network: NetworkOptions = DEFAULT_NETWORK,
    checks: Checks = DEFAULT_CHECKS,
) -> Source:
    """Open the source that a text, index or path names.

    Args:
        spec: a camera index (`0`, `"0"`, `/dev/video0`), a GStreamer pipeline that ends in `appsink`, a video file, an
            image, a folder of images (with its subfolders), a glob (`"shots/*.png"`, `**` included), a `.txt` list of
            images, folders and globs (one per line, relative to the list; `#` starts a comment; UTF-8, or UTF-16 with
            a byte order mark), a `.npy` array, uint8 (N, H, W, 3) RGB, a URL (`rtsp://`, `http://`, …; also of a camera
            that gives one image per request), `-` or a named pipe, through which a video comes, or `pattern`
            (`pattern:640x480@30`), a moving test image. A folder whose name is a number is written `./0`. Images come
            in natural order: `2.png` before `10.png`.
        clock: stamps the frames that are read in this process.
        latest: whether older frames are dropped for newer ones; None: of cameras and streams, but not of files.
        retries: consecutive reconnect attempts before giving up; None: unlimited.
        stall: seconds without a frame after which a camera or stream counts as lost.
        label: stands before the name of a camera, stream or video; of an address only scheme and host are shown.
        network: how a stream is asked for.
        checks: the most pixels of an image, and flaws that are accepted.

    Raises a `UsageError` for an empty text or an impossible option, a `SourceError` if nothing is found, a folder or
    list names no image, or a file cannot be opened. A camera or stream is opened when the first frame is asked for.
    """
    text = _meant(str(spec) if isinstance(spec, int) else os.fspath(spec))
    if not text:
        raise UsageError("the source is empty; expected a camera index, file, folder, glob or URL")
    network.check()
    checks.check()
    if pattern := _PATTERN.fullmatch(text):
        width, height, fps = pattern.groups()
        return PatternSource(int(width or 640), int(height or 480), float(fps or 30), clock=clock)
    name = "the source" if _CREDENTIALS.match(text) else printable(text[:LONGEST_NAME])
    try:
        if settings := _to_capture(text):
            named = f"{printable(label)} ({settings.name})" if label else settings.name
            pixels = checks.max_pixels or STREAM_PIXELS
            accept, asked = ",".join(checks.accept), vars(network)
            settings = replace(settings, name=named, latest=latest, max_pixels=pixels, accept=accept, **asked)
            return CapturedSource(settings, retries=retries, stall=stall)
        path = Path(text)
        if path.is_file():
            return _open_file(path, printable(text), clock, checks)
        if path.is_dir() or glob.has_magic(text):
            images, left_out = find_images([text] if path.is_dir() else glob.glob(text, recursive=True))
            return _image_source(images, left_out, printable(text), clock, checks)
    except OSError as error:
        raise SourceError(f"{name}: {error.strerror or error}") from error
    found = "is not a file, folder or camera" if path.exists() else "no such file or folder"
    raise SourceError(f"{name}: {found}; expected a camera index, file, folder, glob or URL")


def is_stream(spec: str) -> bool:
    """Return whether a source is a camera, video, stream or test pattern, and not images."""
    text = _meant(spec)
    with suppress(OSError):  # what cannot be opened is named when it is opened
        return bool(_PATTERN.fullmatch(text)) or _to_capture(text) is not None
    return False


def check_repeatable(specs: Sequence[str]) -> None:
    """Raise a `UsageError` unless all sources are files, which can be read again: no camera, stream or pipe."""
    for text in map(_meant, specs):
        found: CaptureSettings | None = None
        with suppress(OSError):  # what cannot be opened is named when it is opened
            found = _to_capture(text)
        if _PATTERN.fullmatch(text) or (found is not None and found.kind != "file"):
            name = found.name if found else text
            raise UsageError(f"{name}: cannot be repeated; --loop takes video files, images, folders, lists and arrays")


def open_images(specs: Sequence[str], advice: str, checks: Checks = DEFAULT_CHECKS) -> ImageSource:
    """Open images, folders, globs and lists of images as one source, in the order given.

    Raises as `open_source`, and a `UsageError` that ends with `advice` if one of them is anything else.
    """
    paths, left_out = list[Path](), Counter[str]()
    for spec in specs:
        with suppress(OSError):  # `open_source` says it
            if captured := _to_capture(_meant(spec)):  # not opened first: a pipe may wait for its writer
                raise UsageError(f"{captured.name}: is not an image, folder, glob or list of images; {advice}")
        with open_source(spec) as found:
            if not isinstance(found, ImageSource):
                raise UsageError(f"{found.name}: is not an image, folder, glob or list of images; {advice}")
            paths.extend(found.paths)
            left_out += found.left_out
    name = printable(specs[0]) + (f" and {len(specs) - 1} more" if len(specs) > 1 else "")
    return ImageSource(paths, name, checks=checks, others=left_out)


def quiet_opencv() -> None:
    """Silence what OpenCV prints on stderr; our own errors say it in one line. For programs only."""
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(0)
    else:  # OpenCV 5
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _meant(text: str) -> str:
    """Return the one spelling of a source: no spaces around it, no `~`, no `file:`, schemes in lower case."""
    if os.path.lexists(text):
        return text
    text = os.path.expanduser(text.strip())
    scheme, colon, rest = text.partition(":")
    if scheme.lower() == "file" and colon:
        path = unquote(re.sub("^//(localhost)?(?=/)", "", rest), errors="surrogateescape")
        if path.startswith("//"):
            raise UsageError(f"{shown_address(text)}: names a host; give the path alone")
        return path
    if re.fullmatch(r"video\d{1,9}", text) and not os.path.lexists(text):
        return f"/dev/{text}"
    return f"{scheme.lower()}:{rest}" if rest.startswith("//") else text


def _to_capture(text: str) -> CaptureSettings | None:
    path = Path(text)
    if _CAMERA.fullmatch(text):
        return CaptureSettings(int(text), "camera", f"camera {text}")
    if descriptor := _DESCRIPTOR.fullmatch(text):
        number = int(descriptor[1] or 0)
        if os.isatty(number):
            raise UsageError(f"{text}: is a terminal; expected a pipe, as in: cat clip.mp4 | rws run -")
        os.fstat(number)
        return CaptureSettings(number, "pipe", "standard input" if number == 0 else text)
    if _PIPELINE.search(text):
        return CaptureSettings(_native(re.sub(r"[\t\r\n]", " ", text), "pipeline"), "camera", "pipeline")
    if "://" in text:
        return CaptureSettings(_native(text, shown_address(text)), "network", shown_address(text))
    if path.is_char_device() or _is_absent_camera(text):
        return CaptureSettings(_native(text, printable(text)), "camera", printable(text))
    if path.is_fifo():
        return CaptureSettings(os.path.abspath(text), "pipe", printable(text))
    suffix = path.suffix.lower()
    if path.is_file() and CONVERTIBLE.fullmatch(suffix) and suffix not in _PLAYABLE:
        raise SourceError(f"{printable(text)}: {suffix} cannot be read; convert it to JPEG or PNG")
    if path.is_file() and suffix not in _READ_HERE:
        # Absolute, because FFmpeg reads what stands before a colon as a protocol.
        return CaptureSettings(os.path.abspath(text), "file", printable(text))
    return None


def _is_absent_camera(text: str) -> bool:
    """Return whether a path, or the link that it is, leads to a device that is not there yet."""
    try:
        real = os.path.realpath(text)
        return real.startswith("/dev/") and not real.startswith(_NO_CAMERAS) and not os.path.exists(real)
    except ValueError:  # a NUL
        return False


def _native(text: str, name: str) -> str:
    """Return a text that native code may read; OpenCV crashes at one that is not UTF-8 and stops at a NUL."""
    if printable(text) != text:
        raise UsageError(f"{name}: contains a control character or is not UTF-8; percent-encode it")
    return text


def _open_file(path: Path, name: str, clock: Callable[[], float], checks: Checks) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".txt":
        data = read_regular(path, _LARGEST_LIST)
        encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        # A file name need not be UTF-8: what stands for its bytes names the same file.
        text = data.decode(encoding, "surrogateescape" if encoding == "utf-8-sig" else "replace")
        lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
        lines = [_meant(line) for line in lines if line and not line.startswith("#")]
        if any("://" in line for line in lines):
            raise SourceError(f"{name}: lists a URL; a list names image files only, give the URL as the source")
        if not lines:
            raise SourceError(f"{name}: lists no file; expected one image path per line")
        return _image_source(*_listed([path.parent / line for line in lines]), name, clock, checks)
    if suffix == ".npy":
        try:
            images = map_array(path)
        except FormatError as error:
            raise SourceError(str(error)) from error
        if images.ndim == 4 and math.prod(images.shape[1:3]) > (most := checks.max_pixels or FILE_PIXELS):
            raise SourceError(f"{name}: has images of {images.shape[2]} x {images.shape[1]} pixels; {most} are allowed")
        if images.ndim == 4 and not images.size:
            raise SourceError(f"{name}: holds no image (its shape is {images.shape})")
        source = ArraySource(images, name=name, clock=clock)
        source.paths = (path,)
        return source
    return ImageSource([path], name, clock, checks)


def _listed(paths: Sequence[Path]) -> tuple[list[Path], Counter[str]]:
    """Return the files that the lines of a list name, in order, and what was left out of its folders and globs."""
    images, left_out = list[Path](), Counter[str]()
    for path in paths:
        matches = [str(path)] if path.is_dir() else []
        if not path.exists() and {"*", "?"} & set(str(path)):
            matches = glob.glob(str(path), recursive=True)
        found, others = find_images(matches) if matches else ([path], Counter[str]())
        images += found
        left_out += others
    return images, left_out


def _image_source(
    paths: Sequence[Path], others: Counter[str], name: str, clock: Callable[[], float], checks: Checks
) -> ImageSource:
    if not paths:
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        instead = f"; it holds {describe(others)}" if others else ""
        raise SourceError(f"{name}: holds no image file; expected names that end in {endings}{instead}")
    if others:
        log.warning("%s: left out %s", name, describe(others))
    return ImageSource(paths, name, clock, checks, others)
