"""Evaluation sets: images of one corruption at one severity, made here or read from ImageNet-C and CIFAR-10-C files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rws.edge.common.arrays import map_array
from rws.edge.sources.folders import find_images
from rws.errors import InputError
from rws.oracle.belief import CLEAN
from rws.training.corruptions import CORRUPTIONS
from rws.training.data.images import Images, fitted, listing, load_images
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


@dataclass(frozen=True)
class ListedSet:
    """A set that is not read or made yet; `digest` gives what stands for its images before they are corrupted here."""

    corruption: str
    severity: int
    digest: Callable[[], str]
    read: Callable[[], Images]

    def load(self) -> EvaluationSet:
        """Return the set; raises as `list_sets`."""
        return EvaluationSet(self.corruption, self.severity, self.read())


def list_sets(
    source: str,
    classes: Sequence[str],
    size: int,
    severities: Sequence[int],
    limit: int | None,
    seed: int,
    *,
    cache: Path | None = None,
) -> list[ListedSet]:
    """Return clean images and their corruptions, or the sets of a source that is corrupted already.

    Args:
        source: a clean folder (`<class>/<image>`, or with `test/` above it) or data set name, resized to the bundle's
            input as frames are, and corrupted here; a folder in ImageNet-C's layout
            `<corruption>/<severity>/<class>/<image>`; or one with CIFAR-10-C's `.npy` files. The latter two hold clean
            images only if there is a `clean/<class>/` folder or a `clean.npy`.
        limit: at most this many images of each set, spread over the classes by a seeded shuffle.
        cache: as in `load_images`, of clean images.
    Raises InputError if classes or sizes do not fit the bundle, or nothing is found.
    """

    def fitting(read: Callable[[], Images]) -> Images:
        return subset(fitted(read(), classes, size, source), limit, seed)

    folder = Path(source)
    if (folder / "labels.npy").is_file():
        sets = _npy_sets(folder, classes, severities)
    elif any((folder / name / "1").is_dir() or (folder / name / "5").is_dir() for name in CORRUPTIONS):
        sets = _folder_sets(folder, severities, limit, seed)
    else:
        split = "test" if not folder.is_dir() or any((folder / name).is_dir() for name in ("test", "val")) else None
        clean = load_images(source, split, size=size, cache=cache, images=limit, seed=seed)
        sets = _sets_of(fitted(clean, classes, size, source), severities, limit, seed)
    return [replace(found, read=partial(fitting, found.read)) for found in sets]


def evaluation_sets(
    source: str, classes: Sequence[str], size: int, severities: Sequence[int], limit: int | None, seed: int
) -> Iterator[EvaluationSet]:
    """Yield the sets of `list_sets`."""
    for found in list_sets(source, classes, size, severities, limit, seed):
        yield found.load()


def _sets_of(
    clean: Images, severities: Sequence[int], limit: int | None, seed: int, names: Sequence[str] = CORRUPTIONS
) -> Iterator[ListedSet]:
    chosen = subset(clean, limit, seed)
    digest = cache(chosen.digest)

    def one(name: str, severity: int) -> Images:
        return replace(chosen, pixels=corrupted(chosen.pixels, ((name, severity),), seed))

    yield ListedSet(CLEAN, 0, digest, lambda: chosen)
    for name, severity in product(names, severities):
        yield ListedSet(name, severity, digest, partial(one, name, severity))


def corrupted_sets(
    clean: Images, severities: Sequence[int], limit: int | None, seed: int, names: Sequence[str] = CORRUPTIONS
) -> Iterator[EvaluationSet]:
    """Yield at most `limit` clean images, then the same ones under each corruption of `names` at each severity."""
    for found in _sets_of(clean, severities, limit, seed, names):
        yield found.load()


def _folder_sets(folder: Path, severities: Sequence[int], limit: int | None, seed: int) -> Iterator[ListedSet]:
    sets = [(name, severity, folder / name / str(severity)) for name in CORRUPTIONS for severity in severities]
    for name, severity, place in [(CLEAN, 0, folder / CLEAN), *sets]:
        if place.is_dir():
            read = partial(load_images, place, images=limit, seed=seed)
            yield ListedSet(name, severity, partial(_listed, place), read)


def _npy_sets(folder: Path, classes: Sequence[str], severities: Sequence[int]) -> Iterator[ListedSet]:
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
            part = slice(start, start + count)
            read = partial(_npy_images, array[part], labels[part], tuple(classes))
            digest = partial(listing, folder, [file, folder / "labels.npy"])
            yield ListedSet(name, severity, digest, read)


def _listed(folder: Path) -> str:
    return listing(folder, find_images([folder])[0])


def _npy_images(array: NDArray[Any], labels: torch.Tensor, classes: tuple[str, ...]) -> Images:
    pixels = torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
    return Images(pixels, labels, classes)


def _labels(file: Path) -> torch.Tensor:
    found = map_array(file)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise InputError(f"{file}: {found.dtype} {found.shape}, expected whole numbers (N,)")
    return torch.from_numpy(found.astype(np.int64))
