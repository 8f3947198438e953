"""Evaluation sets: images of one corruption at one severity, made here or read from ImageNet-C and CIFAR-10-C files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from rws.edge.common.arrays import map_array
from rws.errors import InputError
from rws.oracle.belief import CLEAN
from rws.training.corruptions import CORRUPTIONS
from rws.training.data.images import Images, fitted, load_images
from rws.training.evaluation.frames import SEVERITIES, Frames, corrupted, subset


@dataclass(frozen=True)
class EvaluationSet:
    """Images of one type at one severity; severity 0 is clean."""

    corruption: str
    severity: int
    images: Images

    @property
    def frames(self) -> Frames:
        """The images as frames of one cell."""
        layers = ((self.corruption, float(self.severity)),) if self.severity else ()
        labels, numbers = self.images.labels.cpu().numpy(), np.arange(len(self.images))
        return Frames(self.images.pixels, labels, np.zeros_like(numbers), numbers, (layers,))


def evaluation_sets(
    source: str, classes: Sequence[str], size: int, severities: Sequence[int], limit: int | None, seed: int
) -> Iterator[EvaluationSet]:
    """Yield clean images and their corruptions, or the sets of a source that is corrupted already.

    Args:
        source: a clean folder (`<class>/<image>`, or with `test/` above it) or data set name, resized to the bundle's
            input as frames are, and corrupted here; a folder in ImageNet-C's layout
            `<corruption>/<severity>/<class>/<image>`; or one with CIFAR-10-C's `.npy` files. The latter two hold clean
            images only if there is a `clean/<class>/` folder or a `clean.npy`.
        limit: at most this many images of each set, spread over the classes by a seeded shuffle.
    Raises InputError if classes or sizes do not fit the bundle, or nothing is found.
    """
    folder = Path(source)
    if (folder / "labels.npy").is_file():
        sets = _npy_sets(folder, classes, severities)
    elif any((folder / name / "1").is_dir() or (folder / name / "5").is_dir() for name in CORRUPTIONS):
        sets = _folder_sets(folder, severities, limit, seed)
    else:
        split = "test" if not folder.is_dir() or any((folder / name).is_dir() for name in ("test", "val")) else None
        sets = corrupted_sets(load_images(source, split, size=size, images=limit, seed=seed), severities, limit, seed)
    for found in sets:
        images = fitted(found.images, classes, size, source)
        yield replace(found, images=subset(images, limit, seed))


def corrupted_sets(
    clean: Images, severities: Sequence[int], limit: int | None, seed: int, names: Sequence[str] = CORRUPTIONS
) -> Iterator[EvaluationSet]:
    """Yield at most `limit` clean images, then the same ones under each corruption of `names` at each severity."""
    chosen = subset(clean, limit, seed)
    yield EvaluationSet(CLEAN, 0, chosen)
    for name in names:
        for severity in severities:
            pixels = corrupted(chosen.pixels, ((name, severity),), seed)
            yield EvaluationSet(name, severity, replace(chosen, pixels=pixels))


def _folder_sets(folder: Path, severities: Sequence[int], limit: int | None, seed: int) -> Iterator[EvaluationSet]:
    sets = [(name, severity, folder / name / str(severity)) for name in CORRUPTIONS for severity in severities]
    for name, severity, place in [(CLEAN, 0, folder / CLEAN), *sets]:
        if place.is_dir():
            yield EvaluationSet(name, severity, load_images(place, images=limit, seed=seed))


def _npy_sets(folder: Path, classes: Sequence[str], severities: Sequence[int]) -> Iterator[EvaluationSet]:
    labels = _labels(folder / "labels.npy")
    for name in (CLEAN, *CORRUPTIONS):
        file = folder / f"{name}.npy"
        if not file.is_file():
            continue
        array = map_array(file)
        if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8:
            raise InputError(f"{file}: {array.dtype} {array.shape}, expected uint8 (N, H, W, 3)")
        if len(labels) < len(array):
            raise InputError(f"{file}: {len(array)} images, but labels.npy holds {len(labels)} labels")
        count = len(array) if name == CLEAN else len(array) // len(SEVERITIES)
        for severity in (0,) if name == CLEAN else severities:
            start = 0 if name == CLEAN else (severity - 1) * count
            pixels = torch.from_numpy(np.ascontiguousarray(array[start : start + count].transpose(0, 3, 1, 2)))
            yield EvaluationSet(name, severity, Images(pixels, labels[start : start + count], tuple(classes)))


def _labels(file: Path) -> torch.Tensor:
    found = map_array(file)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise InputError(f"{file}: {found.dtype} {found.shape}, expected whole numbers (N,)")
    return torch.from_numpy(found.astype(np.int64))
