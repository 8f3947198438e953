"""Evaluation images: the splits of a bundle's data, seeded subsets, and frames of known corruption."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
TWO_SEVERITIES = (3, 5)
"""A middle severity and the strongest one, for evaluations that cannot afford all."""

Layers = tuple[tuple[str, float], ...]
"""Corruptions and severities laid over one another, first to last; () is clean."""


@dataclass(frozen=True)
class Splits:
    """The images of a bundle: what it learnt from, what it was calibrated on, and what it never saw."""

    train: Images
    validation: Images
    test: Images


def load_splits(bundle: Bundle, source: str, cache: Path | None = None) -> Splits:
    """Read a data set and split it as the bundle's build did.

    Args:
        bundle: gives input size, class order, and in its provenance the seed and size of the validation part.
        source: a clean data set with a train and a test part; see `rws.training.data.images.load_images`.
        cache: folder for the decoded arrays.

    Raises:
        InputError: if the source has no such parts, or other classes than the bundle.
    """
    size = bundle.manifest.input.height
    parts = []
    for part in ("train", "test"):
        images = load_images(source, part, size=size, cache=cache)
        parts.append(fitted(images, bundle.manifest.classes, size, source))
    train, test = parts
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
    """N frames in cells; all frames of a cell are corrupted in the same way.

    Args:
        pixels: uint8, (N, 3, H, W), RGB.
        labels: int64 (N,), in the order of the bundle's classes.
        cell: int64 (N,), index into `cells`, ascending.
        image: int64 (N,), which image a frame shows: frames of several cells show the same ones.
        cells: the layers of each cell.
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
        found: NDArray[np.int64] = np.flatnonzero(np.isin(self.cell, list(cells)))
        return found

    def spread(self, mixes: Sequence[Mix]) -> list[Mix]:
        """Return the mix of each frame from the mixes of the cells."""
        return [mixes[cell] for cell in self.cell]

    def per_cell(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return the mean over each cell, float64 (cells,), of a value of each frame, (N,)."""
        counts = np.bincount(self.cell, minlength=len(self.cells))
        means: NDArray[np.float64] = np.bincount(self.cell, values, minlength=len(self.cells)) / counts
        return means

    def percent(self, values: NDArray[Any], layers: int, severity: float | None = None) -> float:
        """Return the percent of frames for which a flag is set: mean over the cells with `layers` corruptions.

        Args:
            values: bool (N,).
            layers: how many corruptions lie over one another in the cells that count.
            severity: only cells whose first corruption has this severity count; None: all.
        """
        per_cell = zip(100 * self.per_cell(values), self.cells, strict=True)
        return float(
            np.mean([v for v, cell in per_cell if len(cell) == layers and (severity is None or cell[0][1] == severity)])
        )


def single_cells(severities: Sequence[float], corruptions: Sequence[str] = CORRUPTIONS) -> tuple[Layers, ...]:
    """Return a cell for each corruption at each severity."""
    return tuple(((name, float(severity)),) for name in corruptions for severity in severities)


def make_frames(
    images: Images, cells: Sequence[Layers], seed: int = 0, clean: Images | None = None, *, purpose: str = "test"
) -> Frames:
    """Corrupt images as `cells` say.

    Args:
        images: each corrupted cell shows all of them.
        cells: the layers of each cell.
        seed: of the corruptions.
        clean: what a clean cell shows; None: `images`. The two must not share an image under different numbers, so one
            must be the beginning of the other.
        purpose: of the corruptions, see `rws.training.jobs.seeds.derive_seed`; `validation` for images that choose
        something.
    """
    pixels, labels, cell, image = [], [], [], []
    for number, layers in enumerate(cells):
        shown = images if layers or clean is None else clean
        pixels.append(corrupted(shown.pixels, layers, seed, purpose))
        labels.append(shown.labels.numpy())
        cell.append(np.full(len(shown), number))
        image.append(np.arange(len(shown)))
    return Frames(torch.cat(pixels), np.concatenate(labels), np.concatenate(cell), np.concatenate(image), tuple(cells))


def batches(values: Tensor, size: int) -> Iterator[Tensor]:
    """Yield parts of at most `size` entries."""
    return (values[start : start + size] for start in range(0, len(values), size))


def corrupted(pixels: Tensor, layers: Sequence[tuple[str, float]], seed: int, purpose: str = "test") -> Tensor:
    """Corrupt images; every benchmark gets the same images for the same arguments.

    Args:
        pixels: uint8, (N, 3, H, H), RGB.
        layers: corruptions and severities laid over one another, first to last; () leaves the images clean.
        seed, purpose: of the draws, see `rws.training.jobs.seeds.derive_seed`.

    Returns:
        uint8, (N, 3, H, H), RGB.
    """
    for place, (name, severity) in enumerate(layers):
        drawn = seeds_for(derive_seed(seed, purpose, name, severity, place), len(pixels))
        parts = zip(batches(pixels, 500), batches(drawn, 500), strict=True)
        pixels = torch.cat([corrupt(part, name, float(severity), seeds) for part, seeds in parts])
    return pixels
