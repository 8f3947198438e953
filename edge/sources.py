"""Frame sources: cameras, video files, network streams, images and arrays, all read as RGB frames in order.

A source yields what it was given and nothing else: an image that cannot be decoded is counted in `rejected` and
named in a warning, never replaced by another picture. BGR, OpenCV's colour order, does not leave this module.
"""

from __future__ import annotations

import glob
import logging
import math
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import InputError, SourceError

if TYPE_CHECKING:
    from typing_extensions import Self

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Args:
        index: its number in the source, from 0; a rejected frame keeps its number, so a gap shows.
        image: uint8, shape (H, W, 3), RGB.
        captured_at: when it was read, in seconds of the source's clock (monotonic, no calendar time).
        name: the file it came from, or the name of the camera, stream or array.
    """

    index: int
    image: NDArray[np.uint8]
    captured_at: float
    name: str


class Source(ABC):
    """Frames in order, read once: `for frame in source`. A context manager that lets go of its device or file.

    Attributes:
        name: what a person calls it; a password in a URL is left out.
        live: frames come at their own pace and are lost if nobody reads them.
        sequential: neighbouring frames follow one another in time, so a temporal filter makes sense.
        length: number of frames where it is known in advance (a video's header may be wrong), else None.
        fps: frames a second as declared, else None.
        dropped: frames that came and were skipped so far.
        rejected: frames that could not be decoded so far.
    """

    name: str
    live: bool = False
    sequential: bool = False
    length: int | None = None
    fps: float | None = None
    dropped: int = 0
    rejected: int = 0

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames that are left.

        Raises:
            SourceError: if a live source is lost, or nothing at all could be decoded.
        """

    def close(self) -> None:  # noqa: B027 - most sources hold nothing open
        """Let go of the device or file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ImageSource(Source):
    """Image files, one frame each.

    Args:
        paths: the files, in order.
        name: what they are called together, for messages.
        clock: seconds, monotonic.
    """

    def __init__(self, paths: Sequence[Path], name: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self.name = name
        self.length = len(paths)
        self.paths = tuple(paths)
        self._clock = clock

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self.paths):
            try:
                image = _decode(path)
            except SourceError as error:
                self.rejected += 1
                if len(self.paths) == 1:
                    raise
                log.warning("rejected %s", error)
                continue
            yield Frame(index, image, self._clock(), str(path))
        if self.rejected == len(self.paths):
            raise SourceError(f"{self.name}: none of its {self.rejected} image files could be decoded")


class ArraySource(Source):
    """Images that are in memory already.

    Args:
        images: uint8, shape (N, H, W, 3), RGB; a memory-mapped array is read image by image.
        names: one name a frame (default: `name` for all).
        name: what they are called together.
        sequential: whether they follow one another in time.
        fps: the rate at which they were taken, if any.
        clock: seconds, monotonic.

    Raises:
        InputError: if `images` has another shape or dtype, or `names` another length.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        names: Sequence[str] | None = None,
        *,
        name: str = "array",
        sequential: bool = False,
        fps: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise InputError(
                f"{name}: found {images.dtype} of shape {images.shape}, expected uint8 of shape (N, H, W, 3), RGB"
            )
        if names is not None and len(names) != len(images):
            raise InputError(f"{name}: found {len(names)} names for {len(images)} images, expected one each")
        self.name = name
        self.sequential = sequential
        self.fps = fps
        self.length = len(images)
        self._images = images
        self._names = names
        self._clock = clock

    def __iter__(self) -> Iterator[Frame]:
        for index, image in enumerate(self._images):
            yield Frame(index, np.asarray(image), self._clock(), self._names[index] if self._names else self.name)


class VideoSource(Source):
    """A camera, a video file or a network stream, read through OpenCV.

    A file ends; a live source does not, so its end is an error. Every frame of a file is read.

    Args:
        target: camera index, or the path or URL that OpenCV opens.
        name: what to call it (default: the target).
        live: whether frames come at their own pace (cameras, RTSP).
        clock: seconds, monotonic.

    Raises:
        SourceError: if it cannot be opened as a video.
    """

    sequential = True

    def __init__(
        self,
        target: int | str,
        name: str | None = None,
        *,
        live: bool,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = str(target) if name is None else name
        self.live = live
        self._clock = clock
        self._capture = cv2.VideoCapture(target)
        if not self._capture.isOpened():
            raise SourceError(
                f"{self.name}: cannot be opened; check that it is connected and that no other program uses it"
                if live
                else f"{self.name}: is not a video that OpenCV can read; expected for example .mp4, .avi or .mkv"
            )
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and fps > 0 else None
        length = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.length = int(length) if not live and length > 0 else None

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while self._capture.grab():
            captured_at = self._clock()
            decoded, image = self._capture.retrieve()
            if decoded:
                yield Frame(index, cv2.cvtColor(image, cv2.COLOR_BGR2RGB), captured_at, self.name)
            else:
                self.rejected += 1
                log.warning("rejected frame %d of %s: it cannot be decoded", index, self.name)
            index += 1
        if self.live:
            raise SourceError(f"{self.name}: lost after {index} frames; check the connection and start again")
        if index == self.rejected:
            raise SourceError(f"{self.name}: holds no frame that can be decoded")
        if self.length is not None and index < self.length:
            log.warning("%s ended after %d frames; its header declares %d", self.name, index, self.length)

    def close(self) -> None:
        """Let go of the camera, file or connection."""
        self._capture.release()


def open_source(spec: str | int | os.PathLike[str], clock: Callable[[], float] = time.perf_counter) -> Source:
    """Open whatever a user calls a source.

    Args:
        spec: a camera index (`0`, `"0"`, `/dev/video0`), a video file, an image, a folder of images (with its
            subfolders), a glob (`"shots/*.png"`, `**` included), a `.txt` list of image paths (one a line,
            relative to the list; `#` starts a comment), a `.npy` array, uint8 (N, H, W, 3) RGB, or a URL
            (`rtsp://`, `http://`, …). A folder whose name is a number is written `./0`. Images come in natural
            order: `2.png` before `10.png`.
        clock: seconds, monotonic; stamps the frames.

    Raises:
        SourceError: if nothing is there, a folder or list names no image, or a video cannot be opened.
        InputError: if an array has another shape or dtype.

    Example:
        >>> with open_source("video.mp4") as source:  # doctest: +SKIP
        ...     for frame in source:
        ...         print(frame.index, frame.image.shape)
    """
    text = os.fspath(spec) if not isinstance(spec, int) else str(spec)
    path = Path(text)
    if text.isdecimal():
        return VideoSource(int(text), f"camera {text}", live=True, clock=clock)
    if "://" in text:
        return _open_url(text, clock)
    if path.is_dir():
        return _open_images((item for item in path.rglob("*") if item.is_file()), text, clock)
    if path.is_char_device():
        return VideoSource(text, live=True, clock=clock)
    if path.is_file():
        return _open_file(path, text, clock)
    if glob.has_magic(text):
        return _open_images((Path(found) for found in glob.glob(text, recursive=True)), text, clock)
    raise SourceError(f"{text}: no such file or folder; expected a camera index, file, folder, glob or URL")


def hide_password(text: str) -> str:
    """The text with the password of every URL in it replaced by ***."""
    return re.sub(r"(://[^/@:\s]*):[^/@\s]*@", r"\1:***@", text)


def quiet_opencv() -> None:
    """Keep what OpenCV and FFmpeg print on stderr away; our own errors say it in one line. For programs only."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _open_url(url: str, clock: Callable[[], float]) -> VideoSource:
    source = VideoSource(url, hide_password(url), live=True, clock=clock)
    frames = source._capture.get(cv2.CAP_PROP_FRAME_COUNT)
    if url.startswith("http") and frames > 0:
        source.live, source.length = False, int(frames)
    return source


def _open_file(path: Path, name: str, clock: Callable[[], float]) -> Source:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return ImageSource([path], name, clock)
    if suffix == ".txt":
        lines = (line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
        paths = [path.parent / line for line in lines if line and not line.startswith("#")]
        if not paths:
            raise SourceError(f"{name}: lists no file; expected one image path a line")
        return ImageSource(paths, name, clock)
    if suffix == ".npy":
        try:
            images = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise SourceError(f"{name}: is not a NumPy array file ({error})") from error
        return ArraySource(images, name=name, clock=clock)
    return VideoSource(name, live=False, clock=clock)


def _open_images(candidates: Iterator[Path], name: str, clock: Callable[[], float]) -> ImageSource:
    paths = sorted((path for path in candidates if path.suffix.lower() in IMAGE_SUFFIXES), key=_natural)
    if not paths:
        raise SourceError(
            f"{name}: holds no image file; expected names that end in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return ImageSource(paths, name, clock)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    # Text and numbers never meet in one comparison: each part says first which of the two it is.
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", str(path))]


def _decode(path: Path) -> NDArray[np.uint8]:
    try:
        data = np.fromfile(path, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error
    except cv2.error:
        image = None
    if image is None:
        raise SourceError(f"{path}: is not an image that can be decoded")
    rgb: NDArray[np.uint8] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return rgb
