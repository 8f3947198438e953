"""Damaged H.264 streams: which visibly wrong frames pass, and which good ones are rejected."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TypedDict

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from rws.benchmarks.damage.faults import damage
from rws.benchmarks.damage.images import VISIBLE_DB, read_sheet
from rws.edge.sources.open import open_source
from rws.errors import RwsError

KINDS = ("lose", "flip", "cut", "swap", "zero")
PACKET, RATE, FRAMES = 188, 25, 80  # bytes of a TS packet; frames per second; frames


@dataclass(frozen=True)
class Encoding:
    """How a stream is made."""

    container: str
    options: Mapping[str, str]


_SMALL = {"g": "25", "preset": "veryfast", "crf": "23", "threads": "1"}
ENCODINGS = {
    "TS": Encoding("mpegts", {**_SMALL, "bf": "0"}),
    "TS, B-frames": Encoding("mpegts", {**_SMALL, "bf": "3"}),
    "TS, B-frames, open GOP": Encoding("mpegts", {**_SMALL, "bf": "3", "x264-params": "open-gop=1"}),
    "TS, intra refresh": Encoding("mpegts", {**_SMALL, "bf": "0", "x264-params": "intra-refresh=1"}),
    "MP4": Encoding("mp4", {**_SMALL, "bf": "0"}),
    "MP4, B-frames": Encoding("mp4", {**_SMALL, "bf": "3"}),
}


class StreamDamage(TypedDict):
    """What happened to the damaged streams of one encoding; `refused`: not opened or left with a typed error."""

    encoding: str
    streams: int
    refused: int
    errors: int
    wrong: int
    wrong_passed: int
    good: int
    good_rejected: int


def read_video(path: Path | None) -> list[NDArray[np.uint8]]:
    """Return 80 frames of a video, uint8 (180, 320, 3) RGB, or by default a camera's way across a sheet of images."""
    if path is None:
        sheet = read_sheet()
        return [np.ascontiguousarray(sheet[4 * n : 4 * n + 180, 4 * n : 4 * n + 320]) for n in range(FRAMES)]
    with open_source(path, latest=False) as source:
        return [np.asarray(cv2.resize(frame.image, (320, 180)), np.uint8) for frame in islice(source, FRAMES)]


def fuzz_streams(images: Sequence[NDArray[np.uint8]], count: int, seed: int, folder: Path) -> list[StreamDamage]:
    """Damage about `count` streams of the images, uint8 (H, W, 3) RGB, and read them; `folder` takes the files.

    `wrong`: frames below 25 dB against each undamaged frame; `good`: frames equal to an undamaged one.
    """
    rng = np.random.default_rng(seed)
    found = []
    for name, encoding in ENCODINGS.items():
        whole, hurt = folder / "whole", folder / "hurt"
        _encode(images, encoding, whole)
        clean, data = _Clean(_plain(whole)), whole.read_bytes()
        row = StreamDamage(
            encoding=name, streams=0, refused=0, errors=0, wrong=0, wrong_passed=0, good=0, good_rejected=0
        )
        for number in range(round(count / len(ENCODINGS))):
            kind = KINDS[number % len(KINDS)]
            start = len(data) // 10 // PACKET * PACKET
            damaged = data
            for _ in range(3 if kind == "flip" else 1):
                damaged = damage(damaged, kind, PACKET, start, rng)
            hurt.write_bytes(damaged)
            _play(hurt, clean, row)
        found.append(row)
    return found


class _Clean:
    """The frames of the undamaged stream."""

    def __init__(self, frames: Sequence[NDArray[np.uint8]]) -> None:
        self._frames, self._known = frames, {frame.tobytes() for frame in frames}
        self._small = np.stack([self._shrunk(frame) for frame in frames])

    def compare(self, image: NDArray[np.uint8]) -> str:
        """Return `good`, `wrong`, or "" if an image differs a little."""
        if image.tobytes() in self._known:
            return "good"
        if image.shape != self._frames[0].shape:
            return "wrong"
        nearest = np.argsort(((self._small - self._shrunk(image)) ** 2).sum(axis=(1, 2, 3)))[:3]
        return "" if max(cv2.PSNR(image, self._frames[n]) for n in nearest) >= VISIBLE_DB else "wrong"

    @staticmethod
    def _shrunk(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(cv2.resize(image, (40, 24), interpolation=cv2.INTER_AREA), np.float32)


def _play(path: Path, clean: _Clean, row: StreamDamage) -> None:
    """Read a stream with the runtime, and without its checks; add both to the row."""
    passed, row["streams"] = list[str](), row["streams"] + 1
    try:
        with open_source(path) as source:
            passed = [clean.compare(frame.image) for frame in source]
    except RwsError as error:
        row["refused"] += 1
        row["errors"] += "died" in str(error)
    except Exception:
        row["errors"] += 1
    decoded = [clean.compare(image) for image in _plain(path)]
    row["wrong"] += max(decoded.count("wrong"), passed.count("wrong"))
    row["wrong_passed"] += passed.count("wrong")
    row["good"] += decoded.count("good")
    row["good_rejected"] += max(0, decoded.count("good") - passed.count("good"))


def _plain(path: Path) -> list[NDArray[np.uint8]]:
    """Return all frames that FFmpeg gives, damaged or not."""
    images = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    continue
                rgb = (frame.reformat(format="rgb24", interpolation=Interpolation.FAST_BILINEAR) for frame in frames)
                images += [np.asarray(frame.to_ndarray(), np.uint8) for frame in rgb]
    except (av.error.FFmpegError, OSError, ValueError, IndexError):
        pass
    return images


def _encode(images: Sequence[NDArray[np.uint8]], encoding: Encoding, path: Path) -> None:
    # The index of an MP4 comes first, so that one that is cut can be opened.
    first = {"movflags": "faststart"} if encoding.container == "mp4" else {}
    with av.open(str(path), "w", format=encoding.container, container_options=first) as container:
        stream = container.add_stream("libx264", rate=RATE, options=dict(encoding.options))
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, RATE)
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
