"""What sinks that write one file share."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rws.edge.common.files import atomic_path, check_target
from rws.errors import RwsError

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

_LONGEST_LINE = 2**20


class FileSink:
    """A context manager around one file that replaces its target only if all went well, or grows in its place.

    Args:
        path: appears complete when the sink closes; if an exception passes through, what was there before stays.
        endless: let the file grow under its own name instead; what was written is there after a crash or `kill -9`.

    Raises an `InputError` on entry if the file cannot be written there, and an `RwsError` if writing fails later.
    """

    errors: tuple[type[Exception], ...] = (OSError,)  # what a failed write raises; it becomes an `RwsError`

    def __init__(self, path: str | os.PathLike[str], *, endless: bool = False) -> None:
        self.path, self.endless, self._stack = Path(path), endless, ExitStack()

    def __enter__(self) -> Self:
        # A file can be appended to even if its folder takes no new one: /dev/stdout, a log that root made for us.
        if not self.endless or not self.path.exists() or self.path.is_dir():
            check_target(self.path)
        with self._one_line_errors(), ExitStack() as failed:
            failed.push(self._stack.__exit__)
            self._open()
            failed.pop_all()
        return self

    def __exit__(self, *failure: Any) -> None:
        with self._one_line_errors():
            self._stack.__exit__(*failure)

    def _open(self) -> None:
        """Take what is needed before the first frame."""

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except self.errors as error:
            raise RwsError(f"{self.path}: cannot be written ({getattr(error, 'strerror', '') or error})") from error


class LineSink(FileSink):
    """A text file, one line per frame. If `endless`, a half line that a crash has left there is ended first."""

    _file: BinaryIO

    def _open(self) -> None:
        if not self.endless:
            temporary = self._stack.enter_context(atomic_path(self.path))
            self._file = self._stack.enter_context(temporary.open("wb"))
            return
        # Without a buffer a line is in the file as soon as it is written; and appending goes on at the start of a file
        # that logrotate (copytruncate) has emptied.
        self._file = self._stack.enter_context(WholeFile(self.path, "ab"))
        if half := _half_line(self.path):
            self._file.write(self._end_of(half))

    def _end_of(self, half: bytes) -> bytes:
        return b"\n"

    def _append(self, text: str) -> int:
        # A file name may hold bytes that are no UTF-8: they become escapes, which JSON can read back.
        line = text.encode("utf-8", "backslashreplace")
        with self._one_line_errors():
            self._file.write(line)
        return len(line)


class WholeFile(io.FileIO):
    """An unbuffered file that writes all that it is given, or raises and keeps the error."""

    error: OSError | None = None

    def write(self, data: Buffer, /) -> int:
        """Write every byte and return their number; an `OSError` if only some or none could be written."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
            raise
        return size


def _half_line(path: Path) -> bytes:
    """Return what follows the last newline of a file; b"" for a pipe or device."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE))
        return file.read().rpartition(b"\n")[2]
