"""The capture process: opens what it is told, decodes in one thread, and hands pictures over when it is asked.

It is asked and answers in lines of JSON on a socket that it inherits; the address of a stream, which may hold a
password, comes that way and so never stands in a list of processes. A picture lies in shared memory; where that is too
small, the descriptor of larger memory comes with the answer.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rws.edge.sources.capture.checks import FROZEN, FreezeDetector, picture_flaw
from rws.edge.sources.capture.decoders import CameraDecoder, Decoder, Picture, StreamDecoder
from rws.edge.sources.capture.shared import Counters, shared_memory
from rws.errors import SourceError, first_line

LIVE_BUFFER = 1  # pictures that wait at most; the freshest is all that a live stream is asked for
BUFFER = 4


class Grabber(threading.Thread):
    """Decodes an open source, judges each picture, and keeps the good ones until they are taken.

    Args:
        decoder: the open source.
        latest: whether a full buffer gives up its oldest picture (counted as dropped); otherwise decoding waits.
        freeze: tells frozen pictures; None where equal ones are as good as others.
        pace: play at the source's own rate, as if it were live.
        counters: where all pictures are counted.
    """

    def __init__(
        self, decoder: Decoder, *, latest: bool, freeze: FreezeDetector | None, pace: bool, counters: Counters
    ) -> None:
        super().__init__(daemon=True)
        self.reason: str | None = None
        self._decoder, self._latest, self._counters = decoder, latest, counters
        self._freeze = freeze
        self._period = 1 / decoder.fps if pace and decoder.fps else 0.0
        self._pictures: deque[tuple[NDArray[np.uint8], float, int]] = deque()
        self._capacity = LIVE_BUFFER if latest else BUFFER
        self._changed = threading.Condition()
        self._stopped = False

    def run(self) -> None:
        """Until the source ends: `reason` is then "" for a regular end, else what happened."""
        reason = ""
        try:
            due = time.monotonic()
            for picture in self._decoder:
                if self._period:
                    due += self._period
                    time.sleep(max(0.0, due - time.monotonic()))
                if not self._take(picture):
                    return
        except SourceError as error:
            reason = str(error)
        except Exception as error:
            reason = f"cannot be read ({type(error).__name__}: {first_line(error)})"
        finally:
            self._decoder.close()
            with self._changed:
                self.reason = reason
                self._changed.notify_all()

    def next(self, timeout: float) -> tuple[NDArray[np.uint8], float, int] | None:
        """The next picture: uint8 (H, W, 3) RGB, when it was captured, its number; None if none came in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._pictures or self.reason is not None, timeout)
            if not self._pictures:
                return None
            picture = self._pictures.popleft()
            self._changed.notify_all()
            return picture

    def stop(self) -> None:
        """Let go of the source after the picture in hand."""
        with self._changed:
            self._stopped = True
            self._counters.add("dropped", len(self._pictures))
            self._pictures.clear()
            self._changed.notify_all()

    def _take(self, picture: Picture) -> bool:
        index = self._counters.add("received")
        flaw = picture.flaw or ("" if picture.image is None else picture_flaw(picture.image))
        # Asked of every whole picture, so that one that is black for a while does not look like a change.
        if not flaw and picture.image is not None and self._freeze is not None:
            flaw = FROZEN if self._freeze.frozen(picture.image, picture.captured_at, picture.key) else ""
        if flaw or picture.image is None:
            self._counters.add(flaw)
            return not self._stopped
        with self._changed:
            if self._latest and len(self._pictures) >= self._capacity:
                self._pictures.popleft()
                self._counters.add("dropped")
            else:
                self._changed.wait_for(lambda: len(self._pictures) < self._capacity or self._stopped)
            if self._stopped:
                self._counters.add("dropped")
                return False
            at = time.monotonic() if self._period else picture.captured_at
            self._pictures.append((picture.image, at, index))
            self._changed.notify_all()
        return True


class Worker:
    """Answers the loop's questions, one at a time.

    Args:
        connection: a stream socket to the loop.
        counters: shared with the loop.
    """

    def __init__(self, connection: socket.socket, counters: Counters) -> None:
        self._connection, self._counters = connection, counters
        self._grabber: Grabber | None = None
        self._freeze: FreezeDetector | None = None
        self._question = 0
        self._memory: NDArray[np.uint8] = np.empty(0, np.uint8)

    def serve(self) -> None:
        """Until the loop closes the connection."""
        with self._connection.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                question = json.loads(line)
                self._question = question["id"]
                if question["ask"] == "open":
                    self._answer(self._open(question))
                else:
                    self._next()

    def _open(self, question: dict[str, Any]) -> dict[str, Any]:
        if self._grabber is not None:
            self._grabber.stop()
            self._grabber.join(timeout=2)
            if self._grabber.is_alive():
                os._exit(1)  # A driver does not let go of the source; a new process can.
            self._grabber = None
        try:
            decoder = _open_decoder(question)
        except SourceError as error:
            return {"ended": str(error)}
        if self._freeze is None:
            # Kept when the source is opened anew: what was frozen before and is the same now still is.
            self._freeze = FreezeDetector(question["freeze"])
        latest = question["latest"] if question["latest"] is not None else not decoder.finite
        self._grabber = Grabber(
            decoder,
            latest=latest,
            freeze=None if decoder.finite else self._freeze,
            pace=latest and decoder.finite,
            counters=self._counters,
        )
        self._grabber.start()
        return {"opened": {"fps": decoder.fps, "length": decoder.length, "finite": decoder.finite}}

    def _next(self) -> None:
        if self._grabber is None:
            self._answer({"ended": "is not open"})
            return
        while (picture := self._grabber.next(timeout=0.1)) is None:
            if self._grabber.reason is not None:
                self._answer({"ended": self._grabber.reason})
                return
            if select.select([self._connection], [], [], 0)[0]:
                return  # The loop has lost patience: another question, or the end.
        image, captured_at, index = picture
        answer = {"picture": {"shape": image.shape, "captured_at": captured_at, "index": index}}
        descriptor = self._make_room(image.nbytes)
        np.copyto(self._memory[: image.nbytes].reshape(image.shape), image)
        self._answer(answer, descriptor)

    def _make_room(self, size: int) -> int | None:
        if size <= len(self._memory):
            return None
        descriptor = shared_memory(size)
        self._memory = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
        return descriptor

    def _answer(self, answer: dict[str, Any], descriptor: int | None = None) -> None:
        line = json.dumps({"id": self._question, **answer}).encode() + b"\n"
        if descriptor is None:
            self._connection.sendall(line)
        else:
            socket.send_fds(self._connection, [line], [descriptor])
            os.close(descriptor)


def _open_decoder(question: dict[str, Any]) -> Decoder:
    if question["kind"] == "camera":
        return CameraDecoder(question["target"])
    return StreamDecoder(
        question["target"],
        network=question["kind"] == "network",
        timeout=question["timeout"],
        latest=question["latest"],
    )


def _die_with_the_loop(loop: int) -> None:
    """Whatever a driver does with the other threads: when the loop is gone, so is this process."""
    while os.getppid() == loop:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    """`worker.py SOCKET COUNTERS`: both are inherited file descriptors."""
    threading.Thread(target=_die_with_the_loop, args=(os.getppid(),), daemon=True).start()
    # Ctrl-C reaches every process of a terminal; the loop decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(ConnectionError):  # The loop was killed.
        Worker(connection, Counters(int(sys.argv[2]))).serve()
    # A decoder's thread that is blocked in a driver must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
