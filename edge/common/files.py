"""Files and folders that are either the old ones or the complete new ones, even if the process ends half-way."""

import ctypes
import errno
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rws.errors import InputError
from rws.terminal import STDOUT

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def check_target(path: str | os.PathLike[str]) -> Path:
    """Return the path, before long work, if a file can be written there; raise InputError if not. `-` is stdout."""
    target = Path(path)
    if target == STDOUT:
        return target
    if "\0" in os.fspath(target):
        raise InputError(f"{target}: contains a NUL character; choose another path")
    if _is_special(target):
        return target
    if not target.parent.is_dir():
        raise InputError(f"{target}: its folder does not exist; create it first or choose another path")
    if target.is_dir():
        raise InputError(f"{target}: is a folder; expected the name of a file")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"{target}: its folder cannot be written to; choose another path")
    return target


def read_regular(path: str | os.PathLike[str], limit: int, *, follow: bool = True) -> bytes:
    """Read a regular file of at most `limit` bytes; a link is followed only if `follow`.

    It never waits: a pipe, socket, device or folder is an `OSError`, as is a larger file; the message says which.
    """
    names = ["O_NONBLOCK", "O_CLOEXEC", "O_BINARY", *([] if follow else ["O_NOFOLLOW"])]  # no system has all of them
    flags = sum(getattr(os, name, 0) for name in names)
    descriptor = os.open(path, os.O_RDONLY | flags)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        # One byte more than allowed, in case it grows while it is read.
        data = file.read(limit + 1) if status.st_size <= limit else b""
        if status.st_size > limit or len(data) > limit:
            found = max(status.st_size, len(data))
            raise OSError(errno.EFBIG, f"has {found} bytes, expected at most {limit}", os.fspath(path))
        return data


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`; a reader sees the old file or the whole new one, nothing between."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8: atomically, in a folder that is made if it is missing, or to stdout if the path is `-`."""
    if path == STDOUT:
        print(text, end="", flush=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, text.encode())


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; what is built there, a file or a folder, takes its place at the end.

    An exception leaves `path` as it was. All is flushed before it becomes visible. A folder replaces a folder in
    one step on Linux; elsewhere the old one is moved aside, and back on failure. A symbolic link is followed. A device
    or pipe, such as /dev/null, cannot be replaced: it is yielded itself.
    """
    if _is_special(Path(path)):
        yield Path(path)
        return
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        for part in [*temporary.rglob("*"), temporary]:
            _flush(part)
        if temporary.is_dir() and target.is_dir():
            _swap_folders(temporary, target)
        else:
            os.replace(temporary, target)
        _flush(target.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def _is_special(path: Path) -> bool:
    """Return whether the path is a device, a pipe or a socket."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _swap_folders(new: Path, target: Path) -> None:
    """Put folder `new` at `target`; the old folder is left at `new`."""
    if _exchange(new, target):
        return
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    os.rename(target, aside)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(aside, target)
        raise
    os.rename(aside, new)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two paths in one system call; False where the system or its file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", lambda *_: -1)
    return bool(renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
