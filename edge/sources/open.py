"""`open_source`: the source that a user means, whether camera, file, folder, glob, URL or test pattern."""

import glob
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from rws.edge.common.redact import hide_password
from rws.edge.sources.arrays import ArraySource
from rws.edge.sources.base import Source
from rws.edge.sources.capture.protocol import CaptureSettings
from rws.edge.sources.capture.source import CapturedSource
from rws.edge.sources.images import IMAGE_SUFFIXES, ImageSource
from rws.edge.sources.test_pattern import PatternSource
from rws.errors import SourceError, UsageError

_READ_HERE = IMAGE_SUFFIXES | {".txt", ".npy"}
_PATTERN = re.compile(r"pattern(?::(\d+)x(\d+)(?:@(\d+(?:\.\d+)?))?)?")


def open_source(
    spec: str | int | os.PathLike[str],
    clock: Callable[[], float] = time.monotonic,
    *,
    latest: bool | None = None,
    retries: int | None = None,
    stall: float = 5.0,
) -> Source:
    """Open the source that a text, index or path names.

    Args:
        spec: a camera index (`0`, `"0"`, `/dev/video0`), a GStreamer pipeline that ends in `appsink`, a video file, an
            image, a folder of images (with its subfolders), a glob (`"shots/*.png"`, `**` included), a `.txt` list of
            image paths (one per line, relative to the list; `#` starts a comment), a `.npy` array, uint8 (N, H, W, 3)
            RGB, a URL (`rtsp://`, `http://`, …), or `pattern` (`pattern:640x480@30`), a moving test image. A folder
            whose name is a number is written `./0`. Images come in natural order: `2.png` before `10.png`.
        clock: stamps the frames that are read in this process.
        latest: whether older frames are dropped for newer ones; None: of cameras and streams, but not of files.
        retries: consecutive reconnect attempts before giving up; None: unlimited.
        stall: seconds without a frame after which a camera or stream counts as lost.

    Raises a `UsageError` for an empty text, a `SourceError` if nothing is found, a folder or list names no image, or a
    file cannot be opened. A camera or stream is opened when the first frame is asked for.
    """
    text = str(spec) if isinstance(spec, int) else os.fspath(spec)
    if not text.strip():
        raise UsageError("the source is empty; expected a camera index, file, folder, glob or URL")
    if pattern := _PATTERN.fullmatch(text):
        width, height, fps = pattern.groups()
        return PatternSource(int(width or 640), int(height or 480), float(fps or 30), clock=clock)
    if settings := _to_capture(text, latest):
        return CapturedSource(settings, retries=retries, stall=stall)
    path = Path(text)
    if path.is_file():
        return _open_file(path, text, clock)
    if path.is_dir():
        return _open_images((item for item in path.rglob("*") if item.is_file()), text, clock)
    if glob.has_magic(text):
        return _open_images(map(Path, glob.glob(text, recursive=True)), text, clock)
    raise SourceError(f"{text}: no such file or folder; expected a camera index, file, folder, glob or URL")


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
    return ImageSource(paths, specs[0] if len(specs) == 1 else f"{specs[0]} and {len(specs) - 1} more")


def quiet_opencv() -> None:
    """Silence what OpenCV prints on stderr; our own errors say it in one line. For programs only."""
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(0)
    else:  # OpenCV 5
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _to_capture(text: str, latest: bool | None) -> CaptureSettings | None:
    path = Path(text)
    if text.isdecimal():
        return CaptureSettings(int(text), "camera", f"camera {text}", latest)
    if "://" in text and " ! " not in text:
        return CaptureSettings(text, "network", hide_password(text), latest)
    if " ! " in text or path.is_char_device():
        return CaptureSettings(text, "camera", "pipeline" if " ! " in text else text, latest)
    if path.is_file() and path.suffix.lower() not in _READ_HERE:
        # Absolute, because FFmpeg reads what stands before a colon as a protocol.
        return CaptureSettings(os.path.abspath(text), "file", text, latest)
    return None


def _open_file(path: Path, name: str, clock: Callable[[], float]) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".txt":
        lines = (line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
        paths = [path.parent / line for line in lines if line and not line.startswith("#")]
        if not paths:
            raise SourceError(f"{name}: lists no file; expected one image path per line")
        return ImageSource(paths, name, clock)
    if suffix == ".npy":
        try:
            images = np.lib.format.open_memmap(path, mode="r")
        except (ValueError, OSError, EOFError) as error:
            raise SourceError(f"{name}: is not a NumPy array file ({error})") from error
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
