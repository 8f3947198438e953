"""Which code a process runs, so that processes that share work run the same."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path

from rws.edge.common.provenance import commit
from rws.errors import InputError


@cache
def code_version() -> str:
    """Return the version of the package, and the commit of a checkout."""
    return " ".join(filter(None, [version("rws-edge"), commit()]))


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
            ours = f"rws {found} works in it, here is {code_version()}"
            raise InputError(f"{folder}: {ours}; install the same, or give another work folder")
        yield
    finally:
        os.close(descriptor)
