"""Where frames and results go: JSON lines, CSV and annotated video.

A sink's file appears under its name when the sink closes, complete and readable. If an exception passes through
the sink, nothing appears and a file that was there before is left as it was.

A run that never ends needs the opposite: with `endless=True` the file grows under its own name from the first frame
on, and what was written is there after a crash or `kill -9`.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from rws.edge.common.files import atomic_path
from rws.edge.runtime import STAGES, Result
from rws.edge.sinks.annotate import annotate
from rws.edge.sinks.mp4 import VideoFile, WholeFile
from rws.errors import InputError, RwsError
from rws.records import Frame

if TYPE_CHECKING:
    from typing_extensions import Self

COLUMNS = (
    *("index", "name", "captured_at", "age_ms", "label", "confidence"),
    *("corruption", "probability", "severity", "mix", "changed"),
    *(f"{stage}_ms" for stage in STAGES),
)
_LONGEST_LINE = 2**20


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
    """A context manager around one file that replaces its target only if all went well, or grows in its place."""

    def __init__(self, path: str | os.PathLike[str], *, endless: bool = False) -> None:
        self.path = Path(path)
        self.endless = endless
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        # A file can be appended to where its folder takes no new one: /dev/stdout, a log that root made for us.
        if not self.endless or not self.path.exists() or self.path.is_dir():
            check_target(self.path)
        with _one_line_errors(self.path), ExitStack() as failed:
            failed.push(self._stack.__exit__)
            self._open()
            failed.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _one_line_errors(self.path):
            self._stack.__exit__(kind, error, trace)

    def _open(self) -> None:
        """Take what is needed before the first frame."""


class _LineSink(_FileSink):
    """A text file, one line a frame."""

    _file: BinaryIO

    def _open(self) -> None:
        if not self.endless:
            temporary = self._stack.enter_context(atomic_path(self.path))
            self._file = self._stack.enter_context(temporary.open("wb"))
            return
        # Without a buffer a line is in the file as soon as it is written; and appending goes on at the start of a file
        # that logrotate (copytruncate) has emptied.
        self._file = self._stack.enter_context(WholeFile(self.path, "ab"))
        half = _half_line(self.path)
        if half:
            self._file.write(self._end_of(half))

    def _end_of(self, half: bytes) -> bytes:
        """What ends a line that a crash has cut."""
        return b"\n"

    def _append(self, text: str) -> int:
        # A file name may hold bytes that are no UTF-8: they become escapes, which JSON can read back.
        line = text.encode("utf-8", "backslashreplace")
        with _one_line_errors(self.path):
            self._file.write(line)
        return len(line)


class JsonlSink(_LineSink):
    """One JSON object a line and frame: `Result.to_json`.

    Args:
        path: the file; an existing one is replaced when the sink closes, or appended to if `endless`.
        endless: write each line into the file at once. A half line that a crash has left there is ended first.

    Raises:
        InputError: on entry, if the file cannot be written there.
        RwsError: if writing fails, for example because the disk is full.

    Example:
        >>> with JsonlSink("results.jsonl") as sink:  # doctest: +SKIP
        ...     for result in runtime.stream("video.mp4", sinks=[sink]):
        ...         pass
    """

    def write(self, frame: Frame, result: Result) -> None:
        """Append the result; the frame's pixels are not kept."""
        self._append(json.dumps(result.to_json(), ensure_ascii=False) + "\n")


class CsvSink(_LineSink):
    """One row a frame, under the names of `COLUMNS`.

    `mix` is written as `fog:0.80+snow:0.20`, and empty for the clean model; `changed` is `true` or `false`; times are
    milliseconds, but for `captured_at`, seconds. A line break in a name becomes a space: a row is a line.

    Args:
        path: the file; an existing one is replaced when the sink closes, or appended to if `endless`.
        endless: write each row into the file at once. A half row that a crash has left there is ended first.

    Raises:
        InputError: on entry, if the file cannot be written there or has other columns.
        RwsError: if writing fails, for example because the disk is full.
    """

    HEADER = ",".join(COLUMNS) + "\n"

    def write(self, frame: Frame, result: Result) -> None:
        """Append the result; the frame's pixels are not kept."""
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(_row(result))
        length = self._append(line.getvalue())
        if self._truncatable and self._file.tell() == length:
            # The row is all there is: logrotate has emptied the file, and the header went with the rest.
            with _one_line_errors(self.path):
                self._file.truncate(0)
            self._append(self.HEADER + line.getvalue())

    def _open(self) -> None:
        header = self.HEADER.encode()
        found = _first_bytes(self.path, len(header)) if self.endless else b""
        if not header.startswith(found):
            first = found.decode(errors="replace").partition("\n")[0]
            raise InputError(
                f"{self.path}: begins with {first!r}, expected the columns {','.join(COLUMNS)!r}; move the file away "
                f"or choose another name"
            )
        if found and found != header:
            os.truncate(self.path, 0)
        super()._open()
        self._truncatable = self.endless and self.path.is_file()
        if found != header:
            self._file.write(header)

    def _end_of(self, half: bytes) -> bytes:
        # Inside a quoted name, a newline alone would not end the row.
        return b'"\n' if half.count(b'"') % 2 else b"\n"


class VideoSink(_FileSink):
    """Annotated frames (`rws.edge.sinks.annotate.annotate`) as a video. Without a frame, there is no file.

    The first frame decides the size; a frame of another size is fitted into it.

    Args:
        path: the file, ending in `.mp4`; an existing one is replaced when the sink closes.
        fps: frames a second; None takes 25.
        endless: show each frame at its `captured_at`, and write in fragments, so that after a crash all but about the
            last two seconds and a dozen frames can be played. A file that is there is not lost: it is renamed to the
            first free one of `<name>.1.mp4`, `<name>.2.mp4`, ….

    Raises:
        InputError: if the name does not end in `.mp4` or `fps` is not within 0.001…1000; on entry, if the file cannot
            be written there.
        RwsError: if no encoder works or writing fails, for example because the disk is full.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float | None = None, *, endless: bool = False) -> None:
        super().__init__(path, endless=endless)
        if self.path.suffix.lower() != ".mp4":
            raise InputError(f"{self.path}: annotated video is written as .mp4; choose a name that ends so")
        if fps is not None and not 0.001 <= fps <= 1000:
            raise InputError(f"{self.path}: cannot show {fps:g} frames a second; expected 0.001 to 1000")
        self.fps = Fraction(25 if fps is None else fps).limit_denominator(1001)
        self.frames = 0
        self._video: VideoFile | None = None
        self._size = (0, 0)

    def write(self, frame: Frame, result: Result) -> None:
        """Draw the result beside the frame and append the picture."""
        picture = annotate(frame.image, result, frame.original)
        with _one_line_errors(self.path):
            if self._video is None:
                self._size = (picture.shape[1], picture.shape[0])
                self._video = self._start()
            self._video.write(_letterbox(picture, *self._size), frame.captured_at)
        self.frames += 1

    def _start(self) -> VideoFile:
        if self.endless:
            _set_aside(self.path)
            target = self.path
        else:
            target = self._stack.enter_context(atomic_path(self.path))
        return self._stack.enter_context(VideoFile(target, self._size, self.fps, self.endless))


def _row(result: Result) -> list[object]:
    belief = result.belief
    return [
        result.index,
        " ".join(result.name.splitlines()),
        f"{result.captured_at:.6f}",
        f"{result.age_ms:.3f}",
        result.label,
        f"{result.confidence:.4f}",
        belief.type,
        f"{belief.probability.max():.4f}",
        f"{belief.type_severity:.3f}",
        "+".join(f"{name}:{alpha:.2f}" for name, alpha in result.mix.items()),
        "true" if result.changed else "false",
        *(f"{result.times_ms[stage]:.4f}" for stage in STAGES),
    ]


def _first_bytes(path: Path, count: int) -> bytes:
    """What a file begins with; b"" where there is none or it is a pipe or device."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(count)


def _half_line(path: Path) -> bytes:
    """What follows the last newline of a file; b"" for a pipe or device."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE))
        return file.read().rpartition(b"\n")[2]


def _set_aside(path: Path) -> None:
    """Rename a file that holds something to a free name beside it."""
    if path.is_file() and path.stat().st_size:
        names = (path.with_suffix(f".{number}{path.suffix}") for number in count(1))
        path.rename(next(name for name in names if not name.exists()))


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
    except (OSError, av.FFmpegError) as error:
        raise RwsError(f"{path}: cannot be written ({error.strerror or error})") from error
