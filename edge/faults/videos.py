"""Video files for the drill: a real H.264 one, and what a bad transport makes of it."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from rws.edge.faults.stamp import scene


def encode_h264(path: Path, frames: int) -> None:
    """A real H.264 file of a moving scene, 320 x 240, with a key frame every 24 frames."""
    background = scene(240, 320 + frames)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if "libx264" in av.codecs_available else "h264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.options = {"g": "24", "preset": "veryfast", "crf": "20"}
        for number in range(frames):
            picture = np.ascontiguousarray(background[:, number : number + 320])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def flip_bytes(source: Path, target: Path, flips: int, seed: int, part: float = 0.9) -> None:
    """Copy a video with `flips` x 3 bytes changed in the first `part` of its pictures; its header is left alone."""
    data = bytearray(source.read_bytes())
    rng = np.random.default_rng(seed)
    start = data.find(b"mdat") + 1000
    for place in rng.integers(start, start + int((len(data) - start) * part), flips):
        data[place : place + 3] = bytes(byte ^ 0x5A for byte in data[place : place + 3])
    target.write_bytes(data)
