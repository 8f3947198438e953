"""Watches the folder of the bundle that runs, and prepares a new bundle while the old one goes on running."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import BundleFiles, read_signed
from rws.edge.bundle.examine import Examination, StoppedError
from rws.edge.bundle.keys import TrustedKeys
from rws.edge.bundle.manifest import FOLDER
from rws.edge.common.closing import Closing
from rws.edge.common.confine import Limits
from rws.errors import BundleError, first_line

T = TypeVar("T")


class BundleWatcher(Closing, Generic[T]):
    """Reloads a bundle when it has changed. A context manager that stops at its exit.

    Create it before you load the bundle that will run; it then notices a change in between.
    `poll` looks at the folder, at most once per `interval`, in seconds. If the folder differs from what runs, and then
    stays the same for one interval (files may be copied one by one), a thread reads it once and has it examined in a
    child process (see `Examination`, which takes `limits`). Of the bytes that were examined, and of no others, it then
    calls `build`, which makes what the caller needs of a bundle, tested and ready to run. If the folder changes
    meanwhile, the examination ends, and the newer bundle is next. What cannot be loaded or built is counted, and not
    tried again until something in the folder changes; the old one continues.
    `failures` counts changes that could not be loaded; `error` is why the last could not, in one line, or "".
    """

    def __init__(
        self,
        path: str | Path,
        build: Callable[[Bundle], T],
        *,
        keys: TrustedKeys | None = None,
        interval: float = 1.0,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.interval = Path(path), interval
        self.failures, self.error = 0, ""
        self._build, self._keys, self._clock, self._limits = build, keys, clock, limits
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._examination: Examination | None = None  # while one runs
        self._closed = False
        self._ready: list[T] = []
        self._seen = self._handled = _state(self.path)
        self._running = _signed(self.path)
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

    def close(self, timeout: float = 20.0) -> None:
        """Stop, end an examination at once, and discard what is being built, after at most `timeout` seconds."""
        with self._lock:
            self._closed = True
            self._ready.clear()
        self._stop_examining()
        if self._thread is not None:
            self._thread.join(timeout)

    def _look(self) -> None:
        state = _state(self.path)
        settled, self._seen = state == self._seen, state
        if self._closed or state == self._handled:
            return
        if self._thread is not None and self._thread.is_alive():
            if self._stop_examining():
                self._handled = []  # whatever is there next is to be examined
        elif settled:
            self._handled = state
            self._thread = threading.Thread(target=self._load, name=f"loads {self.path}", daemon=True)
            self._thread.start()

    def _stop_examining(self) -> bool:
        with self._lock:
            examination = self._examination
        if examination is not None:
            examination.stop()
        return examination is not None

    def _load(self) -> None:
        try:
            built = self._examined()
        except StoppedError:
            pass
        except Exception as error:
            with self._lock:
                self.failures += 1
                self.error = first_line(error)
        else:
            with self._lock:
                self.error = ""
                if built is not None and not self._closed:
                    self._ready = [built]

    def _examined(self) -> T | None:
        """Return what is built of the bundle that is there now, or None if it runs already."""
        if _signed(self.path) == self._running is not None:
            return None
        files = BundleFiles.read(self.path, self._keys)
        examination = Examination(files, self._limits)
        with self._lock:
            self._examination = examination
            if self._closed:
                examination.stop()
        try:
            examination.run()
        finally:
            with self._lock:
                self._examination = None
        built = self._build(Bundle.parse(files))
        self._running = files.document, files.maker_signature
        return built


def _state(path: Path) -> list[tuple[int, ...]]:
    """Tell states of a folder apart without reading it: inode, time of change and size of each file, () if absent."""
    found: list[tuple[int, ...]] = []
    for name in FOLDER:
        try:
            status = os.stat(path / name)
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            found.append(())
    return found


def _signed(path: Path) -> tuple[bytes, bytes] | None:
    try:
        return read_signed(path)
    except BundleError:
        return None
