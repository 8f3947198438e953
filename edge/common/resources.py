"""File descriptors and memory of this process."""

import contextlib
import ctypes
import gc
import os
import sys

ENOUGH = 4096  # more costs programs that try them all
_M_ARENA_MAX = -8


def raise_descriptor_limit() -> None:
    """Raise the number of files and connections that this process may open as far as its user may, up to 4,096."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def free_descriptors() -> int:
    """Return how many more files and connections this process may open, `ENOUGH` if there is no limit."""
    if sys.platform == "win32":
        return ENOUGH
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir("/dev/fd"))
    except OSError:  # none is left to list them
        return 0
    return ENOUGH if soft == resource.RLIM_INFINITY else min(ENOUGH, max(0, soft - used))


def use_one_heap() -> None:
    """Let all threads take memory from one heap; call it before they start.

    Each heap of glibc's other threads keeps up to twice the largest block that was ever freed, such as a bundle's
    model, and `return_memory` cannot give that back.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def return_memory() -> None:
    """Free what is left of objects that refer to each other, and give what was freed back to the machine.

    It takes a millisecond or two after `gc.freeze`; Python itself looks at old objects when many are new, however large
    they are.
    """
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
