"""Where frames and results go: JSON lines and annotated video.

A sink's file appears under its name when the sink closes, complete and readable. If an exception passes through
the sink, nothing appears and a file that was there before is left as it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.atomic import atomic_path
from edge.draw import annotate
from edge.errors import InputError, RwsError
from edge.loop import Result
from edge.sources import Frame

if TYPE_CHECKING:
    from typing_extensions import Self

# OpenCV's wheels can always encode mp4v; builds without it (some boards) have a hardware H.264 encoder instead.
CODECS = ("mp4v", "avc1")


def check_target(path: str | os.PathLike[str]) -> Path:
    """The path, if a file can be written there; called before long work, not after it.

    Raises:
        InputError: if its folder is missing or read-only, or the path is a folder.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"{target}: its folder does not exist; create it first or choose another path")
    if target.is_dir():
        raise InputError(f"{target}: is a folder; expected the name of a file")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"{target}: its folder cannot be written to; choose another path")
    return target


class _FileSink:
    """A context manager around one file that replaces its target only if all went well."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        check_target(self.path)
        with _one_line_errors(self.path):
            self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _one_line_errors(self.path):
            self._stack.__exit__(kind, error, trace)

    def _open(self) -> None:
        """Take what is needed before the first frame."""


class JsonlSink(_FileSink):
    """One JSON object a line and frame: `Result.to_json`.

    Args:
        path: the file; an existing one is replaced when the sink closes.

    Raises:
        InputError: on entry, if the file cannot be written there.
        RwsError: if writing fails, for example because the disk is full.

    Example:
        >>> with JsonlSink("results.jsonl") as sink:  # doctest: +SKIP
        ...     for result in runtime.stream("video.mp4", sinks=[sink]):
        ...         pass
    """

    _file: TextIO

    def write(self, frame: Frame, result: Result) -> None:
        """Append the result; the frame's pixels are not kept."""
        with _one_line_errors(self.path):
            self._file.write(json.dumps(result.to_json(), ensure_ascii=False) + "\n")

    def _open(self) -> None:
        temporary = self._stack.enter_context(atomic_path(self.path))
        self._file = self._stack.enter_context(temporary.open("w", encoding="utf-8"))


class VideoSink(_FileSink):
    """Annotated frames (`edge.draw.annotate`) as a video. Without a frame, there is no file.

    The first frame decides the size; a frame of another size is fitted into it. When the sink closes, the video is
    opened once more and its frames are counted, because OpenCV does not report a failed write.

    Args:
        path: the file, ending in `.mp4`.
        fps: frames a second; None takes 25.

    Raises:
        InputError: if the name does not end in `.mp4`; on entry, if the file cannot be written there.
        RwsError: if no encoder works, or on exit if frames are missing from the file.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float | None = None) -> None:
        super().__init__(path)
        if self.path.suffix.lower() != ".mp4":
            raise InputError(f"{self.path}: annotated video is written as .mp4; choose a name that ends so")
        self.fps = 25.0 if fps is None else fps
        self.frames = 0
        self._writer: Any = None
        self._size = (0, 0)

    def write(self, frame: Frame, result: Result) -> None:
        """Draw the result beside the frame and append the picture."""
        picture = annotate(frame.image, result)
        if self._writer is None:
            self._size = (picture.shape[1], picture.shape[0])
            self._start()
        self._writer.write(cv2.cvtColor(_letterbox(picture, *self._size), cv2.COLOR_RGB2BGR))
        self.frames += 1

    def _start(self) -> None:
        temporary = self._stack.enter_context(atomic_path(self.path))
        # OpenCV chooses the container by the name's ending, which a temporary name does not have.
        encoded = temporary.with_name(temporary.name + ".mp4")
        self._writer = _open_writer(encoded, self.fps, self._size)

        def finish(kind: type[BaseException] | None, *_: object) -> None:
            self._writer.release()
            try:
                if kind is None:
                    self._check(encoded)
                    os.replace(encoded, temporary)
            finally:
                encoded.unlink(missing_ok=True)

        self._stack.push(finish)

    def _check(self, encoded: Path) -> None:
        capture = cv2.VideoCapture(str(encoded))
        found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        if found != self.frames:
            raise RwsError(f"{self.path}: only {found} of {self.frames} frames could be written; is the disk full?")


def _open_writer(path: Path, fps: float, size: tuple[int, int]) -> Any:
    for codec in CODECS:
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, size)
        if writer.isOpened():
            return writer
    raise RwsError(
        f"this OpenCV can encode none of {', '.join(CODECS)}; install the wheel (pip install opencv-python) "
        "or write JSON lines instead"
    )


def _letterbox(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    if picture.shape[:2] == (height, width):
        return picture
    scale = min(width / picture.shape[1], height / picture.shape[0])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    fitted = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = fitted
    return canvas


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RwsError(f"{path}: cannot be written ({error.strerror or error})") from error
