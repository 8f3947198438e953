"""Single frames, corrupted on purpose, for `rws run --corrupt`."""

import re
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from rws.edge.preprocess import TileView
from rws.errors import UsageError
from rws.training.corruptions import KNOWN, corrupt, seeds_for
from rws.training.jobs.seeds import derive_seed

Corrupter = Callable[[NDArray[np.uint8], int], NDArray[np.uint8]]


def corrupter(spec: str, seed: int = 0) -> Corrupter:
    """Return a function of a frame, uint8 (H, W, 3), RGB, and its number, that gives the corrupted frame.

    `spec`: `TYPE:SEVERITY`, e.g. `fog:3`; several, laid over one another in their order, with `+`. See
    `corrupt_frame` for what is drawn. Raises UsageError if the corruption is unknown, or the severity not 0…5.
    """
    layers = [_parse(part) for part in spec.split("+")]

    def apply(image: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
        for place, (name, severity) in enumerate(layers):
            image = corrupt_frame(image, name, severity, derive_seed(seed, "frames", name, severity, place), number)
        return image

    return apply


def corrupt_frame(image: NDArray[np.uint8], name: str, severity: float, seed: int, number: int) -> NDArray[np.uint8]:
    """Corrupt frame `number` of a stream, uint8 (H, W, 3), RGB; raises as `corrupt` does.

    Frames of any size from 8 px on keep their own resolution. Up to a shorter side of 959 px they get the constants of
    224 px, as COCO-C does (Michaelis et al. 2019, arXiv 1907.07484); in larger ones all lengths, such as grain and
    blur, grow with the side in the whole steps in which the oracle of camera frames sees them, see `TileView`.

    The noise is drawn from `seed` and the number, and what stays between frames, such as drops on a lens, from `seed`.
    """
    height, width = image.shape[:2]
    # Every n-th pixel of every n-th row is a frame with lengths n times smaller; all n² of them get the same draws.
    step = max(1, min(height, width) // TileView().nominal)
    made = np.pad(image, ((0, -height % step), (0, -width % step), (0, 0)), mode="edge")
    parts = [made[row::step, column::step] for row, column in product(range(step), repeat=2)]
    pixels = torch.from_numpy(np.stack(parts).transpose(0, 3, 1, 2).copy())
    seeds, scene = (seeds_for(seed, torch.tensor([index])).repeat(len(parts)) for index in (number, -1))
    for part, corrupted in zip(parts, corrupt(pixels, name, severity, seeds, scene=scene), strict=True):
        part[...] = corrupted.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(made[:height, :width])


def _parse(part: str) -> tuple[str, float]:
    found = re.fullmatch(r"(\w+):(\d+(?:\.\d+)?)", part)
    if found is None or found[1] not in KNOWN or not 0 <= float(found[2]) <= 5:
        known = ", ".join(KNOWN)
        raise UsageError(f"--corrupt {part}: expected TYPE:SEVERITY, a severity of 0…5 and a type of {known}")
    return found[1], float(found[2])
