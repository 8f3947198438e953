"""Damaged H.264 streams: which visibly wrong frames pass, and which good ones are rejected."""

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from rws.benchmarks.common.tables import Record
from rws.benchmarks.damage.faults import damage
from rws.benchmarks.damage.images import VISIBLE_DB, read_sheet
from rws.edge.sources.open import open_source
from rws.errors import RwsError

KINDS = ("lose", "flip", "cut", "swap", "zero")
PACKET, RATE, FRAMES = 188, 25, 80  # bytes of a TS packet; frames per second; frames


# FFmpeg's name of the container, and options of x264.
_SMALL = {"g": "25", "preset": "veryfast", "crf": "23", "threads": "1"}
ENCODINGS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "TS": ("mpegts", {"bf": "0"}),
    "TS, B-frames": ("mpegts", {"bf": "3"}),
    "TS, B-frames, open GOP": ("mpegts", {"bf": "3", "x264-params": "open-gop=1"}),
    "TS, intra refresh": ("mpegts", {"bf": "0", "x264-params": "intra-refresh=1"}),
    "MP4": ("mp4", {"bf": "0"}),
    "MP4, B-frames": ("mp4", {"bf": "3"}),
}
_COUNTED = ("refused", "errors", "wrong", "wrong_passed", "equal", "equal_rejected", "good", "good_rejected")


def read_video(path: Path | None) -> list[NDArray[np.uint8]]:
    """Return 80 frames of a video, uint8 (180, 320, 3) RGB, or by default a camera's way across a sheet of images."""
    if path is None:
        sheet = read_sheet()
        return [np.ascontiguousarray(sheet[4 * n : 4 * n + 180, 4 * n : 4 * n + 320]) for n in range(FRAMES)]
    with open_source(path, latest=False) as source:
        return [np.asarray(cv2.resize(frame.image, (320, 180)), np.uint8) for frame in islice(source, FRAMES)]


def fuzz_streams(images: Sequence[NDArray[np.uint8]], count: int, seed: int, folder: Path) -> Record:
    """Damage about `count` streams of the images, uint8 (H, W, 3) RGB, and read them; `folder` takes the files.

    Returns the same streams by encoding and by damage.
    """
    rng = np.random.default_rng(seed)
    found = list[tuple[str, str, Counter[str]]]()
    for name, (container, options) in ENCODINGS.items():
        path = folder / "whole"
        _encode(images, container, {**_SMALL, **options}, path)
        clean, start = _Clean(path), path.stat().st_size // 10 // PACKET * PACKET
        for number in range(round(count / len(ENCODINGS))):
            kind, damaged = KINDS[number % len(KINDS)], clean.data
            for _ in range(3 if kind == "flip" else 1):
                damaged = damage(damaged, kind, PACKET, start, rng)
            found.append((name, kind, _play(damaged, clean, folder / "hurt")))
    return {
        "streams": [_row(name, [counts for row, _, counts in found if row == name]) for name in ENCODINGS],
        "stream_kinds": [_row(kind, [counts for _, row, counts in found if row == kind]) for kind in KINDS],
    }


def _row(name: str, found: Sequence[Counter[str]]) -> Record:
    total = sum(found, Counter[str]())
    return {"name": name, "streams": len(found), **{key: total[key] for key in _COUNTED}}


class _Clean:
    """The undamaged stream: its bytes, its frames, and which of these refer to which packet."""

    def __init__(self, path: Path) -> None:
        self.data, self._frames = path.read_bytes(), _plain(path)
        self._numbers = {frame.tobytes(): number for number, frame in enumerate(self._frames)}
        self._small = np.stack([self._shrunk(frame) for frame in self._frames])
        with av.open(str(path)) as container:
            places = [packet.pos for packet in container.demux(video=0) if packet.size]
        self._spans = list(zip(places, [*places[1:], len(self.data)], strict=True))
        # What changes if a packet is left out refers to it, whatever the runtime knows of references.
        everything = set(self._numbers.values())
        self._changed = [everything - self.numbers(_plain(path, n)) for n in range(len(places))]

    def numbers(self, images: Sequence[NDArray[np.uint8]]) -> set[int]:
        """Return the numbers of the undamaged frames that are among the images."""
        return {self._numbers[data] for image in images if (data := image.tobytes()) in self._numbers}

    def wrong(self, images: Sequence[NDArray[np.uint8]]) -> int:
        """Return how many images are visibly wrong."""
        return sum(self._is_wrong(image) for image in images)

    def hurt(self, damaged: bytes) -> set[int]:
        """Return the numbers of the frames of which a byte was damaged, or that refer to such a frame."""
        shift = len(damaged) - len(self.data)  # of what follows what was left out
        hurt = set[int]()
        for (start, end), changed in zip(self._spans, self._changed, strict=True):
            if self.data[start:end] not in (damaged[start:end], damaged[max(0, start + shift) : max(0, end + shift)]):
                hurt |= changed
        return hurt

    def _is_wrong(self, image: NDArray[np.uint8]) -> bool:
        if image.tobytes() in self._numbers:
            return False
        if image.shape != self._frames[0].shape:
            return True
        nearest = np.argsort(((self._small - self._shrunk(image)) ** 2).sum(axis=(1, 2, 3)))[:3]
        return max(cv2.PSNR(image, self._frames[n]) for n in nearest) < VISIBLE_DB

    @staticmethod
    def _shrunk(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(cv2.resize(image, (40, 24), interpolation=cv2.INTER_AREA), np.float32)


def _play(damaged: bytes, clean: _Clean, path: Path) -> Counter[str]:
    """Read a stream with the runtime, and without its checks; return the counts of `_COUNTED`."""
    path.write_bytes(damaged)
    images, refused, failed = list[NDArray[np.uint8]](), False, False
    try:
        with open_source(path) as source:
            images = [frame.image for frame in source]
    except RwsError as error:
        refused, failed = True, "died" in str(error)
    except Exception:
        failed = True
    decoded, passed, wrong = _plain(path), clean.numbers(images), clean.wrong(images)
    equal = clean.numbers(decoded)
    good = equal - clean.hurt(damaged)
    return Counter(
        refused=int(refused),
        errors=int(failed),
        wrong=max(clean.wrong(decoded), wrong),
        wrong_passed=wrong,
        equal=len(equal),
        equal_rejected=len(equal - passed),
        good=len(good),
        good_rejected=len(good - passed),
    )


def _plain(path: Path, without: int = -1) -> list[NDArray[np.uint8]]:
    """Return all frames that FFmpeg gives, damaged or not; packet number `without` is left out."""
    images = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for number, packet in enumerate(container.demux(stream)):
                try:
                    frames = [] if number == without else packet.decode()
                except av.error.FFmpegError:
                    continue
                rgb = (frame.reformat(format="rgb24", interpolation=Interpolation.FAST_BILINEAR) for frame in frames)
                images += [np.asarray(frame.to_ndarray(), np.uint8) for frame in rgb]
    except (av.error.FFmpegError, OSError, ValueError, IndexError):
        pass
    return images


def _encode(images: Sequence[NDArray[np.uint8]], kind: str, options: Mapping[str, str], path: Path) -> None:
    # The index of an MP4 comes first, so that one that is cut can be opened.
    first = {"movflags": "faststart"} if kind == "mp4" else {}
    with av.open(str(path), "w", format=kind, container_options=first) as container:
        stream = container.add_stream("libx264", rate=RATE, options=dict(options))
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, RATE)
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
