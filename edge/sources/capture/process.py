"""The loop's side of a capture process: start it, ask it, and kill it when it does not answer."""

import contextlib
import logging
import math
import mmap
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rws.edge.common.child import child_environment
from rws.edge.sources.capture.protocol import CaptureSettings, Ended, FrameReady, Message, Next, Opened, decode, encode
from rws.edge.sources.capture.shared import Counters, shared_memory
from rws.errors import SourceError
from rws.records import Frame
from rws.text import shown

log = logging.getLogger(__name__)

_STUCK = "the capture process is stuck in a driver and cannot be killed; restart the machine"
_LAST_WORD = 2.0  # seconds that a process may take to end, or to complete an answer
_WORKER = Path(__file__).with_name("worker.py")

# Starts a capture process with the descriptor of its counters; returns it and a stream socket to it.
Start = Callable[[int], tuple[subprocess.Popen[bytes], socket.socket]]


def start_worker(counters: int, stdin: int = subprocess.DEVNULL) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start `worker.py`, with `stdin` as its standard input; see `Start`.

    A `SourceError` on Windows, an OSError if descriptors or memory are short.
    """
    if os.name == "nt":
        raise SourceError("cameras, videos and streams need Linux or macOS; folders of images can be read here")
    ours, theirs = socket.socketpair()
    descriptors = (theirs.fileno(), counters)
    env = child_environment() | {
        # The worker imports what this process imports, and nothing from the working directory.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONSAFEPATH": "1",
        "OPENCV_FFMPEG_LOGLEVEL": "-8",
        "OPENCV_LOG_LEVEL": "SILENT",
        # Each time it is reopened, new threads decode; glibc would keep the memory of many for each of them.
        "MALLOC_ARENA_MAX": "2",
    }
    # In a new session: Ctrl-C in a terminal is for the loop alone.
    command = [sys.executable, str(_WORKER), *map(str, descriptors)]
    try:
        process = subprocess.Popen(command, pass_fds=descriptors, env=env, stdin=stdin, start_new_session=True)
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, ours


class CaptureProcess:
    """A process that captures. Call `open` once, then `ask` for each frame; `answer` waits for each answer."""

    def __init__(self, settings: CaptureSettings, start: Start | None = None) -> None:
        # A pipe that this process has inherited is the standard input of the other one.
        piped = settings.kind == "pipe" and isinstance(settings.target, int)
        self.settings = settings
        self._start = start or (partial(start_worker, stdin=int(settings.target)) if piped else start_worker)
        self._counters_descriptor = shared_memory(Counters.SIZE)
        self.counters = Counters(self._counters_descriptor)  # over all processes of this object
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._unread = b""
        self._memory: NDArray[np.uint8] | None = None
        self._question, self._said = 0, set[str]()
        self._stuck: subprocess.Popen[bytes] | None = None
        self._why_not = ""  # why no process runs

    @property
    def pid(self) -> int | None:
        """The ID of the running capture process, or None."""
        return None if self._process is None else self._process.pid

    def open(self) -> None:
        """Ask to open the source, and start a process if none runs; `answer` then returns `Opened` or `Ended`."""
        if self._process is None or self._process.poll() is not None:
            self.kill()
            if self._stuck is None or self._stuck.poll() is not None:
                try:
                    self._process, self._connection = self._start(self._counters_descriptor)
                    self._connection.settimeout(_LAST_WORD)
                except OSError as error:
                    self._why_not = f"the capture process cannot be started: {error.strerror or error}"
        self._send(self.settings)

    def ask(self) -> None:
        """Ask for the next frame; `answer` then returns a `Frame` or `Ended`."""
        self._send(Next())

    def answer(self, timeout: float) -> Opened | Frame | Ended | None:
        """Return the answer to the last question, or None if none has come after `timeout` seconds."""
        if self._connection is None:
            stuck = self._stuck is not None and self._stuck.poll() is None
            return Ended(_STUCK if stuck else self._why_not or "the capture process is not running")
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        if b"\n" not in self._unread and not poll.poll(timeout * 1e3):
            return None
        line = self._read_line(self._connection)
        if line is None:
            return self._died()
        question, message = decode(line)
        if question != self._question:
            # The answer to a question that the loop no longer waits for.
            self.counters.add("discarded", isinstance(message, FrameReady))
            return None
        if isinstance(message, FrameReady):
            for remark in message.remarks:
                if remark not in self._said:
                    self._said.add(remark)
                    log.warning("%s: %s", self.settings.name, remark)
            shape = (message.height, message.width, 3)
            if self._memory is None or self._memory.size < math.prod(shape):
                self.kill()
                return Ended("the memory of a frame cannot be opened: descriptors or memory are short")
            image: NDArray[np.uint8] = self._memory[: math.prod(shape)].reshape(shape).copy()
            return Frame(message.index, image, message.captured_at, self.settings.name, message.media_time)
        if isinstance(message, Ended):
            # Libraries repeat the address in their messages.
            reason, target = message.reason, self.settings.target
            named = reason.replace(target, self.settings.name) if isinstance(target, str) else reason
            return replace(message, reason=shown(named))
        assert isinstance(message, Opened)
        return message

    def kill(self) -> None:
        """End the process, whatever it is doing; `Counters.drop_leftovers` counts the frames that it still held."""
        if self._process is not None:
            self._process.kill()
            try:
                self._process.wait(_LAST_WORD)
            except subprocess.TimeoutExpired:
                log.warning("the capture process %d is stuck in a driver and cannot be killed", self._process.pid)
                self._stuck = self._process
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._unread, self._memory = b"", None

    def close(self) -> None:
        """Kill the process and release memory and descriptors; the counters stay readable."""
        self.kill()
        if self._counters_descriptor >= 0:
            os.close(self._counters_descriptor)
            self._counters_descriptor = -1

    def _send(self, question: Message) -> None:
        self._question += 1
        # If the process has died, `answer` reports it.
        with contextlib.suppress(OSError):
            if self._connection is not None:
                self._connection.sendall(encode(self._question, question))

    def _read_line(self, connection: socket.socket) -> bytes | None:
        while b"\n" not in self._unread:
            try:
                data, descriptors, _, _ = socket.recv_fds(connection, 65536, 1)
            except OSError:
                return None
            if not data:
                return None
            self._unread += data
            for descriptor in descriptors:
                with contextlib.suppress(OSError):  # `answer` reports what is missing
                    self._memory = np.frombuffer(mmap.mmap(descriptor, os.fstat(descriptor).st_size), np.uint8)
                os.close(descriptor)
        line, self._unread = self._unread.split(b"\n", 1)
        return line

    def _died(self) -> Ended:
        assert self._process is not None
        try:
            code = self._process.wait(_LAST_WORD)
            reason = f"died (signal {-code})" if code < 0 else f"died (exit code {code})"
        except subprocess.TimeoutExpired:
            reason = "exited while sending an answer"
        self.kill()
        return Ended(f"the capture process {reason}")
