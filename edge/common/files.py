"""Files and folders that are either the old ones or the complete new ones, even if the process ends half-way."""

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rws.errors import InputError, InUseError, RwsError
from rws.terminal import STDOUT

if sys.platform != "win32":
    import fcntl

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_POLL = 0.05  # seconds between two tries to get a lock
_SAFE = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC"))


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


def open_regular(
    path: str | os.PathLike[str], limit: int | None = None, *, follow: bool = True, folder: int | None = None
) -> BinaryIO:
    """Open a regular file of at most `limit` bytes for reading; a link is followed only if `follow`.

    It never waits: a pipe, socket, device or folder is an `OSError`, as are a larger file and a name that no file can
    have; the message says which. `folder` is an open folder that `path` is relative to.
    """
    names = ["O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY", *([] if follow else ["O_NOFOLLOW"])]
    flags = sum(getattr(os, name, 0) for name in names)  # no system has all of them
    try:
        descriptor = os.open(path, os.O_RDONLY | flags, dir_fd=folder)
    except ValueError as error:
        raise OSError(errno.EINVAL, "no file can have this name", os.fspath(path)) from error
    except OSError as error:
        if follow or error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, "not a regular file, links are not followed", os.fspath(path)) from error
    with ExitStack() as failed:
        failed.callback(os.close, descriptor)
        status = os.fstat(descriptor)
        _check(path, status.st_size if stat.S_ISREG(status.st_mode) else None, limit)
        failed.pop_all()
    return open(descriptor, "rb")


def read_regular(path: str | os.PathLike[str], limit: int, *, follow: bool = True, folder: int | None = None) -> bytes:
    """Read a regular file of at most `limit` bytes; arguments and errors are those of `open_regular`."""
    with open_regular(path, limit, follow=follow, folder=folder) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, limit) + 1) or b""
        if len(data) > size:  # it grows while it is read, or its size is unknown
            data += file.read(limit + 1 - len(data)) or b""
        _check(path, len(data), limit)
        return data


def _check(path: str | os.PathLike[str], size: int | None, limit: int | None) -> None:
    """Raise an OSError if a file is not a regular one, whose size is None, or larger than the limit, if any."""
    if size is None:
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    if limit is not None and size > limit:
        raise OSError(errno.EFBIG, f"has {size} bytes, expected at most {limit}", os.fspath(path))


@contextmanager
def os_errors(path: object, action: str, cure: str, kind: type[RwsError] = InputError) -> Iterator[None]:
    """Raise an `OSError` as an error that says in one line that `path` cannot be read or written, why, and the cure."""
    try:
        yield
    except OSError as error:
        raise kind(f"{path}: cannot be {action} ({error.strerror or error}); {cure}") from error


class OpenFolder(AbstractContextManager["OpenFolder"]):
    """A folder that is held open: all that is read of it comes from it, even if another takes its place meanwhile.

    Raises an OSError if there is no such folder.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._descriptor = path, None
        if os.open in os.supports_dir_fd:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._status = os.stat(path if self._descriptor is None else self._descriptor)

    def __exit__(self, *failure: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def read(self, name: str, limit: int) -> bytes:
        """Read a file of the folder that is not a link; see `read_regular`."""
        path = name if self._descriptor is not None else self._path / name
        return read_regular(path, limit, follow=False, folder=self._descriptor)

    def is_replaced(self) -> bool:
        """Return whether the path leads to another folder now."""
        try:
            return not os.path.samestat(self._status, os.stat(self._path))
        except OSError:
            return True


def atomic_write_bytes(path: str | Path, data: bytes, *, tidy: bool = True) -> None:
    """Write `data` to `path`; a reader sees the old file or the whole new one, nothing between; see `atomic_path`."""
    with atomic_path(path, tidy=tidy) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8: atomically, in a folder that is made if it is missing, or to stdout if the path is `-`."""
    if path == STDOUT:
        print(text, end="", flush=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, text.encode())


@contextmanager
def atomic_path(path: str | Path, *, folder: bool = False, tidy: bool = True) -> Iterator[Path]:
    """Yield a temporary file, or an empty `folder`, next to `path`; what is written to it takes its place at the end.

    An exception leaves `path` as it was. All is flushed before it becomes visible. A folder replaces a folder in
    one step on Linux; elsewhere the old one is moved aside, and back on failure. A symbolic link is followed. A device
    or pipe, such as /dev/null, cannot be replaced: it is yielded itself. What writers that were killed have left at
    this place is removed first; a living one holds a lock on its own. That reads the whole folder: with `tidy` off,
    the caller does it (`remove_leftovers`) when there is a reason.
    """
    if _is_special(Path(path)):
        yield Path(path)
        return
    target = Path(os.path.realpath(path))
    if target.is_dir() and not folder:
        raise OSError(errno.EISDIR, "is a folder where a file belongs; remove it or choose another path", str(target))
    if tidy:
        remove_leftovers(target)
    temporary, descriptor = _create(target, folder)
    try:
        yield temporary
        for part in [*temporary.rglob("*"), temporary]:
            _flush(part)
        if folder and target.is_dir():
            _swap_folders(temporary, target)
        else:
            os.replace(temporary, target)
        _flush(target.parent)
    finally:
        _remove(temporary)
        os.close(descriptor)


@contextmanager
def locked(path: Path, wait: float = 60.0) -> Iterator[None]:
    """Hold the lock of a path, which need not exist, until the exit; other processes and threads wait for it.

    The lock is a file next to the path, `.NAME.lock`; the system frees it when its process ends, however that happens.
    A link is not followed: the lock is that of the link. After `wait` seconds, an InUseError names the process that
    holds it. Raises an OSError if no file can be created or locked there.
    """
    place = _lock_of(path)
    deadline = time.monotonic() + wait
    while (descriptor := _open_locked(place)) is None:
        if time.monotonic() >= deadline:
            raise InUseError(f"{path}: is being changed by {_holder(place)}; try again when that has ended")
        time.sleep(_POLL)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        place.unlink(missing_ok=True)  # before it is freed: who has opened it meanwhile sees that it is gone
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock of a path, or died with it."""
    return _lock_of(path).exists()


def _lock_of(path: Path) -> Path:
    return path.parent / f".{path.name}.lock"


def remove_leftovers(target: Path) -> None:
    """Remove what killed writers of `target` have left next to it; a folder that was moved aside comes back."""
    name = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{8}\.(tmp|old)")
    with suppress(OSError):  # what cannot be removed stays
        for found in [item for item in target.parent.iterdir() if name.fullmatch(item.name)]:
            with suppress(OSError):
                if found.is_symlink():
                    found.unlink()  # it exists for an instant only, under the lock of `target`
                else:
                    _remove_dead(found, target)


def _remove_dead(found: Path, target: Path) -> None:
    descriptor = os.open(found, os.O_RDONLY | _SAFE)
    try:
        mode = os.fstat(descriptor).st_mode
        if (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and _lock(descriptor):
            if found.suffix == ".old" and not target.exists():
                os.rename(found, target)
            else:
                _remove(found)
    finally:
        os.close(descriptor)


def _create(target: Path, folder: bool) -> tuple[Path, int]:
    """Create a temporary file or folder; returns it, locked as long as the descriptor is open, and the descriptor."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        if folder:
            temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # where nothing can be locked, nothing is removed either
            _lock(descriptor)
        if _is_at(descriptor, temporary):  # else another writer has just removed it
            return temporary, descriptor
        os.close(descriptor)


def _open_locked(place: Path) -> int | None:
    while True:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | _SAFE, 0o666)
        try:
            held = _lock(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        if held and _is_at(descriptor, place):
            return descriptor
        os.close(descriptor)
        if not held:
            return None


def _lock(descriptor: int) -> bool:
    """Lock an open file or folder until it is closed; returns False if another holds it. Windows has no such lock."""
    try:
        if sys.platform != "win32":
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _holder(place: Path) -> str:
    with suppress(OSError):
        if (number := read_regular(place, 20, follow=False)).isdigit():
            return f"process {number.decode()}"
    return "another process"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        with suppress(OSError):
            path.chmod(stat.S_IRWXU)  # of a read-only folder nothing could be removed
        shutil.rmtree(path, ignore_errors=True)  # the next writer removes the rest
    else:
        path.unlink(missing_ok=True)


def _is_special(path: Path) -> bool:
    """Return whether the path is a device, a pipe or a socket."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _swap_folders(new: Path, target: Path) -> None:
    """Put folder `new` at `target`; the old folder is left at `new`."""
    if _exchange(new, target):
        return
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    descriptor = os.open(target, os.O_RDONLY | _SAFE)
    try:
        with suppress(OSError):
            _lock(descriptor)  # so that no other writer removes it as a leftover
        os.rename(target, aside)
        try:
            os.rename(new, target)
        except OSError:
            os.rename(aside, target)
            raise
        os.rename(aside, new)
    finally:
        os.close(descriptor)


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
