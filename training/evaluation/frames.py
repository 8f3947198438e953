"""Evaluation images: the splits of a bundle's data, seeded subsets, and frames of known corruption."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rws.edge.bundle.bundle import Bundle
from rws.records import Mix
from rws.training.corruptions import CORRUPTIONS, corrupt, seeds_for
from rws.training.data.images import Images, fitted, load_images, split_train_validation
from rws.training.jobs.seeds import derive_seed

SEVERITIES = (1, 2, 3, 4, 5)
TWO_SEVERITIES = (3, 5)  # a middle one and the strongest one, for evaluations that cannot afford all

Layers = tuple[tuple[str, float], ...]  # corruptions and severities laid over one another, first to last; () is clean


@dataclass(frozen=True)
class Splits:
    """The images of a bundle: what it learnt from, what it was calibrated on, and what it never saw."""

    train: Images
    validation: Images
    test: Images


def load_splits(bundle: Bundle, source: str, cache: Path | None = None) -> Splits:
    """Read a data set (see `load_images`), and split it as the bundle's build did; InputError if it does not fit."""
    size, classes = bundle.manifest.input.height, bundle.manifest.classes
    parts = [load_images(source, part, size=size, cache=cache) for part in ("train", "test")]
    train, test = (fitted(images, classes, size, source) for images in parts)
    return Splits(*split_as_built(bundle, train), test)


def split_as_built(bundle: Bundle, images: Images) -> tuple[Images, Images]:
    """Split training images as the bundle's build did: images it learnt from, and images it was calibrated on."""
    recipe = bundle.manifest.provenance.get("recipe", {})
    count = min(int(recipe.get("data", {}).get("validation", 5000)), len(images) // 10)
    return split_train_validation(images, count, int(recipe.get("seed", 0)))


def shuffled(images: Images, limit: int | None, seed: int) -> Images:
    """Draw at most `limit` images (None: all) in random order; a smaller limit draws the first of the same order."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.take(order[:limit])


def subset(images: Images, limit: int | None, seed: int) -> Images:
    """Draw the images of `shuffled`, but keep them in their own order."""
    if limit is None or limit >= len(images):
        return images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.take(order[:limit].sort().values)


@dataclass(frozen=True)
class Frames:
    """N frames, uint8 (N, 3, H, W), RGB, in cells; all frames of a cell are corrupted in the same way.

    Labels, int64 (N,), are in the order of the bundle's classes; `cell`, int64 (N,), are indices into `cells`,
    ascending; `image`, int64 (N,), says which image a frame shows: frames of several cells show the same ones.
    """

    pixels: Tensor
    labels: NDArray[np.int64]
    cell: NDArray[np.int64]
    image: NDArray[np.int64]
    cells: tuple[Layers, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, cells: Iterable[int]) -> NDArray[np.int64]:
        """Return the frames of some cells, int64, ascending."""
        return np.flatnonzero(np.isin(self.cell, list(cells)))

    def spread(self, mixes: Sequence[Mix]) -> list[Mix]:
        """Return the mix of each frame from the mixes of the cells."""
        return [mixes[cell] for cell in self.cell]

    def per_cell(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return the mean over each cell, float64 (cells,), of a value of each frame, (N,)."""
        counts = np.bincount(self.cell, minlength=len(self.cells))
        return np.bincount(self.cell, values, minlength=len(self.cells)) / counts

    def percent(self, values: NDArray[Any], layers: int, severity: float | None = None) -> float:
        """Return the percent of frames for which a flag, bool (N,), is set: mean over the cells that count.

        Those have `layers` corruptions, the first of them at `severity`; None: at any.
        """
        counts = [len(cell) == layers and (severity is None or cell[0][1] == severity) for cell in self.cells]
        return float(np.mean(100 * self.per_cell(values)[counts]))


def single_cells(severities: Sequence[float], corruptions: Sequence[str] = CORRUPTIONS) -> tuple[Layers, ...]:
    """Return a cell for each corruption at each severity."""
    return tuple(((name, float(severity)),) for name in corruptions for severity in severities)


def make_frames(
    images: Images, cells: Sequence[Layers], seed: int = 0, clean: Images | None = None, *, purpose: str = "test"
) -> Frames:
    """Corrupt all images as each of the `cells` says; seed and purpose as in `derive_seed`.

    A clean cell shows `clean`, None: `images`. One of the two must be the beginning of the other.
    """
    shown = [images if layers or clean is None else clean for layers in cells]
    pixels = [corrupted(part.pixels, layers, seed, purpose) for part, layers in zip(shown, cells, strict=True)]
    labels = np.concatenate([part.labels.numpy() for part in shown])
    cell = np.repeat(np.arange(len(cells)), [len(part) for part in shown])
    image = np.concatenate([np.arange(len(part)) for part in shown])
    return Frames(torch.cat(pixels), labels, cell, image, tuple(cells))


def corrupted(pixels: Tensor, layers: Sequence[tuple[str, float]], seed: int, purpose: str = "test") -> Tensor:
    """Corrupt images, uint8 (N, 3, H, H), RGB; every benchmark gets the same images for the same arguments.

    The layers are laid over one another, first to last; seed and purpose are of the draws, see `derive_seed`.
    """
    for place, (name, severity) in enumerate(layers):
        drawn = seeds_for(derive_seed(seed, purpose, name, severity, place), len(pixels))
        parts = zip(torch.split(pixels, 500), torch.split(drawn, 500), strict=True)
        pixels = torch.cat([corrupt(part, name, float(severity), seeds) for part, seeds in parts])
    return pixels
