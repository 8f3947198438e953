"""Memory that the capture process and the loop share: the current frame, and counters that outlive a kill.

On Linux it is anonymous memory with a file descriptor, which no crash can leave behind; elsewhere an unlinked file.
"""

import mmap
import os
import tempfile
import threading

import numpy as np

from rws.edge.sources.capture.decoding.checks import REASONS

# Only `discarded` is written by the loop; the capture process writes the others, so each number has one writer.
COUNTERS = ("received", "dropped", "discarded", *REASONS)


def shared_memory(size: int) -> int:
    """Return a descriptor of `size` bytes of memory without a name, freed when the last process that has it ends."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("rws-capture")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


class Counters:
    """Totals of a source in `shared_memory(Counters.SIZE)`, readable by both processes, kept when one is killed.

    Several threads of a process may count; each of two processes has its own names.
    """

    SIZE = 8 * len(COUNTERS)

    def __init__(self, descriptor: int) -> None:
        self._values = np.frombuffer(mmap.mmap(descriptor, self.SIZE), np.int64)
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> int:
        return int(self._values[COUNTERS.index(name)])

    def add(self, name: str, count: int = 1) -> int:
        """Add to a counter; return its total before."""
        with self._lock:
            before = self[name]
            self._values[COUNTERS.index(name)] = before + count
        return before

    def snapshot(self) -> dict[str, int]:
        """Return all counters; `received` is read last, so that it covers the other counters."""
        return {name: self[name] for name in (*COUNTERS[1:], "received")}

    @property
    def whole(self) -> int:
        """Frames received that were neither dropped nor rejected: delivered, or still in the process."""
        values = self.snapshot()
        return 2 * values["received"] - sum(values.values())

    def drop_leftovers(self, delivered: int) -> None:
        """Count frames as dropped that were received and nothing else; call it only while no process captures."""
        self.add("discarded", self.whole - delivered)
