"""`open_source`: the source that a user means, whether camera, file, folder, glob, URL or test pattern."""

import codecs
import glob
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2

from rws.edge.common.arrays import map_array
from rws.edge.common.files import read_regular
from rws.edge.sources.arrays import ArraySource
from rws.edge.sources.base import Source
from rws.edge.sources.capture.protocol import CaptureSettings
from rws.edge.sources.capture.source import CapturedSource
from rws.edge.sources.images import IMAGE_SUFFIXES, ImageSource
from rws.edge.sources.test_pattern import PatternSource
from rws.errors import FormatError, SourceError, UsageError
from rws.text import printable, shown_address

_READ_HERE = IMAGE_SUFFIXES | {".txt", ".npy"}
_PATTERN = re.compile(r"pattern(?::(\d{1,9})x(\d{1,9})(?:@(\d{1,9}(?:\.\d{1,9})?))?)?")
_LARGEST_LIST = 2**28  # bytes
LONGEST_NAME = 255  # characters of a source in an error
_CAMERA = re.compile(r"[0-9]{1,9}")
_CREDENTIALS = re.compile(r"[^/]*:.*@", re.DOTALL)  # a URL without its scheme, or with half of it


def open_source(
    spec: str | int | os.PathLike[str],
    clock: Callable[[], float] = time.monotonic,
    *,
    latest: bool | None = None,
    retries: int | None = None,
    stall: float = 5.0,
    label: str = "",
) -> Source:
    """Open the source that a text, index or path names.

    Args:
        spec: a camera index (`0`, `"0"`, `/dev/video0`), a GStreamer pipeline that ends in `appsink`, a video file, an
            image, a folder of images (with its subfolders), a glob (`"shots/*.png"`, `**` included), a `.txt` list of
            image paths (one per line, relative to the list; `#` starts a comment; UTF-8, or UTF-16 with a byte order
            mark), a `.npy` array, uint8 (N, H, W, 3) RGB, a URL (`rtsp://`, `http://`, …), or `pattern`
            (`pattern:640x480@30`), a moving test image. A folder whose name is a number is written `./0`. Images come
            in natural order: `2.png` before `10.png`.
        clock: stamps the frames that are read in this process.
        latest: whether older frames are dropped for newer ones; None: of cameras and streams, but not of files.
        retries: consecutive reconnect attempts before giving up; None: unlimited.
        stall: seconds without a frame after which a camera or stream counts as lost.
        label: stands before the name of a camera, stream or video; of an address only scheme and host are shown.

    Raises a `UsageError` for an empty text, a `SourceError` if nothing is found, a folder or list names no image, or a
    file cannot be opened. A camera or stream is opened when the first frame is asked for.
    """
    text = str(spec) if isinstance(spec, int) else os.fspath(spec)
    if not text.strip():
        raise UsageError("the source is empty; expected a camera index, file, folder, glob or URL")
    if pattern := _PATTERN.fullmatch(text):
        width, height, fps = pattern.groups()
        return PatternSource(int(width or 640), int(height or 480), float(fps or 30), clock=clock)
    name = "the source" if _CREDENTIALS.match(text) else printable(text[:LONGEST_NAME])
    try:
        if settings := _to_capture(text, latest):
            named = replace(settings, name=f"{printable(label)} ({settings.name})") if label else settings
            return CapturedSource(named, retries=retries, stall=stall)
        path = Path(text)
        if path.is_file():
            return _open_file(path, printable(text), clock)
        if path.is_dir():
            return _open_images((item for item in path.rglob("*") if item.is_file()), printable(text), clock)
        if glob.has_magic(text):
            return _open_images(map(Path, glob.glob(text, recursive=True)), printable(text), clock)
    except OSError as error:
        raise SourceError(f"{name}: {error.strerror or error}") from error
    raise SourceError(f"{name}: no such file or folder; expected a camera index, file, folder, glob or URL")


def open_images(specs: Sequence[str], advice: str) -> ImageSource:
    """Open images, folders, globs and lists of images as one source, in the order given.

    Raises as `open_source`, and a `UsageError` that ends with `advice` if one of them is anything else.
    """
    paths: list[Path] = []
    for spec in specs:
        with open_source(spec) as found:
            if not isinstance(found, ImageSource):
                raise UsageError(f"{found.name}: is not an image, folder, glob or list of images; {advice}")
            paths.extend(found.paths)
    return ImageSource(paths, printable(specs[0]) + (f" and {len(specs) - 1} more" if len(specs) > 1 else ""))


def quiet_opencv() -> None:
    """Silence what OpenCV prints on stderr; our own errors say it in one line. For programs only."""
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(0)
    else:  # OpenCV 5
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _to_capture(text: str, latest: bool | None) -> CaptureSettings | None:
    path = Path(text)
    if _CAMERA.fullmatch(text):
        return CaptureSettings(int(text), "camera", f"camera {text}", latest)
    if "://" in text and " ! " not in text:
        return CaptureSettings(_native(text, shown_address(text)), "network", shown_address(text), latest)
    if " ! " in text:
        return CaptureSettings(_native(re.sub(r"[\t\r\n]", " ", text), "pipeline"), "camera", "pipeline", latest)
    if path.is_char_device():
        return CaptureSettings(_native(text, printable(text)), "camera", printable(text), latest)
    if path.is_file() and path.suffix.lower() not in _READ_HERE:
        # Absolute, because FFmpeg reads what stands before a colon as a protocol.
        return CaptureSettings(os.path.abspath(text), "file", printable(text), latest)
    return None


def _native(text: str, name: str) -> str:
    """Return a text that native code may read; OpenCV crashes at one that is not UTF-8 and stops at a NUL."""
    if printable(text) != text:
        raise UsageError(f"{name}: contains a control character or is not UTF-8; percent-encode it")
    return text


def _open_file(path: Path, name: str, clock: Callable[[], float]) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".txt":
        data = read_regular(path, _LARGEST_LIST)
        encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        # A file name need not be UTF-8: what stands for its bytes names the same file.
        text = data.decode(encoding, "surrogateescape" if encoding == "utf-8-sig" else "replace")
        lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
        paths = [path.parent / line for line in lines if line and not line.startswith("#")]
        if any("://" in line for line in lines if not line.startswith("#")):
            raise SourceError(f"{name}: lists a URL; a list names image files only, give the URL as the source")
        if not paths:
            raise SourceError(f"{name}: lists no file; expected one image path per line")
        return ImageSource(paths, name, clock)
    if suffix == ".npy":
        try:
            images = map_array(path)
        except FormatError as error:
            raise SourceError(str(error)) from error
        return ArraySource(images, name=name, clock=clock)
    return ImageSource([path], name, clock)


def _open_images(candidates: Iterable[Path], name: str, clock: Callable[[], float]) -> ImageSource:
    def natural(path: Path) -> list[tuple[int, int, str]]:
        # Text and numbers are never compared with each other: the first field of each part tells them apart.
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", str(path))]

    paths = sorted((path for path in candidates if path.suffix.lower() in IMAGE_SUFFIXES), key=natural)
    if not paths:
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        raise SourceError(f"{name}: holds no image file; expected names that end in {endings}")
    return ImageSource(paths, name, clock)
