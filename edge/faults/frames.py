"""Frames that carry their own number, so that the drill can follow each, and a real H.264 file, damaged."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

BITS, CELL = 24, 16


def stamped(image: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """Return the image, uint8 (H ≥ 32, W ≥ 384, 3), with `number`, 0…2²⁴ − 1, as black and white squares on top."""
    marked: NDArray[np.uint8] = image.copy()
    bits = np.array([(number >> bit) & 1 for bit in range(BITS)], np.uint8) * 255
    # The second row is the first one's negative: anything else is not a stamp.
    squares = np.kron(np.stack([bits, 255 - bits]), np.ones((CELL, CELL), np.uint8))
    marked[: 2 * CELL, : BITS * CELL] = squares[..., None]
    return marked


def read_stamp(image: NDArray[np.uint8]) -> int | None:
    """Return the number that an image, uint8 (H, W, 3), carries; None if it carries none that can be read."""
    if image.shape[0] < 2 * CELL or image.shape[1] < BITS * CELL:
        return None
    cells = image[: 2 * CELL, : BITS * CELL].mean(axis=2).reshape(2, CELL, BITS, CELL).mean(axis=(1, 3))
    if not (np.abs(cells[0] - cells[1]) > 100).all():
        return None
    return int(sum(1 << bit for bit in range(BITS) if cells[0, bit] > cells[1, bit]))


def scene(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return an image with soft shapes and the grain of a sensor, uint8 (height, width, 3), RGB."""
    rng = np.random.default_rng(seed)
    soft = cv2.resize(rng.integers(40, 216, (6, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    grain = rng.integers(-6, 7, (height, width, 3), np.int16)
    return np.asarray(np.clip(soft.astype(np.int16) + grain, 0, 255), np.uint8)


def encode_jpeg(image: NDArray[np.uint8], quality: int = 90) -> bytes:
    """Encode an RGB image, uint8 (H, W, 3), as JPEG; `quality` is 0…100."""
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1])


def encode_h264(path: Path, frames: int) -> None:
    """Write a real H.264 file of a moving scene, 320 x 240, with a key frame every 24 frames."""
    encode_video(path, frames, options={"g": "24", "preset": "veryfast", "crf": "20"})


def encode_video(
    path: Path,
    frames: int,
    time: Callable[[int], float] | None = None,
    *,
    codec: str = "libx264" if "libx264" in av.codecs_available else "h264",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> None:
    """Write a video of a moving scene, 320 x 240, in the format that the path's suffix names.

    `time(n)`: when the n-th frame is shown, seconds; None: 25 per second.
    """
    background = scene(240, 320 + frames)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=25, options=options or {}))
        stream.width, stream.height = 320, 240
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if time is not None:
            stream.codec_context.time_base = Fraction(1, 60_000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(background[:, number : number + 320]), "rgb24")
            if time is not None:
                frame.pts, frame.time_base = round(60_000 * time(number)), Fraction(1, 60_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def without_rate(webm: bytes) -> bytes:
    """Return a WebM file as browsers record it: its frames' duration (Matroska's DefaultDuration) is left out."""
    place = webm.find(b"\x23\xe3\x83\x84")
    return webm[:place] + b"\xec\x86" + webm[place + 2 :]


def flip_bytes(source: Path, target: Path, flips: int, seed: int, part: float = 0.9) -> None:
    """Copy a video with `flips` x 3 bytes changed in the first `part` of its frames; its header is left alone."""
    data = bytearray(source.read_bytes())
    rng = np.random.default_rng(seed)
    start = data.find(b"mdat") + 1000
    for place in rng.integers(start, start + int((len(data) - start) * part), flips):
        data[place : place + 3] = bytes(byte ^ 0x5A for byte in data[place : place + 3])
    target.write_bytes(data)
