"""Frames of known corruption, and whether the bundle's model is right on each of them under any mix.

What the comparisons of policies, of pairs and of unseen corruptions have in common.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rws.edge.bundle.bundle import Bundle
from rws.edge.live.base import PatchableModel
from rws.oracle.belief import Belief
from rws.oracle.classifier import Oracle
from rws.records import Mix
from rws.training.corruptions import CORRUPTIONS, corrupt, seeds_for
from rws.training.data.images import Images, fitted, load_images, split_train_validation
from rws.training.jobs.seeds import derive_seed

BATCH = 50
Layers = tuple[tuple[str, float], ...]
MixKey = tuple[tuple[str, int], ...]


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
    """Training images as the bundle's build split them: what it learnt from, and what it was calibrated on."""
    recipe = bundle.manifest.provenance.get("recipe", {})
    count = min(int(recipe.get("data", {}).get("validation", 5000)), len(images) // 10)
    return split_train_validation(images, count, int(recipe.get("seed", 0)))


def shuffled(images: Images, limit: int | None, seed: int) -> Images:
    """At most `limit` images, all where it is None; drawn at random, in a random order, the same for the same seed."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.take(order[:limit])


@dataclass(frozen=True)
class Frames:
    """N frames in cells: what was done to the frames of a cell is the same.

    Args:
        pixels: uint8, (N, 3, H, W), RGB.
        labels: int64 (N,), in the order of the bundle's classes.
        cell: int64 (N,), index into `cells`, ascending.
        image: int64 (N,), which image a frame shows: frames of several cells show the same ones.
        cells: of each cell the corruptions and severities laid over one another, first to last; () is clean.
    """

    pixels: Tensor
    labels: NDArray[np.int64]
    cell: NDArray[np.int64]
    image: NDArray[np.int64]
    cells: tuple[Layers, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, cells: Iterable[int]) -> NDArray[np.int64]:
        """The frames of some cells, int64, ascending."""
        found: NDArray[np.int64] = np.flatnonzero(np.isin(self.cell, list(cells)))
        return found

    def per_cell(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """The mean of a value of each frame, (N,), over each cell, float64 (cells,)."""
        counts = np.bincount(self.cell, minlength=len(self.cells))
        means: NDArray[np.float64] = np.bincount(self.cell, values, minlength=len(self.cells)) / counts
        return means


def single_cells(severities: Sequence[float], corruptions: Sequence[str] = CORRUPTIONS) -> tuple[Layers, ...]:
    """A cell for each corruption at each severity."""
    return tuple(((name, float(severity)),) for name in corruptions for severity in severities)


def make_frames(
    images: Images, cells: Sequence[Layers], seed: int = 0, clean: Images | None = None, *, purpose: str = "test"
) -> Frames:
    """Corrupt images in the ways of `cells`.

    Args:
        images: each corrupted cell shows all of them.
        cells: see `Frames`.
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
        parts = zip(pixels.split(500), drawn.split(500), strict=True)
        pixels = torch.cat([corrupt(part, name, float(severity), seeds) for part, seeds in parts])
    return pixels


def observe(oracle: Oracle, frames: Frames) -> list[Belief]:
    """What the oracle believes of each frame on its own."""
    beliefs = []
    for start in range(0, len(frames), BATCH):
        joint = oracle.observe_batch(as_input(frames.pixels[start : start + BATCH]))
        beliefs += [Belief(oracle.corruptions, oracle.levels, row) for row in joint]
    return beliefs


def as_input(pixels: Tensor) -> NDArray[np.float32]:
    """uint8 images (N, 3, H, W) to the model's input, float32, 0…1."""
    return pixels.numpy().astype(np.float32) / np.float32(255)


class Judge:
    """Runs frames through a patchable model under given mixes; what a mix does to a frame is computed once.

    Args:
        model: the model.
        frames: the frames.
    """

    def __init__(self, model: PatchableModel, frames: Frames) -> None:
        self.model, self.frames = model, frames
        self._known: dict[MixKey, dict[int, bool]] = defaultdict(dict)

    def right(self, mixes: Sequence[Mix]) -> NDArray[np.bool_]:
        """Whether each frame is classified right under its own mix, bool (N,)."""
        groups: dict[MixKey, list[int]] = defaultdict(list)
        for index, mix in enumerate(mixes):
            groups[_key(mix)].append(index)
        right = np.zeros(len(mixes), bool)
        for key, members in groups.items():
            right[members] = self._right(key, np.array(members))
        return right

    def right_under(self, mix: Mapping[str, float], chosen: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """Whether the chosen frames, int64 (K,), or all of them, are classified right under one mix, bool (K,)."""
        return self._right(_key(mix), np.arange(len(self.frames)) if chosen is None else chosen)

    def _right(self, key: MixKey, chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
        known, wanted = self._known[key], chosen.tolist()
        missing = [frame for frame in wanted if frame not in known]
        if missing:
            known |= zip(missing, self._classified(key, np.array(missing)).tolist(), strict=True)
        return np.array([known[frame] for frame in wanted], bool)

    def _classified(self, key: MixKey, chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
        self.model.apply({name: steps / 256 for name, steps in key})
        right = np.empty(len(chosen), bool)
        for start in range(0, len(chosen), BATCH):
            part = chosen[start : start + BATCH]
            logits = self.model.predict(as_input(self.frames.pixels[torch.from_numpy(part)]))
            right[start : start + BATCH] = logits.argmax(1) == self.frames.labels[part]
        return right


def _key(mix: Mapping[str, float]) -> MixKey:
    """A mix as the model rounds it."""
    return tuple(sorted((name, steps) for name, alpha in mix.items() if (steps := round(256 * alpha))))
