"""The capture process: opens a source and sends its frames on request, on a socket that it inherits.

The address, which may contain a password, comes through the socket too: no list of processes shows it. Frames are in
shared memory; if that is too small, the descriptor of larger memory comes with the answer.
"""

import contextlib
import mmap
import os
import resource
import select
import signal
import socket
import sys
import threading
import time

import numpy as np
from numpy.typing import NDArray

from rws.edge.common.resources import return_memory
from rws.edge.sources.capture.decoding.base import Decoder
from rws.edge.sources.capture.decoding.camera import CameraDecoder
from rws.edge.sources.capture.decoding.checks import FROZEN, HALF, FlawCheck, FreezeDetector
from rws.edge.sources.capture.decoding.opening import is_one_image, open_container
from rws.edge.sources.capture.decoding.snapshot import SnapshotDecoder
from rws.edge.sources.capture.decoding.stream import StreamDecoder
from rws.edge.sources.capture.grabber import OUT_OF_MEMORY, Grabber
from rws.edge.sources.capture.protocol import CaptureSettings, Ended, FrameReady, Message, Opened, decode, encode
from rws.edge.sources.capture.shared import Counters, shared_memory
from rws.edge.sources.capture.stall import FREEZE_SECONDS, OPEN_TIMEOUT
from rws.errors import SourceError

LEAST_MEMORY, MOST_MEMORY = 2**30, 3 * 2**30  # bytes of data that the process may use; half of the machine's


class Worker:
    """Answers the loop's questions, one at a time, on a stream socket."""

    def __init__(self, connection: socket.socket, counters: Counters) -> None:
        self._connection, self._counters = connection, counters
        self._grabber: Grabber | None = None
        self._decoder: Decoder | None = None  # the last one
        self._scan = False  # whether the next one is to look for JPEGs
        # Kept when the source is reopened: what was frozen before and is the same now still is.
        self._freeze = FreezeDetector(FREEZE_SECONDS)
        self._flaws: FlawCheck | None = None
        self._question = 0
        self._memory: NDArray[np.uint8] = np.empty(0, np.uint8)

    def serve(self) -> None:
        """Answer until the loop closes the connection."""
        with self._connection.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                self._question, question = decode(line)
                if isinstance(question, CaptureSettings):
                    self._answer(self._open(question))
                else:
                    self._next()

    def _open(self, settings: CaptureSettings) -> Opened | Ended:
        if self._grabber is not None:
            self._grabber.stop()
            self._grabber.join(timeout=2)
            if self._grabber.is_alive():
                os._exit(1)  # A driver does not release the source; a new process can open it.
            self._grabber = None
        if self._decoder is not None:
            self._scan = isinstance(self._decoder, StreamDecoder) and self._decoder.malformed
        self._decoder = None
        return_memory()  # a decoder that was lost refers to itself through its error, and holds megabytes
        try:
            decoder = self._decoder = _decoder_of(settings, self._scan)
        except MemoryError:
            return Ended(OUT_OF_MEMORY)
        except SourceError as error:
            return Ended(str(error))
        latest = settings.latest if settings.latest is not None else not decoder.finite
        accept = [*settings.accept.split(","), *([HALF] if decoder.tells_damage else [])]
        still = decoder.finite or isinstance(decoder, SnapshotDecoder) or FROZEN in accept
        self._freeze.reopened()
        # A decoder that tells damage needs no guess from a grey bar.
        self._flaws = self._flaws or FlawCheck(accept)
        self._grabber = Grabber(
            decoder,
            latest=latest,
            flaws=self._flaws,
            freeze=None if still else self._freeze,
            pace=decoder.finite and latest,
            counters=self._counters,
        )
        self._grabber.start()
        return Opened(decoder.fps, decoder.length, decoder.finite, decoder.bursts)

    def _next(self) -> None:
        if self._grabber is None:
            self._answer(Ended("is not open"))
            return
        while (grabbed := self._grabber.next(timeout=0.1)) is None:
            if self._grabber.reason is not None:
                self._answer(Ended(self._grabber.reason, self._grabber.media_end))
                return
            if select.select([self._connection], [], [], 0)[0]:
                return  # The loop no longer waits: it has sent another question, or has ended.
        index, frame = grabbed
        image, descriptor = frame.image, None
        if image.nbytes > len(self._memory):
            descriptor = shared_memory(image.nbytes)
            self._memory = np.frombuffer(mmap.mmap(descriptor, image.nbytes), np.uint8)
        np.copyto(self._memory[: image.nbytes].reshape(image.shape), image)
        height, width, _ = image.shape
        assert self._decoder is not None
        assert self._flaws is not None
        remarks = [*filter(None, (self._decoder.remark, self._flaws.remark))]
        self._answer(FrameReady(height, width, frame.captured_at, index, frame.media_time, remarks), descriptor)

    def _answer(self, answer: Message, descriptor: int | None = None) -> None:
        line = encode(self._question, answer)
        if descriptor is None:
            self._connection.sendall(line)
        else:
            socket.send_fds(self._connection, [line], [descriptor])
            os.close(descriptor)


def _decoder_of(settings: CaptureSettings, scan: bool) -> Decoder:
    if settings.kind == "camera":
        return CameraDecoder(settings)
    container = open_container(settings, OPEN_TIMEOUT, scan)
    if settings.kind == "network" and is_one_image(container):
        container.close()
        return SnapshotDecoder(settings, OPEN_TIMEOUT)
    return StreamDecoder(container, settings)


def _limit_memory() -> None:
    """Let an allocation fail rather than the machine, whatever size a stream asks for."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # macOS may know no such limit.
    with contextlib.suppress(ValueError, OSError):
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (max(LEAST_MEMORY, min(MOST_MEMORY, machine // 2)), most))


def _die_with_the_loop(loop: int) -> None:
    while os.getppid() == loop:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    """Run `worker.py SOCKET COUNTERS`: both are inherited file descriptors."""
    # Drivers and decoders print what cameras send, escape sequences too; a traceback of ours is still printed.
    sys.stderr = os.fdopen(os.dup(2), "w")
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    _limit_memory()
    threading.Thread(target=_die_with_the_loop, args=(os.getppid(),), daemon=True).start()
    # Ctrl-C reaches every process of a terminal; the loop decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ConnectionError):  # The loop was killed.
        Worker(socket.socket(fileno=int(sys.argv[1])), Counters(int(sys.argv[2]))).serve()
    # A decoder's thread that is blocked in a driver must not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
