"""Damaged JPEGs: what passes from a folder and from an MJPEG stream, and what a check of seams would gain."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from rws.benchmarks.common.tables import Record
from rws.benchmarks.damage.faults import damage
from rws.benchmarks.demo.stream import DEMO_DATA
from rws.edge.sources.base import Source
from rws.edge.sources.open import open_source
from rws.errors import RwsError

KINDS = ("flip", "cut", "flip", "zero", "flip", "insert", "flip", "swap")
VISIBLE_DB = 25.0  # below it, an image is visibly wrong
GOOD_SHARE = 0.99  # of the undamaged images, which a check of seams may not reject
ENCODINGS: Mapping[str, Sequence[int]] = {
    "4:2:0": (cv2.IMWRITE_JPEG_QUALITY, 90),
    "4:4:4": (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    "progressive": (cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restart marks": (cv2.IMWRITE_JPEG_RST_INTERVAL, 4, cv2.IMWRITE_JPEG_QUALITY, 70),
    "grey": (),
}


def read_images(folder: Path | None) -> list[NDArray[np.uint8]]:
    """Return the images of a folder, uint8 (H, W, 3) RGB, or by default two parts of the sheet of `rws demo`."""
    if folder is not None:
        return [frame.image for frame in open_source(folder)]
    sheet = read_sheet()
    return [sheet[:240, :320], sheet[240:480, 320:]]


def read_sheet() -> NDArray[np.uint8]:
    """Return all frames of `rws demo` in one image, uint8 (H, W, 3) RGB."""
    return np.asarray(cv2.cvtColor(cv2.imread(str(DEMO_DATA / "frames.webp")), cv2.COLOR_BGR2RGB), np.uint8)


def fuzz_images(images: Sequence[NDArray[np.uint8]], count: int, seed: int, folder: Path) -> Record:
    """Damage `count` JPEGs made of the images, uint8 (H, W, 3) RGB, and read them with as many good ones.

    `folder` is where the files are written.
    """
    rng = np.random.default_rng(seed)
    good = [_encode(image, name, options) for image in images for name, options in ENCODINGS.items()]
    clean = [_decode(data) for data in good]
    hurt = [damage(good[n % len(good)], KINDS[n // len(good) % len(KINDS)], 200, 2, rng) for n in range(count)]
    reported = [_is_reported(data) for data in hurt]
    quality = [_quality(_decode(data), clean[n % len(good)]) for n, data in enumerate(hurt)]
    found = [
        _count(source, _passed(source, [*hurt, *good], folder / source), reported, quality, len(good))
        for source in ("folder", "mjpeg")
    ]
    silent = [hurt[n] for n in range(count) if not reported[n] and quality[n] < VISIBLE_DB]
    return {"images": found, "seams": _seam_check(clean, [_decode(data) for data in silent])}


def _count(source: str, passed: set[int] | None, reported: list[bool], quality: list[float], good: int) -> Record:
    """Count the damaged images, whose numbers come before those of the good ones."""
    through, count = passed or set[int](), len(reported)
    changed = {n for n in range(count) if quality[n] < np.inf}
    silent = {n for n in changed if not reported[n]}
    visible = {n for n in changed if quality[n] < VISIBLE_DB}
    return {
        "source": source,
        "damaged": len(changed),
        "reported": len(changed - silent),
        "reported_passed": len(through & changed - silent),
        "silent": len(silent),
        "silent_visible": len(silent & visible),
        "silent_visible_passed": len(through & silent & visible),
        "visible": len(visible),
        "good": good,
        "good_rejected": sum(n not in through for n in range(count, count + good)),
        "errors": int(passed is None),
    }


def _passed(source: str, data: Sequence[bytes], folder: Path) -> set[int] | None:
    """Return the numbers of the images that pass; None after an untyped error or another number of images."""
    folder.mkdir(parents=True)
    path = folder
    if source == "mjpeg":
        path = folder / "images.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mjpeg", rate=25)
            stream.width, stream.height, stream.pix_fmt = 640, 480, "yuvj420p"
            for number, jpeg in enumerate(data):
                packet = av.Packet(jpeg)
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                packet.pts = packet.dts = number
                container.mux(packet)
    else:
        for number, jpeg in enumerate(data):
            (folder / f"{number}.jpg").write_bytes(jpeg)
    try:
        with open_source(path) as frames:
            passed = {frame.index for frame in frames}
            return passed if _is_whole(frames, len(data)) else None
    except RwsError:
        return set()
    except Exception:
        return None


def _is_whole(frames: Source, count: int) -> bool:
    return frames.received == count == frames.delivered + frames.rejected


def _encode(image: NDArray[np.uint8], name: str, options: Sequence[int]) -> bytes:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY if name == "grey" else cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", bgr, list(options))[1])


def _decode(data: bytes) -> NDArray[np.uint8] | None:
    """Return what libjpeg makes of it, whatever it warns of."""
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, strict=False), np.uint8)
    except ValueError:
        return None


def _quality(image: NDArray[np.uint8] | None, clean: NDArray[np.uint8] | None) -> float:
    """Return the PSNR in dB: 0 without an image, infinite if nothing has changed."""
    if image is None or clean is None or image.shape != clean.shape:
        return 0.0
    return np.inf if np.array_equal(image, clean) else cv2.PSNR(image, clean)


def _is_reported(data: bytes) -> bool:
    """Return whether libjpeg or FFmpeg reports damage, asked in another way than the runtime asks them."""
    try:
        simplejpeg.decode_jpeg(data, strict=True)
        decoder = av.CodecContext.create("mjpeg", "r")
        decoder.options = {"err_detect": "explode"}
        return any(frame.is_corrupt for frame in decoder.decode(av.Packet(data)))
    except (ValueError, av.error.FFmpegError):
        return True


def _seam_check(clean: Sequence[NDArray[np.uint8] | None], silent: Sequence[NDArray[np.uint8] | None]) -> Record:
    good, bad = (np.array([_seam(image) for image in part if image is not None]) for part in (clean, silent))
    limit = np.quantile(good, GOOD_SHARE)
    caught = float((bad > limit).mean()) if len(bad) else 0.0
    rejected = float((good > limit).mean())
    return {"good": len(good), "good_rejected": rejected, "silent_visible": len(bad), "caught": caught}


def _seam(image: NDArray[np.uint8]) -> float:
    """Return by how much the strongest edge between two rows of blocks exceeds the strongest edge elsewhere."""
    steps = np.abs(np.diff(image.astype(np.float32).mean(axis=2), axis=0))
    edges = steps[1:-1] - (steps[:-2] + steps[2:]) / 2
    width = max(16, edges.shape[1] // 4)
    sums = np.cumsum(np.pad(edges, ((0, 0), (1, 0))), axis=1)
    strongest = ((sums[:, width:] - sums[:, :-width]) / width).max(axis=1)
    between = (np.arange(len(strongest)) + 2) % 8 == 0
    return float(strongest[between].max() - strongest[~between].max())
