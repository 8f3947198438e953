"""Non-blocking console output: a terminal that is stopped with Ctrl-S does not stop the frame loop."""

import io
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TextIO

from rws.records import SinkStatus

MOST_WAITING = 256  # pieces of text


class LossyOutput(io.TextIOBase):
    """A text stream that a separate thread writes to another stream's file, or directly if it has no descriptor.

    If the queue is full and `lossy()` is true, the oldest text is dropped; otherwise writing waits. A context manager
    whose exit waits until the text is written, at most two seconds if text may be lost.
    """

    def __init__(self, stream: TextIO, lossy: Callable[[], bool]) -> None:
        self._stream, self._lossy = stream, lossy
        self._waiting: deque[str] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self.unread = False  # the reader of a pipe has gone
        self.sink_status = SinkStatus()  # in pieces of text
        try:
            self._descriptor: int | None = stream.fileno()
        except (OSError, ValueError):
            self._descriptor = None
        self._thread = threading.Thread(target=self._print, daemon=True)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the wrapped stream."""
        return self._stream.encoding or "utf-8"

    def isatty(self) -> bool:
        """Return whether the wrapped stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor of the wrapped stream."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Queue a piece of text; wait if the queue is full and no text may be lost."""
        if self._descriptor is None:
            return self._stream.write(text)
        with self._changed:
            while len(self._waiting) >= MOST_WAITING:
                if self._lossy():
                    self._waiting.popleft()
                    status = self.sink_status
                    self.sink_status = replace(status, accepted=status.accepted + 1, dropped=status.dropped + 1)
                else:
                    self._changed.wait()
            self._waiting.append(text)
            self._changed.notify_all()
        return len(text)

    def __enter__(self) -> "LossyOutput":
        self._stream.flush()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=2.0 if self._lossy() else None)

    def _print(self) -> None:
        # Not through the stream itself: the interpreter waits for its lock when it exits.
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                data = self._waiting.popleft().encode(self.encoding, "replace")
                self._changed.notify_all()
            error = self._written(data)
            with self._changed:
                self.sink_status = self.sink_status.after(error)

    def _written(self, data: bytes) -> str:
        """Write all of it; return why not, or "" for a reader that has gone: it wants no more."""
        assert self._descriptor is not None
        while data and not self.unread:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # a full pipe whose other users do not want to wait
                select.select([], [self._descriptor], [])
            except BrokenPipeError:
                self.unread = True
            except OSError as error:
                return f"cannot be written ({error.strerror})"
        return ""
