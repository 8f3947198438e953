"""Which code a process runs, so that processes that share work run the same."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rws.edge.common.provenance import commit
from rws.errors import InputError

_DECIDE = ("rws-edge", "numpy", "onnx", "onnxruntime", "torch")


@cache
def code_version() -> str:
    """Return the versions of the package, with the commit of a checkout, and of what decides its results."""
    versions = {
        name: version(name) for name in ("rws-edge", "numpy", "onnx", "onnxruntime", "torch") if _is_there(name)
    }
    versions["rws-edge"] = " ".join(filter(None, [versions["rws-edge"], commit()]))
    return ", ".join(f"{name} {found}" for name, found in versions.items())


def _is_there(package: str) -> bool:
    with suppress(PackageNotFoundError):
        return bool(version(package))
    return False


def difference(there: str) -> str:
    """Say how the versions of another process differ from those of this one."""
    theirs, ours = there.split(", "), code_version().split(", ")
    found, own = ([one for one in these if one not in those] for these, those in ((theirs, ours), (ours, theirs)))
    return f"{', '.join(found)} there, {', '.join(own)} here"


@contextmanager
def same_version(folder: Path) -> Iterator[None]:
    """Share a folder with processes of the same version only; InputError if those that use it now have another."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".version", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, code_version().encode(), 0)
        except BlockingIOError:
            pass
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        found = os.pread(descriptor, 1000, 0).decode(errors="replace")
        if found != code_version():
            raise InputError(f"{folder}: in use with {difference(found)}; install the same, or give another folder")
        yield
    finally:
        os.close(descriptor)
