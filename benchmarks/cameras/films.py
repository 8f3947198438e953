"""Cameras in different weather, served as MJPEG over HTTP by a separate process; one of them may misbehave."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rws.benchmarks.demo.camera import CLIP
from rws.edge.faults.frames import encode_jpeg
from rws.edge.faults.servers import Camera, MjpegServer
from rws.edge.sources.open import open_source
from rws.training.corruptions.frames import corrupter

WEATHER = ("", "fog:3", "rain:3", "low_light:3", "snow:3", "gaussian_noise:3", "lens_dirt:3", "motion_blur:3")
SIZE = (640, 480)
FRAMES = 25  # of each film, after which it begins again
AFTER = 3.0  # seconds from the first image until the camera misbehaves
FLOOD_FPS = 200.0
FAULTS = ("none", "kill", "hang", "flood", "resize", "corrupt")


def film(weather: str, frames: int = FRAMES) -> list[NDArray[np.uint8]]:
    """Return frames of the demo's street in weather (`TYPE:SEVERITY`, or "" for none), uint8 (480, 640, 3), RGB."""
    change = corrupter(weather, seed=0) if weather else lambda image, index: image
    with open_source(CLIP) as source:
        images = [cv2.resize(frame.image, SIZE) for frame, _ in zip(source, range(4 * frames), strict=False)][::4]
    return [np.asarray(change(np.asarray(image, np.uint8), index), np.uint8) for index, image in enumerate(images)]


def misbehaving(jpegs: list[bytes], fault: str) -> Camera:
    """Return a camera that after `AFTER` seconds sends nothing (`hang`), other sizes, or torn images (`corrupt`)."""
    began: list[float] = []
    small = encode_jpeg(np.full((240, 320, 3), 90, np.uint8))

    def image(number: int) -> bytes | None:
        began.append(time.monotonic()) if not began else None
        jpeg = jpegs[number % len(jpegs)]
        if time.monotonic() - began[0] < AFTER:
            return jpeg
        faulty: dict[str, bytes | None] = {"hang": None, "corrupt": jpeg[: len(jpeg) // 2], "resize": small}
        return faulty.get(fault, jpeg) if fault != "resize" or number % 2 else jpeg

    return image


def main() -> None:
    """Serve the films in the folder argv[1] at argv[2] images a second; the last camera has the fault argv[3].

    Prints a line: the addresses, as JSON. Ends with its standard input.
    """
    folder, fps, fault = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    films = [[encode_jpeg(image) for image in np.load(path)] for path in sorted(folder.glob("*.npy"))]
    with ExitStack() as stack:
        servers = []
        for number, jpegs in enumerate(films):
            last = number == len(films) - 1
            rate = FLOOD_FPS if last and fault == "flood" else fps
            camera: Camera = misbehaving(jpegs, fault) if last else _playing(jpegs)
            servers.append(stack.enter_context(MjpegServer(camera, rate)))
        print(json.dumps([server.url for server in servers]), flush=True)
        if fault == "kill":
            while not servers[-1].sent:
                time.sleep(0.05)
            time.sleep(AFTER)
            servers[-1].close()
        sys.stdin.read()


def _playing(jpegs: list[bytes]) -> Callable[[int], bytes | None]:
    return lambda number: jpegs[number % len(jpegs)]
