"""Base classes of sinks that write one file."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rws.edge.common.files import atomic_path, check_target
from rws.errors import RwsError
from rws.terminal import STDOUT

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

_LONGEST_LINE = 2**20


class FileSink:
    """A context manager around one file that replaces its target only on success, or grows in its place.

    Args:
        path: appears complete when the sink closes; after an exception, the file that was there before stays.
        endless: let the file grow under its own name instead; what was written survives a crash or `kill -9`.

    Raises an `InputError` on entry if the file cannot be written there, and an `RwsError` if writing fails later. After
    its exit it can be entered again; an `RwsError` if the disk that it was on is not mounted then.
    """

    errors: tuple[type[Exception], ...] = (OSError,)  # of a failed write; they become an `RwsError`

    def __init__(self, path: str | os.PathLike[str], *, endless: bool = False) -> None:
        self.path, self.endless, self._stack = Path(path), endless, ExitStack()
        self._mount: Path | None = None
        self._identity: tuple[int, int] | None = None  # of a file that grows

    def __enter__(self) -> Self:
        self._check_place()
        with self._one_line_errors(), ExitStack() as failed:
            failed.push(self._stack.__exit__)
            self._open()
            failed.pop_all()
        return self

    def __exit__(self, *failure: Any) -> None:
        with self._one_line_errors():
            self._stack.__exit__(*failure)

    def _check_place(self) -> None:
        # A file can be appended to even if its folder is read-only: /dev/stdout, or a log that root has created.
        if not self.endless or not self.path.exists() or self.path.is_dir():
            check_target(self.path)
        self._mount = self._mount or _mount_of(self.path)
        if not os.path.ismount(self._mount):
            # The folder is there without its disk too; what is written into it would fill another one.
            raise RwsError(f"{self.path}: cannot be written ({self._mount} is no longer mounted)")

    def _open(self) -> None:
        """Prepare for the first frame."""

    def _remember(self) -> None:
        """Note which file is at the path now: the one that grows."""
        self._identity = _identity(os.stat(self.path)) if self.path.is_file() else None

    def _is_gone(self) -> bool:
        try:
            return self._identity is not None and _identity(os.stat(self.path)) != self._identity
        except FileNotFoundError:
            return True

    def _renew(self) -> None:
        """Begin another file if somebody has removed or renamed the one that grows."""
        if self._is_gone():
            self._stack.close()
            self._check_place()
            self._open()

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except self.errors as error:
            raise RwsError(f"{self.path}: cannot be written ({getattr(error, 'strerror', '') or error})") from error


class LineSink(FileSink):
    """A text file, one line per frame.

    Args:
        path, endless: see `FileSink`; `-` is stdout, which gets each line at once. If `endless`, a half line that a
            crash has left in the file is ended first, one that a failed write leaves is taken back, and if the file is
            removed or renamed, a new one takes its place.
        on_close: called when the reader of stdout has gone; what is written after that is lost.
    """

    _file: BinaryIO

    def __init__(
        self, path: str | os.PathLike[str], *, endless: bool = False, on_close: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(path, endless=endless)
        self._on_close = on_close

    @property
    def _grows(self) -> bool:
        """Whether lines are appended to a file that is there already."""
        return self.endless and self.path != STDOUT and self.path.is_file()

    def _open(self) -> None:
        if self.path == STDOUT:
            self._file = _stdout()
            return
        if not self.endless:
            temporary = self._stack.enter_context(atomic_path(self.path))
            self._file = self._stack.enter_context(temporary.open("wb"))
            return
        # Unbuffered, so that a line is in the file as soon as it is written. Appending continues at the start of a file
        # that logrotate (copytruncate) has emptied.
        self._file = self._stack.enter_context(WholeFile(self.path, "ab"))
        self._remember()
        if half := _half_line(self.path):
            self._file.write(self._end_of(half))

    def _end_of(self, half: bytes) -> bytes:
        return b"\n"

    def _append(self, text: str) -> int:
        line = text.encode("utf-8", "backslashreplace")
        with self._one_line_errors():
            self._renew()
            try:
                self._file.write(line)
            except BrokenPipeError:
                if self.path != STDOUT:
                    raise
                self._on_close()
        return len(line)


class WholeFile(io.FileIO):
    """An unbuffered file that writes every byte, or raises, takes the bytes at its end back, and takes no more."""

    error: OSError | None = None

    def write(self, data: Buffer, /) -> int:
        """Write every byte and return their number; raise an `OSError` if not all could be written, now or before."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                if (done := super().write(rest)) is None:  # a full pipe whose other users do not want to wait
                    select.select([], [self], [])
                rest = rest[done or 0 :]
        except OSError as error:
            self.error = error
            self._take_back(size - len(rest))
            raise
        return size

    def _take_back(self, count: int) -> None:
        with suppress(OSError):  # a pipe
            end = self.tell()
            if count and os.fstat(self.fileno()).st_size == end:
                self.seek(end - count)
                self.truncate()


def _mount_of(path: Path) -> Path:
    found = Path(os.path.realpath(path)).parent
    while not os.path.ismount(found):
        found = found.parent
    return found


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _stdout() -> BinaryIO:
    try:
        # Without Python's buffer, which would complain at the end of the process if the reader has gone.
        return WholeFile(sys.stdout.fileno(), "wb", closefd=False)
    except (OSError, ValueError):  # it has no file, as in a notebook
        return sys.stdout.buffer


def _half_line(path: Path) -> bytes:
    """Return the bytes after the last newline of a file; b"" for a pipe or device."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE))
        return file.read().rpartition(b"\n")[2]
