"""Clean images, most often without labels: a folder, a glob, a list, a video, a camera's stream."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rws.edge.preprocess import Fit, InputSpec, TileView, preprocess
from rws.edge.sources.images import ImageSource
from rws.edge.sources.open import open_source
from rws.errors import InputError
from rws.training.data.images import Images, load_array, load_images, save_array
from rws.training.data.photographs import Image, Photographs

LARGER = 1.5  # how many times as long as the model's input the sides of the images are at most
LARGEST = 1.5e9  # bytes of all images


@dataclass(frozen=True)
class CleanImages:
    """Clean images, uint8 (N, 3, H, W), RGB, labels int64 (N,), if known; `photographs` to train the oracle with.

    They may be larger than the model's input, as the camera's frames are: what corrupts a frame loses some of its force
    when the frame is shrunk. The last ones are held out of `sequential` ones, which follow one another in time, so that
    neighbours are alike.
    """

    pixels: Tensor
    sequential: bool = False
    labels: Tensor | None = None
    photographs: Photographs | None = None


def load_clean_images(
    source: str,
    size: int | tuple[int, int],
    *,
    fit: str = "crop",
    every: int = 1,
    limit: int | None = None,
    keep: Path | None = None,
    whole: bool = False,
) -> CleanImages:
    """Load the images of a source, fitted as the device does it with frames.

    Args:
        fit: as in `InputSpec`; for `letterbox` they are cropped: no camera corrupts the grey at the sides.
        size: side of the images, or height and width, pixels.
        source: as in `rws.edge.sources.open.open_source`. Of a live one only `limit` frames are taken.
        every: of a video or stream: only every n-th frame; neighbouring frames show the same.
        limit: at most this many. Of image files they are spread over the whole list, of all else they are the first.
        whole: their sides are as long as the first frame's allow, 1 to `LARGER` times those of `size`.
        keep: folder for the frames of a live source, for a build that is resumed. None: nothing is kept.
    Raises InputError if a live source has no `limit`, `every` is below 1, it holds no image, or what was kept has
    another size; SourceError if the source cannot be opened.
    """
    if every < 1:
        raise InputError(f"--every {every}; expected 1 or more")
    height, width = (size, size) if isinstance(size, int) else size
    how: Fit = "stretch" if fit == "stretch" else "crop"
    kept = None if keep is None else keep / f"images-{hashlib.sha256(source.encode()).hexdigest()[:16]}.npy"
    if kept is not None and kept.exists():
        stored = load_array(kept)
        if stored.shape[2] * width != stored.shape[3] * height or stored.shape[2] < height:
            found = "x".join(map(str, stored.shape[2:]))
            raise InputError(f"{kept}: holds images of {found} px, expected {height}x{width}; remove it")
        return CleanImages(torch.from_numpy(stored), True)
    with open_source(source, latest=False) as opened:
        if opened.live and limit is None:
            raise InputError(f"{source} is live: say with --limit how many frames to take")
        if isinstance(opened, ImageSource) and limit is not None and len(opened.paths) > limit:
            places = np.linspace(0, len(opened.paths) - 1, limit).round().astype(int)
            opened = ImageSource([opened.paths[place] for place in places], opened.name)
        step = 1 if isinstance(opened, ImageSource) else every
        frames = islice(opened, 0, None if limit is None else (limit - 1) * step + 1, step)
        first = next(frames, None)
        if first is None:
            raise InputError(f"{source}: holds no image")
        scale = _scale(first.image.shape, (height, width), limit or 1000) if whole else 1.0
        spec = InputSpec(round(height * scale), round(width * scale), "RGB", fit=how)
        pixels = fit_frames((frame.image for frame in chain([first], frames)), spec)
        live, sequential = opened.live, opened.sequential
    if live and kept is not None:
        save_array(kept, pixels.numpy())
    return CleanImages(pixels, sequential)


def _scale(frame: Sequence[int], size: tuple[int, int], count: int) -> float:
    step = max(
        1, min(frame[:2]) // TileView().nominal
    )  # in frames that are larger, all lengths are, see `corrupt_frame`
    room = math.sqrt(LARGEST / (3 * size[0] * size[1] * count))
    return max(1.0, min(frame[0] / step / size[0], frame[1] / step / size[1], LARGER, room))


def shrunk(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images, uint8 (N, 3, H, W), with that height and width, shrunk as the device shrinks frames."""
    if tuple(pixels.shape[2:]) == size:
        return pixels
    return fit_frames(pixels.permute(0, 2, 3, 1).contiguous().numpy(), InputSpec(*size, "RGB", fit="stretch"))


def fit_frames(frames: Iterable[Image], spec: InputSpec) -> Tensor:
    """Fit frames, uint8 (H, W, 3), RGB, to a model as the device does: uint8 (N, 3, height, width), RGB."""
    spec = replace(spec, colour="RGB", layout="NCHW", dtype="uint8", high=255)
    return torch.from_numpy(np.stack([preprocess(frame, spec)[0] for frame in frames]))


def load_labelled(
    source: str, size: int | tuple[int, int], classes: Sequence[str] | int, *, limit: int | None = None, seed: int = 0
) -> Images:
    """Load images from `<class>/<image>` with their labels; at most `limit`, drawn at random with `seed`.

    `classes` are names in the order of the logits, not each of which needs a folder; or the number of logits, if the
    folders are the classes, by name. InputError if a folder is not a class, their number differs, or there is no image.
    """
    images = load_images(source, size=size, images=limit, seed=seed)
    if isinstance(classes, int):
        if len(images.classes) != classes:
            found = f"{source}: has {len(images.classes)} class folders, but the model gives {classes} logits"
            raise InputError(f"{found}; say with --names which folder is which")
        return images
    if unknown := [name for name in images.classes if name not in classes]:
        raise InputError(f"{source}: folder {unknown[0]!r} is none of the class names; give those with --names")
    return images.relabelled(classes)
