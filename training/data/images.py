"""Labelled images in memory: a torchvision dataset by name, or an image folder.

Three disjoint splits: `train` fits, `validation` (a seeded part of the train folder) calibrates, `test` is reported on.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rws.edge.common.arrays import map_array
from rws.edge.common.files import atomic_path, read_regular
from rws.edge.preprocess import cover
from rws.edge.sources.folders import find_images
from rws.errors import FormatError, InputError, first_line

log = logging.getLogger(__name__)

_LARGEST = 2**30  # bytes of an image or a list of labels
SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "validation")}
ANNOTATIONS = "val_annotations.txt"
TORCHVISION_DATASETS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}


@dataclass(frozen=True)
class Images:
    """Labelled images of one size: pixels uint8 (N, 3, H, W), RGB; labels int64 (N,), indices into `classes`."""

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        """Side of the (square) images in pixels."""
        return int(self.pixels.shape[-1])

    def take(self, indices: Tensor | Sequence[int]) -> "Images":
        """Return the images at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return Images(self.pixels[index], self.labels[index], self.classes)

    def first(self, count: int | None) -> "Images":
        """Return the first `count` images; None: all."""
        return self if count is None else self.take(range(min(count, len(self))))

    def to(self, device: torch.device | str) -> "Images":
        """Return the same images on another device."""
        return Images(self.pixels.to(device), self.labels.to(device), self.classes)

    def relabelled(self, classes: Sequence[str]) -> "Images":
        """Return the same images with labels as indices into `classes`, which hold all of theirs."""
        order = torch.tensor([list(classes).index(name) for name in self.classes])
        return Images(self.pixels, order[self.labels], tuple(classes))

    def digest(self) -> str:
        """Return the sha256 of pixels, labels and class names: the identity of the data in provenance records."""
        hasher = hashlib.sha256(self.pixels.cpu().numpy().tobytes())
        hasher.update(self.labels.cpu().numpy().tobytes() + json.dumps(self.classes).encode())
        return hasher.hexdigest()


def load_images(
    source: str | Path,
    split: str | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    cache: Path | None = None,
    images: int | None = None,
    classes: int | None = None,
    seed: int = 0,
) -> Images:
    """Read a data set, or a fixed part of it, into memory.

    Args:
        source: a folder `<class>/<image>`, one that holds `train/` and `test/` (or `val/`) of that form, or the name of
            a torchvision data set, downloaded to `~/.cache/rws/torchvision`, or elsewhere: `cifar10:/my/folder`.
        split: `train` or `test`; None takes `source` itself, and so does `train` without split folders.
        size: side, or height and width, that every image is resized and centre-cropped to, in pixels; None: all images
            must agree already.
        images: at most this many images, drawn at random with `seed`; the others are not decoded.
        classes: only the first this many classes, in the order of their names.
    Raises InputError if the folder, the split or a class has no readable image, or the sizes differ.
    """
    name, _, root = str(source).partition(":")
    if name in TORCHVISION_DATASETS and not Path(source).is_dir():
        whole = _load_torchvision(name, split or "train", Path(root or Path.home() / ".cache/rws/torchvision"), size)
        part = whole.take(_chosen(whole.labels.tolist(), images, classes, seed))
        return Images(part.pixels, part.labels, whole.classes[:classes])
    folder = _split_folder(Path(source), split)
    names, files, labels = _list_images(folder)
    chosen = _chosen(labels, images, classes, seed)
    files, labels, names = [files[index] for index in chosen], [labels[index] for index in chosen], names[:classes]
    stored = None if cache is None else cache / f"images-{listing(folder, files, size)}.npy"
    pixels = _load_stored(stored, len(files))
    if pixels is None:
        pixels = _decode(files, size)
        if stored is not None:
            save_array(stored, pixels)
    return Images(torch.from_numpy(pixels), torch.tensor(labels), names)


def _load_stored(path: Path | None, count: int) -> NDArray[np.uint8] | None:
    if path is None or not path.exists():
        return None
    try:
        return load_array(path, count)
    except FormatError as error:
        log.warning("%s; the images are decoded again", error)
        return None


def load_array(path: Path, count: int | None = None) -> NDArray[np.uint8]:
    """Load images, uint8 (N, 3, H, W), from an `.npy` file; FormatError if it holds none, or not `count` of them."""
    found = map_array(path)
    if found.dtype != np.uint8 or found.ndim != 4 or found.shape[1] != 3 or count not in (None, len(found)):
        raise FormatError(f"{path}: holds {found.dtype} {found.shape}, expected uint8 ({count or 'N'}, 3, H, W)")
    return np.array(found)


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write an `.npy` file atomically; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, array)


def _chosen(labels: Sequence[int], images: int | None, classes: int | None, seed: int) -> list[int]:
    kept = [index for index, label in enumerate(labels) if classes is None or label < classes]
    if images is None or images >= len(kept):
        return kept
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))
    return sorted(kept[place] for place in order[:images].tolist())


def fitted(images: Images, classes: Sequence[str], size: int, source: str) -> Images:
    """Return the images of a source in the class order of a bundle; InputError if classes or size (pixels) differ."""
    missing = [name for name in classes if name not in images.classes]
    unknown = [name for name in images.classes if name not in classes]
    if missing or unknown:
        detail = f"class folder {missing[0]!r} is missing" if missing else f"class {unknown[0]!r} is not the bundle's"
        raise InputError(f"{source}: {detail}; the bundle knows {', '.join(classes)}")
    if tuple(images.pixels.shape[2:]) != (size, size):
        height, width = images.pixels.shape[2:]
        raise InputError(f"{source}: images are {width}x{height}, the bundle takes {size}x{size}; resize them first")
    return images.relabelled(classes)


def split_train_validation(data: Images, validation: int, seed: int) -> tuple[Images, Images]:
    """Split off `validation` images by the seed; InputError if fewer than two per class are left for training."""
    if len(data) - validation < 2 * len(data.classes):
        raise InputError(f"{len(data)} images are too few to keep {validation} for validation; lower data.validation")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    # Folders are listed class by class: the validation part stays shuffled, so that its first images show all classes.
    return data.take(order[validation:].sort().values), data.take(order[:validation])


def _load_torchvision(name: str, split: str, root: Path, size: int | tuple[int, int] | None) -> Images:
    from rws.edge.onnx.torchvision_compat import torchvision

    dataset = getattr(torchvision.datasets, TORCHVISION_DATASETS[name])(root, train=split == "train", download=True)
    images = dataset.data if size is None else np.stack([cover(image, *_sides(size)) for image in dataset.data])
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return Images(pixels, torch.tensor(dataset.targets), tuple(dataset.classes))


def _split_folder(root: Path, split: str | None) -> Path:
    if not root.is_dir():
        known = ", ".join(TORCHVISION_DATASETS)
        raise InputError(f"no folder {root}; give an image folder <class>/<image> or one of {known}")
    present = [name for names in SPLIT_FOLDERS.values() for name in names if (root / name).is_dir()]
    if split is None or (split == "train" and not present):
        return root
    # Tiny-ImageNet's own `test` has no labels; its `val` has them in a file.
    annotated = [name for name in present if name in SPLIT_FOLDERS[split] and (root / name / ANNOTATIONS).is_file()]
    for name in (*annotated, *SPLIT_FOLDERS[split]):
        if name in present:
            return root / name
    raise InputError(f"{root} has no folder {' or '.join(SPLIT_FOLDERS[split])}/; expected <split>/<class>/<image>")


def _list_images(folder: Path) -> tuple[tuple[str, ...], list[Path], list[int]]:
    annotations = folder / ANNOTATIONS
    if annotations.is_file() and (folder / "images").is_dir():
        return _list_annotated(folder, annotations)
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not classes:
        raise InputError(f"{folder} has no class folders; expected <class>/<image>")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(find_images([folder / name])[0])
        if not found:
            raise InputError(f"class folder {folder / name} holds no image; add images or remove the folder")
        files += found
        labels += [label] * len(found)
    return classes, files, labels


def _list_annotated(folder: Path, annotations: Path) -> tuple[tuple[str, ...], list[Path], list[int]]:
    # Tiny-ImageNet's own layout of its validation split: `images/<file>` and one line `<file> <class> …` per file.
    text = read_regular(annotations, _LARGEST).decode("utf-8-sig", "surrogateescape")
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if not rows or any(len(row) < 2 for row in rows):
        raise InputError(f"{annotations}: expected lines of a file's name and its class")
    classes = tuple(sorted({row[1] for row in rows}))
    files = [folder / "images" / row[0] for row in rows]
    if missing := [path for path in files if not path.is_file()]:
        raise InputError(f"{annotations} names {missing[0]}, which is not there; unpack the data set again")
    return classes, files, [classes.index(row[1]) for row in rows]


def listing(folder: Path, files: Sequence[Path], size: int | tuple[int, int] | None = None) -> str:
    """Return a digest of places, sizes and times of files below a folder, and of the size images are brought to."""
    listing = hashlib.sha256(str(size).encode())
    for path in files:
        status = path.stat()
        listing.update(os.fsencode(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n"))
    return listing.hexdigest()[:20]


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _decode(files: list[Path], size: int | tuple[int, int] | None) -> np.ndarray:
    def read(path: Path) -> np.ndarray:
        try:
            data = np.frombuffer(read_regular(path, _LARGEST), np.uint8)  # OpenCV crashes at a name that is not UTF-8.
            image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        except (OSError, cv2.error) as error:
            why = getattr(error, "strerror", "") or first_line(error)
            raise InputError(f"cannot decode {path} ({why}); repair or remove it") from error
        if image is None:
            raise InputError(f"cannot decode {path}; repair or remove it")
        image = image if size is None else cover(image, *_sides(size))
        return np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1))

    first = read(files[0])
    pixels = np.empty((len(files), *first.shape), np.uint8)
    with ThreadPoolExecutor() as pool:
        for index, image in enumerate(pool.map(read, files)):
            if image.shape != first.shape:
                found, expected = (f"{array.shape[2]}x{array.shape[1]}" for array in (image, first))
                at = f"{files[index]} is {found} pixels, {files[0].name} is {expected}"
                raise InputError(f"{at}; give --size to resize them all")
            pixels[index] = image
    return pixels
