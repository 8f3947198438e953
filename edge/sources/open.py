"""Frame sources: cameras, video files, network streams, images and arrays, all read as RGB frames in order.

A source yields what it was given and nothing else: an image that cannot be decoded is counted in `rejections` and
named in a warning, never replaced by another picture. Cameras, video files and streams are read in a process of their
own (`rws.edge.sources.capture`). BGR, OpenCV's colour order, does not leave these modules.
"""

from __future__ import annotations

import glob
import logging
import math
import os
import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from rws.errors import InputError, SourceError
from rws.records import Frame

if TYPE_CHECKING:
    from typing_extensions import Self

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_SECRETS = "password|passwd|pwd|pass|p|loginpas|auth|key|apikey|token|secret"
_READ_HERE = IMAGE_SUFFIXES | {".txt", ".npy"}

log = logging.getLogger(__name__)

TICK = 0.25
"""Seconds between two calls of `Source.on_idle`."""


class Source(ABC):
    """Frames in order, read once: `for frame in source`. A context manager that lets go of its device or file.

    Attributes:
        name: what a person calls it; a password in a URL is left out.
        live: frames come at their own pace and are lost if nobody reads them.
        sequential: neighbouring frames follow one another in time, so a temporal filter makes sense.
        length: number of frames where it is known in advance (a video's header may be wrong), else None.
        fps: frames a second as declared, else None.
        state: `opening`, `running`, `reconnecting` (lost, and being sought again), `lost` (given up) or `ended`.
        error: what went wrong last, in one line; "" if nothing did.
        received: frames that came so far, whatever became of them.
        delivered: frames that were yielded so far.
        dropped: frames that were whole and skipped so far, because newer ones came.
        buffered: whole frames that were decoded but not asked for; they stay so when the source is closed early.
        rejections: frames kept from the oracle so far, by reason (`damaged`, `undecodable`, `frozen`, `black`, …).
        reconnects: how often the source was opened anew so far.
        on_idle: called about four times a second while no frame comes, with the seconds since the last one.

    Always `received` = `delivered` + `dropped` + `rejected` + `buffered`.
    """

    name: str
    live: bool = False
    sequential: bool = False
    length: int | None = None
    fps: float | None = None
    state: str = "running"
    error: str = ""
    received: int = 0
    delivered: int = 0
    dropped: int = 0
    buffered: int = 0
    reconnects: int = 0
    on_idle: Callable[[float], None] | None = None

    def __init__(self) -> None:
        self.rejections: Counter[str] = Counter()
        self.stopped = False

    def stop(self) -> None:
        """End the iteration soon, as if the source had ended; may be called from another thread or a signal handler."""
        self.stopped = True

    @property
    def rejected(self) -> int:
        """Frames kept from the oracle so far."""
        return self.rejections.total()

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

    def __init__(self, paths: Sequence[Path], name: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.name = name
        self.length = len(paths)
        self.paths = tuple(paths)
        self._clock = clock

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self.paths):
            if self.stopped:
                return
            self.received += 1
            try:
                image = _decode(path)
            except SourceError as error:
                self.rejections["undecodable"] += 1
                if len(self.paths) == 1:
                    raise
                log.warning("rejected %s", error)
                continue
            self.delivered += 1
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise InputError(
                f"{name}: found {images.dtype} of shape {images.shape}, expected uint8 of shape (N, H, W, 3), RGB"
            )
        if names is not None and len(names) != len(images):
            raise InputError(f"{name}: found {len(names)} names for {len(images)} images, expected one each")
        super().__init__()
        self.name = name
        self.sequential = sequential
        self.fps = fps
        self.length = len(images)
        self._images = images
        self._names = names
        self._clock = clock

    def __iter__(self) -> Iterator[Frame]:
        for index, image in enumerate(self._images):
            if self.stopped:
                return
            self.received += 1
            self.delivered += 1
            yield Frame(index, np.asarray(image), self._clock(), self._names[index] if self._names else self.name)


class PatternSource(Source):
    """A moving test picture: colour bars, a grey ramp, a hand that turns once in four seconds, and the frame's number.

    It is live, as a camera is: a frame whose time has passed is not made, and counts as received and dropped.

    Args:
        width, height: pixels, at least 32.
        fps: frames a second.
        clock: seconds, monotonic.
        sleep: waits so many seconds.

    Raises:
        InputError: if a number is out of range.
    """

    live = sequential = True

    def __init__(
        self,
        width: int = 640,
        height: int = 480,
        fps: float = 30.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__()
        if not (32 <= width <= 8192 and 32 <= height <= 8192 and 0 < fps <= 10_000):
            raise InputError(
                f"test pattern: {width}x{height}@{fps:g}: expected 32 to 8192 pixels, up to 10000 a second"
            )
        self.name = f"test pattern {width}x{height}"
        self.fps = self._rate = fps
        self._clock, self._sleep = clock, sleep
        bars = np.array(
            [(191, 191, 191), (191, 191, 0), (0, 191, 191), (0, 191, 0), (191, 0, 191), (191, 0, 0), (0, 0, 191)],
            np.uint8,
        )
        self._still = np.empty((height, width, 3), np.uint8)
        self._still[:] = bars[np.arange(width) * len(bars) // width]
        self._still[height * 3 // 4 :] = np.linspace(0, 255, width, dtype=np.uint8)[:, None]

    def __iter__(self) -> Iterator[Frame]:
        start = self._clock()
        index, idle_for = 0, 0.0
        while not self.stopped:
            early = start + index / self._rate - self._clock()
            if early > 0:
                self._sleep(min(early, TICK))
                idle_for += min(early, TICK)
                if early >= TICK and self.on_idle is not None:
                    self.on_idle(idle_for)
                continue
            idle_for = 0.0
            skipped = int(-early * self._rate)
            index += skipped
            self.received += skipped + 1
            self.dropped += skipped
            self.delivered += 1
            yield Frame(index, self._draw(index), self._clock(), self.name)
            index += 1

    def _draw(self, index: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self._still.copy()
        height, width = image.shape[:2]
        angle = 2 * math.pi * index / (4 * self._rate)
        centre, reach = (width // 2, height * 3 // 8), height / 3
        tip = round(centre[0] + reach * math.sin(angle)), round(centre[1] - reach * math.cos(angle))
        cv2.line(image, centre, tip, (255, 255, 255), max(1, height // 60), cv2.LINE_AA)
        cv2.putText(image, str(index), (4, height - 6), cv2.FONT_HERSHEY_SIMPLEX, height / 480, (255, 255, 255), 1)
        return image


def open_source(
    spec: str | int | os.PathLike[str],
    clock: Callable[[], float] = time.monotonic,
    *,
    latest: bool | None = None,
    retries: int | None = None,
    stall: float = 5.0,
) -> Source:
    """Open whatever a user calls a source.

    Args:
        spec: a camera index (`0`, `"0"`, `/dev/video0`), a GStreamer pipeline that ends in `appsink`, a video file, an
            image, a folder of images (with its subfolders), a glob (`"shots/*.png"`, `**` included), a `.txt` list of
            image paths (one a line, relative to the list; `#` starts a comment), a `.npy` array, uint8 (N, H, W, 3)
            RGB, a URL (`rtsp://`, `http://`, …), or `pattern` (`pattern:640x480@30`), a moving test picture. A folder
            whose name is a number is written `./0`. Images come in natural order: `2.png` before `10.png`.
        clock: seconds, monotonic; stamps the frames that are read in this process.
        latest: give the freshest frame and drop what came before it (a file is then played at its own speed), or give
            every frame; None: the freshest of what is live, and every frame of a file.
        retries: how often in a row a lost camera or stream is sought again; None for ever.
        stall: seconds without a frame after which a camera or stream counts as lost.

    Raises:
        SourceError: if nothing is there, a folder or list names no image, or a file cannot be opened. A camera or
            stream is opened when the first frame is asked for.
        InputError: if an array has another shape or dtype.

    Example:
        >>> with open_source("video.mp4") as source:  # doctest: +SKIP
        ...     for frame in source:
        ...         print(frame.index, frame.image.shape)
    """
    from rws.edge.sources.capture import CapturedSource, CaptureSettings

    def captured(kind: Literal["camera", "file", "network"], target: int | str, name: str) -> Source:
        settings = CaptureSettings(target, kind, latest)
        return CapturedSource(settings, name, live=kind != "file", retries=retries, stall=stall)

    text = os.fspath(spec) if not isinstance(spec, int) else str(spec)
    path = Path(text)
    if text.isdecimal():
        return captured("camera", int(text), f"camera {text}")
    if pattern := re.fullmatch(r"pattern(?::(\d+)x(\d+)(?:@(\d+(?:\.\d+)?))?)?", text):
        width, height, fps = pattern.groups()
        return PatternSource(int(width or 640), int(height or 480), float(fps or 30), clock=clock)
    if " ! " in text:
        return captured("camera", text, "pipeline")
    if "://" in text:
        return captured("network", text, hide_password(text))
    if path.is_dir():
        return _open_images((item for item in path.rglob("*") if item.is_file()), text, clock)
    if path.is_char_device():
        return captured("camera", text, text)
    if path.is_file() and path.suffix.lower() not in _READ_HERE:
        # Absolute, because FFmpeg takes what stands before a colon for a protocol.
        return captured("file", os.path.abspath(text), text)
    if path.is_file():
        return _open_file(path, text, clock)
    if glob.has_magic(text):
        return _open_images((Path(found) for found in glob.glob(text, recursive=True)), text, clock)
    raise SourceError(f"{text}: no such file or folder; expected a camera index, file, folder, glob or URL")


def hide_password(text: str) -> str:
    """The text with the password of every URL in it replaced by ***: before the host, or named so in path or query."""
    text = re.sub(r"(://[^/@:\s]*):[^/\s]*@", r"\1:***@", text)
    return re.sub(rf"(?i)((?<![a-z])(?:{_SECRETS})=)[^&\s/]+", r"\1***", text)


def quiet_opencv() -> None:
    """Keep what OpenCV prints on stderr away; our own errors say it in one line. For programs only."""
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(0)
    else:  # OpenCV 5
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _open_file(path: Path, name: str, clock: Callable[[], float]) -> Source:
    suffix = path.suffix.lower()
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
    return ImageSource([path], name, clock)


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
