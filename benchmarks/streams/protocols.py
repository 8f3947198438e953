"""Streams of corrupted test images, in orders of the test-time-adaptation literature; seeded and replayable.

At one seed all show the same images with the same draws (`gradual` has other severities, `potpourri` more clean ones):
only the order differs, so that a method without memory and filter scores the same in all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rws.errors import InputError, check_known
from rws.training.corruptions import CORRUPTIONS, WHOLE_SEVERITIES, corrupt_mixed, seeds_for
from rws.training.jobs.seeds import derive_seed

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]

PROTOCOLS = ("iid", "mixed", "continual", "gradual", "correlated", "potpourri")
"""`iid`: one type after another, methods reset before each (Tent, Wang et al. 2021). `mixed`: another type at each
frame (SAR, Niu et al. 2023). `continual`: blocks in random order (CoTTA, Wang et al. 2022). As that: `gradual`,
severity climbs and falls in each block (CoTTA); `correlated`, labels are sorted in it (NOTE, Gong et al. 2022).
`potpourri`: as `mixed`, but half of the frames are clean, as in potpourri+ (MoETTA, arXiv 2511.13760)."""
SHUFFLED = ("mixed", "potpourri")
TYPES = 1 + len(CORRUPTIONS)
LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)

_IMAGES = 5  # number of the draws of images, between the numbers of the draws of orders
_WHOLE = np.array([name in WHOLE_SEVERITIES for name in CORRUPTIONS])


@dataclass(frozen=True)
class Stream:
    """N frames, each a clean test image and what is done to it.

    Args:
        image: int64 (N,), index into the clean test images.
        type: int64 (N,), −1 is clean, else an index into `rws.training.corruptions.CORRUPTIONS`.
        severity: float32 (N,), 0…5; 0 where clean, and nowhere else.
        seed: int64 (N,), of the corruption's draws.
        cut: bool (N,), methods are reset before this frame: the first one, in `iid` the first of each block.
    """

    protocol: str
    image: Ints
    type: Ints
    severity: Floats
    seed: Ints
    cut: Flags

    def __len__(self) -> int:
        return len(self.image)

    def block_starts(self) -> Ints:
        """Return the frames at which the true type changes or methods are reset, the first too; int64, ascending."""
        changed = np.concatenate([[True], self.type[1:] != self.type[:-1]])
        return np.flatnonzero(changed | self.cut)


class Method(Protocol):
    """Classifies the frames of a stream in their order; our methods and the baselines."""

    name: str

    def reset(self) -> None:
        """Forget the past: called before each cut of the stream."""

    def classify(self, x: Floats, types: Ints, severities: Floats) -> Ints:
        """Return classes, int64 (B,), of the next frames (B, 3, H, W), RGB, 0…1; who may know the truth reads it."""


def make_stream(
    protocol: str,
    labels: Ints | Sequence[int],
    *,
    frames: int,
    severity: float | Literal["all"] = 5.0,
    seed: int = 0,
    corruptions: Sequence[str] = CORRUPTIONS,
) -> Stream:
    """Put a stream together; no pixel is touched yet.

    Args:
        labels: int64 (M,), class of each clean image.
        frames: frames per type, clean included. Each type shows the same images, drawn by the seed; in `potpourri` the
            clean ones come as often as all others together.
        severity: 0 < severity ≤ 5 of every corrupted frame (`gradual`: of the middle of each block; rounded for
            corruptions of whole severities, 0 being clean); or "all": the five equally often, in
            separate blocks; in `mixed`, changing from frame to frame (`gradual` runs through all of them, up to 5).
        seed: 0 or more; same arguments, same stream.
        corruptions: which of `rws.training.corruptions.CORRUPTIONS` occur next to clean frames.

    Raises InputError if the protocol or a corruption is unknown, a number is out of range, or there are too few images.
    """
    labels = np.asarray(labels, np.int64)
    if not corruptions or any(name not in CORRUPTIONS for name in corruptions):
        raise InputError(f"corruptions are {list(corruptions)}, expected some of {', '.join(CORRUPTIONS)}")
    kinds = np.array([-1, *(index for index, name in enumerate(CORRUPTIONS) if name in corruptions)])
    levels = _check(protocol, len(labels), frames, severity, seed)
    number = PROTOCOLS.index(protocol)
    order = np.random.default_rng([seed, number + (number >= _IMAGES)])
    images = np.random.default_rng([seed, _IMAGES]).permutation(len(labels))[:frames]
    if protocol == "potpourri":
        kinds = np.concatenate([np.full(len(kinds) - 2, -1), kinds])

    image = np.tile(images, len(kinds))
    kind = np.repeat(kinds, frames)
    # Image by image the level is the next one, so that each type has the same images at the same severity.
    level = np.tile(np.arange(frames) % len(levels), len(kinds))
    severities = np.array(levels, np.float32)[level]

    block = kind * len(levels) + level
    if protocol in SHUFFLED:
        chosen = order.permutation(len(image))
    else:
        blocks = np.unique(block)
        rank = np.arange(len(blocks)) if protocol == "iid" else order.permutation(len(blocks))
        place = rank[np.searchsorted(blocks, block)]
        inside = (labels[image],) if protocol == "correlated" else ()
        chosen = np.lexsort((order.permutation(len(image)), *inside, place))
    image, kind, severities, block = image[chosen], kind[chosen], severities[chosen], block[chosen]
    starts = np.concatenate([[True], block[1:] != block[:-1]])
    if protocol == "gradual":
        ramp = 1 - np.abs(2 * (np.arange(frames) + 0.5) / frames - 1)
        severities = (levels[0] * np.tile(ramp, len(kinds))).astype(np.float32)

    severities = np.where(_WHOLE[kind], np.round(severities), severities).astype(np.float32)
    severities[kind < 0] = 0
    drawn = seeds_for(derive_seed(seed, "streams"), torch.from_numpy(image * TYPES + kind + 1)).numpy()
    cut = starts if protocol == "iid" else np.arange(len(image)) == 0
    return Stream(protocol, image, np.where(severities > 0, kind, -1), severities, drawn, cut)


def frames_of(stream: Stream, pixels: Tensor, start: int, stop: int) -> Tensor:
    """Corrupt frames `start` to `stop` of a stream: uint8 (stop − start, 3, H, W), RGB, the same whatever the slice.

    Args:
        pixels: uint8 (M, 3, H, W), RGB, the clean images whose labels `make_stream` was given.
    """
    columns = (stream.image, stream.type, stream.severity, stream.seed)
    image, types, severities, seeds = (torch.from_numpy(column[start:stop]) for column in columns)
    return corrupt_mixed(pixels[image], types, severities, seeds)


def _check(protocol: str, images: int, frames: int, severity: float | str, seed: int) -> tuple[float, ...]:
    check_known("protocol", [protocol], PROTOCOLS)
    if severity != "all" and not (isinstance(severity, (int, float)) and 0 < severity <= LEVELS[-1]):
        raise InputError(f"severity is {severity!r}, expected above 0 and at most 5, or 'all'")
    levels = LEVELS if severity == "all" else (float(severity),)
    if seed < 0:
        raise InputError(f"seed is {seed}, expected 0 or more")
    if not 0 < frames <= images:
        raise InputError(
            f"{frames} frames per type (--frames) asked for, but there are {images} images, and each is shown once a "
            f"type: take --frames 1 to {images}"
        )
    if protocol == "gradual":
        return levels[-1:]
    if frames < len(levels):
        raise InputError(f"{frames} frames per type (--frames) are too few for {len(levels)} severities")
    return levels
