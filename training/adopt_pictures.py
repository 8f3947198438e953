"""Clean pictures without labels: a folder, a glob, a list, a video, a camera's stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edge.preprocess import cover
from edge.sources import Frame, ImageSource, Source, open_source
from oracle.errors import FormatError, InputError
from training.data import load_images


def load_pictures(source: str, size: int, *, every: int = 1, limit: int | None = None) -> Tensor:
    """Pictures of a source, cropped and resized as the device does it with frames.

    Args:
        source: as in `edge.sources.open_source`. Of a live one only `limit` frames are taken.
        size: side, pixels.
        every: of a video or stream: only every n-th frame; neighbouring frames show the same.
        limit: at most this many. Of image files they are spread over the whole list, of all else they are the first.

    Returns:
        uint8 (N, 3, size, size), RGB.

    Raises:
        InputError: if a live source has no `limit`, or `every` is below 1.
        SourceError: if the source cannot be opened or holds no picture.
    """
    if every < 1:
        raise InputError(f"--every {every}; expected 1 or more")
    with open_source(source, latest=False) as opened:
        if opened.live and limit is None:
            raise InputError(f"{source} is live: say with --limit how many frames to take")
        if isinstance(opened, ImageSource) and limit is not None and len(opened.paths) > limit:
            places = np.linspace(0, len(opened.paths) - 1, limit).round().astype(int)
            opened = ImageSource([opened.paths[place] for place in places], opened.name)
        step = 1 if isinstance(opened, ImageSource) else every
        pixels = [cover(frame.image, size, size).transpose(2, 0, 1) for frame in _some(opened, step, limit)]
    return torch.from_numpy(np.stack(pixels))


def _some(source: Source, every: int, limit: int | None) -> Iterator[Frame]:
    taken = 0
    for place, frame in enumerate(source):
        if place % every:
            continue
        yield frame
        taken += 1
        if taken == limit:
            return


def load_labelled(
    source: str, size: int, classes: Sequence[str] | None, *, limit: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Pictures from `<class>/<image>` with their labels.

    Args:
        source: the folder; not every class needs pictures.
        size: side, pixels.
        classes: names in the order of the model's logits; None: the folders' in their order.
        limit: at most so many, drawn at random.
        seed: of the draw.

    Returns:
        uint8 (N, 3, size, size), RGB, and int64 (N,).

    Raises:
        InputError: if a folder is no class, or there is no picture.
    """
    images = load_images(source, size=size, images=limit, seed=seed)
    known = list(images.classes if classes is None else classes)
    unknown = [name for name in images.classes if name not in known]
    if unknown:
        raise InputError(f"{source}: folder {unknown[0]!r} is none of the class names; give those with --names")
    place = torch.tensor([known.index(name) for name in images.classes])
    return images.pixels, place[images.labels]


def read_names(path: Path) -> list[str]:
    """Class names: a line each, or a JSON list, which may be the one list of names in a JSON object.

    Raises:
        FormatError: if a JSON file holds no list of names.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise FormatError(f"{path}: not JSON ({error})") from error
    if isinstance(names, dict):
        names = next((value for value in names.values() if isinstance(value, list)), None)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FormatError(f"{path}: expected a JSON list of class names")
    return names
