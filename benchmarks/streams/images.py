"""Clean images for the streams of a bundle, and the corruptions that the streams may show."""

from pathlib import Path

from rws.edge.bundle.bundle import Bundle
from rws.errors import InputError
from rws.training.corruptions import CORRUPTIONS
from rws.training.data.images import Images, fitted, load_images


def known_corruptions(bundle: Bundle) -> tuple[str, ...]:
    """Return the corruptions that the bundle knows; raise InputError if streams cannot show one of them."""
    if unknown := [name for name in bundle.manifest.corruptions if name not in CORRUPTIONS]:
        raise InputError(
            f"{bundle.path} knows the corruption {unknown[0]!r}, which streams cannot show; take a bundle that only "
            f"knows some of {', '.join(CORRUPTIONS)}"
        )
    return bundle.manifest.corruptions


def clean_images(bundle: Bundle, source: str, split: str | None = "test") -> Images:
    """Load clean images at the bundle's size, with its class order; see `rws.training.data.images.load_images`.

    A folder without split folders is taken as it is. Raises InputError if they are not there, do not fit the bundle, or
    are corrupted already.
    """
    folder, size = Path(source), bundle.manifest.input.height
    levels = [folder / name / level for name in CORRUPTIONS for level in ("1", "5")]
    if (folder / "labels.npy").is_file() or any(level.is_dir() for level in levels):
        raise InputError(
            f"{source} holds images that are corrupted already; streams corrupt clean ones themselves: "
            "give a clean test folder or data set"
        )
    splits = any((folder / name).is_dir() for name in ("train", "test", "val"))
    images = load_images(source, split if splits or not folder.is_dir() else None, size=size)
    return fitted(images, bundle.manifest.classes, size, source)
