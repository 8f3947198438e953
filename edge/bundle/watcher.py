"""Watches the folder of the bundle that runs, and prepares a new bundle while the old one goes on running."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import LARGEST_MANIFEST
from rws.edge.bundle.manifest import FILES, MANIFEST
from rws.edge.common.closing import Closing
from rws.edge.common.files import read_regular
from rws.errors import first_line

T = TypeVar("T")


class BundleWatcher(Closing, Generic[T]):
    """Reloads a bundle when it has changed. A context manager that stops at its exit.

    Create it before you load the bundle that will run; it then notices a change in between.
    `poll` looks at the folder, at most once per `interval`, in seconds. If the folder differs from what runs, and then
    stays the same for one interval (files may be copied one by one), a thread calls `build`, which makes what the
    caller needs of a bundle, tested and ready to run. What cannot be loaded or built is counted, and not tried again
    until something in the folder changes; the old one continues.
    `failures` counts changes that could not be loaded; `error` is why the last could not, in one line, or "".
    """

    def __init__(
        self,
        path: str | Path,
        build: Callable[[Bundle], T],
        *,
        interval: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.interval = Path(path), interval
        self.failures, self.error = 0, ""
        self._build, self._clock = build, clock
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._ready: list[T] = []
        self._seen = self._handled = _state(self.path)
        self._running = _manifest(self.path)
        self._next = clock() + interval

    def poll(self) -> T | None:
        """Return what was built of a new bundle, once; else None. Cheap, it usually only reads the clock."""
        with self._lock:
            ready = self._ready.pop() if self._ready else None
        now = self._clock()
        if now >= self._next:
            self._next = now + self.interval
            self._look()
        return ready

    def close(self, timeout: float = 5.0) -> None:
        """Stop, and discard what is being loaded, after at most `timeout` seconds."""
        with self._lock:
            self._closed = True
            self._ready.clear()
        if self._thread is not None:
            self._thread.join(timeout)

    def _look(self) -> None:
        state = _state(self.path)
        settled, self._seen = state == self._seen, state
        loading = self._thread is not None and self._thread.is_alive()
        if not settled or state == self._handled or self._closed or loading:
            return
        self._handled = state
        manifest = _manifest(self.path)
        if manifest is not None and manifest == self._running:
            self.error = ""
            return
        self._thread = threading.Thread(target=self._load, args=(manifest,), name=f"loads {self.path}", daemon=True)
        self._thread.start()

    def _load(self, manifest: bytes | None) -> None:
        try:
            built = self._build(Bundle.load(self.path))
        except Exception as error:
            with self._lock:
                self.failures += 1
                self.error = first_line(error)
        else:
            with self._lock:
                self.error = ""
                self._running = manifest
                if not self._closed:
                    self._ready = [built]


def _state(path: Path) -> list[tuple[int, ...]]:
    """Tell states of a folder apart without reading it: inode, time of change and size of each file, () if absent."""
    found: list[tuple[int, ...]] = []
    for name in (MANIFEST, *FILES):
        try:
            status = os.stat(path / name)
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            found.append(())
    return found


def _manifest(path: Path) -> bytes | None:
    try:
        return read_regular(path / MANIFEST, LARGEST_MANIFEST, follow=False)
    except OSError:
        return None
