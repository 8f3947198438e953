"""The loop's side of a capture process: start it, ask it, and kill it when it does not answer."""

from __future__ import annotations

import json
import logging
import mmap
import os
import select
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rws.edge.sources.capture.shared import Counters, shared_memory
from rws.errors import SourceError

log = logging.getLogger(__name__)

_NOT_RUNNING = "the capture process is not running"
_LAST_WORD = 2.0  # seconds that a process which is at its end, or within an answer, may take
_WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class CaptureSettings:
    """What to open and how.

    Args:
        target: a camera's index or device, a GStreamer pipeline, a path or a URL.
        kind: `camera` (OpenCV), `file` or `network` (PyAV).
        latest: give the freshest picture and drop the others; False gives each; None: each of what has an end.
        timeout: seconds after which opening a connection is given up.
        freeze: seconds after which equal pictures of a live source count as frozen.
    """

    target: int | str
    kind: Literal["camera", "file", "network"]
    latest: bool | None = None
    timeout: float = 10.0
    freeze: float = 2.0


@dataclass(frozen=True)
class Opened:
    """The source is open: frames a second and number of frames as declared, and whether its end is no failure."""

    fps: float | None
    length: int | None
    finite: bool


@dataclass(frozen=True)
class Captured:
    """A good picture: uint8 (H, W, 3) RGB, when it arrived (monotonic seconds), and its number among all received."""

    image: NDArray[np.uint8]
    captured_at: float
    index: int


@dataclass(frozen=True)
class Ended:
    """No more pictures, or none at all because it could not be opened; `reason` is "" for a regular end."""

    reason: str


Answer = Opened | Captured | Ended


class CaptureProcess:
    """A process that captures. One question at a time: `open` once, then `ask` for each picture; `answer` waits.

    Args:
        settings: what it opens.

    Attributes:
        counters: of everything that came, over all processes of this object.
    """

    def __init__(self, settings: CaptureSettings) -> None:
        self._settings = settings
        self._counters_descriptor = shared_memory(Counters.SIZE)
        self.counters = Counters(self._counters_descriptor)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._received = b""
        self._memory: NDArray[np.uint8] | None = None
        self._question = 0
        self._stuck: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that runs, else None."""
        return None if self._process is None else self._process.pid

    def open(self) -> None:
        """Ask to open the source, in a process that is started where none runs; `Opened` or `Ended` answers."""
        if self._process is None or self._process.poll() is not None:
            self.kill()
            if self._stuck is None or self._stuck.poll() is not None:
                self._start()
        self._send({"ask": "open", **asdict(self._settings)})

    def ask(self) -> None:
        """Ask for the next picture; `Captured` or `Ended` answers."""
        self._send({"ask": "next"})

    def answer(self, timeout: float) -> Answer | None:
        """The answer to the last question, or None if none has come after `timeout` seconds."""
        if self._connection is None:
            stuck = self._stuck is not None and self._stuck.poll() is None
            return Ended("a driver holds the capture process for ever; restart the machine" if stuck else _NOT_RUNNING)
        if b"\n" not in self._received and not _readable(self._connection, timeout):
            return None
        line = self._read_line()
        if line is None:
            return self._died()
        message = json.loads(line)
        if message["id"] != self._question:
            # It answers what was asked before the loop lost patience.
            self.counters.add("discarded", "picture" in message)
            return None
        if "opened" in message:
            return Opened(**message["opened"])
        if "picture" in message:
            picture = message["picture"]
            return Captured(self._copy(picture["shape"]), picture["captured_at"], picture["index"])
        return Ended(message["ended"])

    def kill(self) -> None:
        """End the process, whatever it is doing; pictures that it still held count as dropped by `settle`."""
        if self._process is not None:
            self._process.kill()
            try:
                self._process.wait(_LAST_WORD)
            except subprocess.TimeoutExpired:
                log.warning("the capture process %d is stuck in a driver and does not die", self._process.pid)
                self._stuck = self._process
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._received, self._memory = b"", None

    def settle(self, delivered: int) -> None:
        """While no process captures: what was received, but not delivered, dropped or rejected, is dropped."""
        self.counters.add("discarded", self.counters.whole - delivered)

    def close(self) -> None:
        """Kill, and give back what is held; the counters stay readable."""
        self.kill()
        if self._counters_descriptor >= 0:
            os.close(self._counters_descriptor)
            self._counters_descriptor = -1

    def _start(self) -> None:
        if os.name == "nt":
            raise SourceError("cameras, videos and streams need Linux or macOS; folders of images can be read here")
        ours, theirs = socket.socketpair()
        descriptors = (theirs.fileno(), self._counters_descriptor)
        environment = os.environ | {
            # The worker imports what this process imports, and nothing that lies in the working directory.
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONSAFEPATH": "1",
            "OPENCV_FFMPEG_LOGLEVEL": "-8",
            "OPENCV_LOG_LEVEL": "SILENT",
        }
        # A session of its own: Ctrl-C in a terminal is for the loop alone.
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), *map(str, descriptors)],
            pass_fds=descriptors,
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        ours.settimeout(_LAST_WORD)
        self._connection = ours

    def _send(self, question: dict[str, object]) -> None:
        self._question += 1
        try:
            if self._connection is not None:
                self._connection.sendall(json.dumps({"id": self._question, **question}).encode() + b"\n")
        except OSError:
            pass  # It has died; `answer` says so.

    def _read_line(self) -> bytes | None:
        assert self._connection is not None
        while b"\n" not in self._received:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._connection, 65536, 1)
            except OSError:
                return None
            if not data:
                return None
            self._received += data
            for descriptor in descriptors:
                self._memory = np.frombuffer(mmap.mmap(descriptor, os.fstat(descriptor).st_size), np.uint8)
                os.close(descriptor)
        line, self._received = self._received.split(b"\n", 1)
        return line

    def _copy(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        assert self._memory is not None
        picture: NDArray[np.uint8] = self._memory[: int(np.prod(shape))].reshape(shape).copy()
        return picture

    def _died(self) -> Ended:
        assert self._process is not None
        try:
            code = self._process.wait(_LAST_WORD)
        except subprocess.TimeoutExpired:
            self.kill()
            return Ended("the capture process broke off in the middle of an answer")
        self.kill()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Ended(f"the capture process died ({how})")


def _readable(connection: socket.socket, timeout: float) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(timeout * 1e3))
