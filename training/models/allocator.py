"""What a training asks of the C library."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; return whether the C library knows how (only glibc does).

    A training step on a CPU allocates and frees the same large buffers at each step; by default glibc maps each
    one again, and the system clears its pages: about half of a step's time. Memory then stays at its highest mark.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 200_000_000))  # -1: never trim
    taken = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(taken)
