"""Which image files lie in folders, and what else does: nothing is left out in silence."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from rws.edge.sources.capture.decoding.still import IMAGE_SUFFIXES
from rws.text import printable

CONVERTIBLE = re.compile(r"\.(?:arw|avif|cr2|cr3|dng|gif|heic|heif|jxl|nef|orf|pdf|psd|raf|rw2|svg)")
VIDEOS = re.compile(r"\.(?:3gp|avi|flv|m4v|mjpe?g|mkv|mov|mp4|mpe?g|m?ts|webm|wmv)")
NO_SUFFIX, OTHER, UNREADABLE, AGAIN = "without suffix", "other", "unreadable folder", "link to a folder read already"
MOST_KINDS = 12
_LONGEST_SUFFIX = 10

log = logging.getLogger(__name__)


def find_images(paths: Iterable[str | Path]) -> tuple[list[Path], Counter[str]]:
    """Return the image files among and below `paths`, in natural order, and how many of what was left out.

    Links are followed. Each folder is read once, so a link to one above ends; of several links to one image each
    counts. Files are left out by suffix, the rarest as `other`; unreadable folders are named in a warning.
    """
    images, others, kinds = dict[str, None](), dict[str, str](), Counter[str]()
    folders, links, entered = list[str](), list[str](), set[tuple[int, int]]()

    def add(path: str, is_folder: bool, is_link: bool) -> None:
        suffix = os.path.splitext(path)[1].lower()
        if is_folder:
            (links if is_link else folders).append(path)
        elif suffix in IMAGE_SUFFIXES:
            images[path] = None
        else:
            others[path] = printable(suffix) if len(suffix) <= _LONGEST_SUFFIX else OTHER

    for path in map(str, paths):
        add(path, os.path.isdir(path), os.path.islink(path))
    while folders or links:
        # Links last, so that a file has the shorter of its names.
        is_link = not folders
        folder = (folders or links).pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                kinds[AGAIN] += is_link
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    linked = entry.is_symlink()
                    add(entry.path, os.path.isdir(entry.path) if linked else entry.is_dir(), linked)
        except OSError as error:
            kinds[UNREADABLE] += 1
            log.warning("%s: cannot be read (%s)", printable(folder), error.strerror or error)
    kinds.update(kind or NO_SUFFIX for kind in others.values())
    frequent = Counter(dict(kinds.most_common(MOST_KINDS)))
    frequent[OTHER] += kinds.total() - frequent.total()
    return sorted(map(Path, images), key=_natural), +frequent


def describe(left_out: Mapping[str, int]) -> str:
    """Return what was left out, for people: `12 .heic (convert them to JPEG or PNG), 3 .txt`."""

    def advice(kind: str) -> str:
        if CONVERTIBLE.fullmatch(kind):
            return " (convert them to JPEG or PNG)"
        return " (give a video alone)" if VIDEOS.fullmatch(kind) else ""

    return ", ".join(f"{count} {kind}{advice(kind)}" for kind, count in left_out.items())


def _natural(path: Path) -> list[tuple[int, int, str]]:
    # Text and numbers are never compared with each other: the first field of each part tells them apart.
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", str(path))]
