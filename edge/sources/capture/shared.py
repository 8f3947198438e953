"""Memory that the capture process and the loop share: one frame in transit, and counters that outlive a kill.

Linux gives anonymous memory with a file descriptor, which no crash can leave behind; elsewhere an unlinked file does.
"""

import mmap
import os
import tempfile
import threading

import numpy as np

from rws.edge.sources.capture.checks import REASONS

# `discarded` alone is written by the loop, the others by the capture process: no two of them write one number.
COUNTERS = ("received", "dropped", "discarded", *REASONS)


def shared_memory(size: int) -> int:
    """Return a descriptor of `size` bytes of memory without a name, freed with the last process that has it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("rws-capture")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


class Counters:
    """Totals of a source in `shared_memory(Counters.SIZE)`, readable by both processes, kept when one is killed.

    Several threads of a process may count; two processes count under different names.
    """

    SIZE = 8 * len(COUNTERS)

    def __init__(self, descriptor: int) -> None:
        self._values = np.frombuffer(mmap.mmap(descriptor, self.SIZE), np.int64)
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> int:
        return int(self._values[COUNTERS.index(name)])

    def add(self, name: str, count: int = 1) -> int:
        """Count up; return the total before."""
        with self._lock:
            before = self[name]
            self._values[COUNTERS.index(name)] = before + count
        return before

    def snapshot(self) -> dict[str, int]:
        """Return all of them, read once; `received` last, so that what is being counted now is not missing there."""
        return {name: self[name] for name in (*COUNTERS[1:], "received")}

    @property
    def whole(self) -> int:
        """Frames received that were neither dropped nor rejected: delivered, or in transit."""
        values = self.snapshot()
        return 2 * values["received"] - sum(values.values())

    def drop_leftovers(self, delivered: int) -> None:
        """Count as dropped what was received but not delivered, dropped or rejected; only while no process captures."""
        self.add("discarded", self.whole - delivered)
