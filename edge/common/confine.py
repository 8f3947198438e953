"""Limits and rights of a process that runs what comes from outside."""

import ctypes
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from rws.errors import RwsError

NO_NEW_RIGHTS, KILLED_WITH_PARENT = 38, 1  # of prctl(2)


@dataclass(frozen=True)
class Limits:
    """What a process may take."""

    processor: float  # seconds of its time
    seconds: float  # in all; longer, because others may keep the processor busy
    memory: int  # bytes


def confine(limits: Limits) -> None:
    """Give up for good what this process does not need; import and read all that it needs before.

    Afterwards it cannot open a file or a socket, write a file, or start a process or a thread, and the kernel bounds
    its memory and its processor time. It gives way to other processes, and is the first to be killed if memory runs
    out. Root becomes the user `nobody`, or an RwsError is raised. On Linux it ends with the thread that started it.
    macOS does not bound memory, and Windows has none of this.
    """
    if sys.platform == "win32":
        return
    import pwd
    import resource

    try:
        nobody = pwd.getpwnam("nobody").pw_uid
    except KeyError:
        nobody = 65534
    os.nice(5)
    if sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setgid(nobody)
            os.setuid(nobody)
        except OSError as error:
            raise RwsError("root has no right here to become another user; start this as another user") from error
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        library.prctl(NO_NEW_RIGHTS, 1, 0, 0, 0)
        library.prctl(KILLED_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    # RLIMIT_DATA counts what can be written and belongs to this process alone; RLIMIT_AS also what it could share, and
    # what libraries reserve but never use.
    most = {"CPU": ceil(limits.processor), "DATA": limits.memory, "AS": 2 * limits.memory}
    for name, value in {**most, "CORE": 0, "FSIZE": 0, "NPROC": 0, "NOFILE": 0}.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with suppress(OSError, ValueError):  # macOS takes less than it names
            resource.setrlimit(kind, (value, value + (name == "CPU")))
