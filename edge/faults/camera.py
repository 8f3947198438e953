"""An MJPEG camera for a separate process: each picture carries the time at which it was sent."""

from __future__ import annotations

import sys
import time

from rws.edge.faults.servers import MjpegServer
from rws.edge.faults.stamp import BITS, encode_jpeg, scene, stamped


def milliseconds() -> int:
    """The system's monotonic clock, modulo what a stamp holds."""
    return int(time.monotonic() * 1e3) % (1 << BITS)


def age_ms(stamp: int) -> int:
    """How long ago the picture with that stamp was made."""
    return (milliseconds() - stamp) % (1 << BITS)


def main() -> None:
    """Serve images of 640 x 480 pixels, `sys.argv[1]` a second.

    Prints its address, serves until its standard input closes, and prints how many images it has sent.
    """
    scenes = [scene(480, 640, seed) for seed in range(8)]
    server = MjpegServer(lambda n: encode_jpeg(stamped(scenes[n % len(scenes)], milliseconds())), float(sys.argv[1]))
    print(server.url, flush=True)
    sys.stdin.read()
    server.close()
    print(server.number, flush=True)
