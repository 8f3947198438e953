"""Single frames, corrupted on purpose, for `rws run --corrupt`."""

import re
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

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

    Its noise is drawn from `seed` and its number, and what stays between frames, such as drops on a lens, from `seed`.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    both = seeds_for(seed, torch.tensor([number, -1]))
    made = corrupt(pixels, name, severity, both[:1], scene=both[1:])
    return np.ascontiguousarray(made[0].numpy().transpose(1, 2, 0))


def _parse(part: str) -> tuple[str, float]:
    found = re.fullmatch(r"(\w+):(\d+(?:\.\d+)?)", part)
    if found is None or found[1] not in KNOWN or not 0 <= float(found[2]) <= 5:
        known = ", ".join(KNOWN)
        raise UsageError(f"--corrupt {part}: expected TYPE:SEVERITY, a severity of 0…5 and a type of {known}")
    return found[1], float(found[2])
