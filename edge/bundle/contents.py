"""The files of a bundle as bytes: of them only the manifest is parsed, so that nothing in them can do harm yet."""

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rws.edge.bundle.keys import SIGNATURE_BYTES, TrustedKeys
from rws.edge.bundle.manifest import CURE, FILES, MAKER_SIGNATURE, MANIFEST, FileSpec, Manifest
from rws.edge.common.files import OpenFolder, os_errors
from rws.errors import BundleError

DETECTOR_BUNDLE, CIFAR10_BUNDLE = (Path(__file__).parent / name for name in ("detector", "cifar10"))
DEFAULT_BUNDLE = DETECTOR_BUNDLE
SHIPPED: Mapping[str, Path] = {"detector": DETECTOR_BUNDLE, "cifar10": CIFAR10_BUNDLE}
IMAGENET = "imagenet"  # the name of a bundle that is too large to ship: `rws adopt imagenet PHOTOS` makes it
LARGEST_MANIFEST = 16 * 2**20
_MOST_EXCHANGES = 100  # of the folder, during one reading


@dataclass(frozen=True, eq=False)
class BundleFiles:
    """The files of a bundle, each read once; sizes and hashes are those that the manifest says."""

    path: Path
    document: bytes = field(repr=False)  # of `bundle.json`
    manifest: Manifest
    contents: dict[str, bytes] = field(repr=False)  # of each of `FILES`
    maker_signature: bytes = b""  # of `document`; b"" if there is none
    signed_by: str = ""  # ID of the trusted key that has signed it; "" if that was not checked

    @classmethod
    def read(cls, path: str | Path | None = None, keys: TrustedKeys | None = None) -> "BundleFiles":
        """Read a bundle's files, by default those of the detector; raise BundleError if one is missing or altered.

        A shipped bundle can be given by its name, one of `SHIPPED`. All are of one folder, also if another takes its
        place meanwhile. With keys, a manifest that none of them has signed is a BundleError before it is parsed.
        """
        folder = bundle_folder(path)
        if not folder.is_dir():
            if path is not None and str(path) == IMAGENET:
                made = "pip install 'rws-edge[zoo]', then: rws adopt imagenet PHOTOS"
                raise BundleError(f"{IMAGENET}: is not on this machine yet; make it once: {made}")
            raise BundleError(f"{folder}: no such folder; give the folder of a bundle, one that holds {MANIFEST}")
        for _ in range(_MOST_EXCHANGES):
            with _opened(folder) as opened:
                try:
                    return cls._read(folder, opened, keys)
                except BundleError:  # the old folder is removed while it is read
                    if not opened.is_replaced():
                        raise
        raise BundleError(f"{folder}: was replaced {_MOST_EXCHANGES} times while it was read; try again")

    @classmethod
    def _read(cls, path: Path, opened: OpenFolder, keys: TrustedKeys | None) -> "BundleFiles":
        document, signature = _read_signed(opened, path)
        signed_by = "" if keys is None else keys.signer(document, signature, str(path))
        manifest = Manifest.parse(document, str(path / MANIFEST))
        contents = {name: _read_file(opened, path / name, manifest.files[name]) for name in FILES}
        return cls(path, document, manifest, contents, signature, signed_by)

    def by_name(self) -> dict[str, bytes]:
        """Return all files of the folder, byte by byte as they were read."""
        signature = {MAKER_SIGNATURE: self.maker_signature} if self.maker_signature else {}
        return {**self.contents, MANIFEST: self.document, **signature}

    @property
    def size(self) -> int:
        """The size of all files, bytes."""
        return len(self.document) + sum(map(len, self.contents.values()))


def bundle_folder(path: str | Path | None = None) -> Path:
    """Return the folder of a bundle: one that is there, a shipped one or `IMAGENET` by its name; None: the default."""
    if path is None:
        return DEFAULT_BUNDLE
    named = {**SHIPPED, IMAGENET: made_here(IMAGENET)}
    return Path(path) if Path(path).exists() else named.get(str(path), Path(path))


def made_here(name: str) -> Path:
    """Return where a bundle of that name, made on this machine, belongs: the user's folder for data."""
    given = os.environ.get("XDG_DATA_HOME", "")
    place = "~/Library/Application Support" if sys.platform == "darwin" else "~/.local/share"
    return Path(given if os.path.isabs(given) else os.path.expanduser(place)) / "rws" / "bundles" / name


def read_signed(folder: Path) -> tuple[bytes, bytes]:
    """Return the bytes of a bundle's manifest and of the maker's signature, b"" if there is none; or BundleError."""
    with _opened(folder) as opened:
        return _read_signed(opened, folder)


def read_file(path: Path, expected: FileSpec) -> bytes:
    """Read one of the `FILES`; raise BundleError if its size or hash is not the expected one."""
    with _opened(path.parent) as opened:
        return _read_file(opened, path, expected)


@contextmanager
def _opened(path: Path) -> Iterator[OpenFolder]:
    with os_errors(path, "read", "give the folder of a bundle", BundleError):
        opened = OpenFolder(path)
    with opened:
        yield opened


def _read_file(opened: OpenFolder, path: Path, expected: FileSpec) -> bytes:
    content = _read(opened, path, expected.bytes)
    if (size := len(content)) != expected.bytes:
        raise BundleError(f"{path}: truncated: has {size} bytes, {MANIFEST} says {expected.bytes}; {CURE}")
    if (found := hashlib.sha256(content).hexdigest()) != (wanted := expected.sha256):
        raise BundleError(f"{path}: altered: its SHA-256 is {found[:12]}…, {MANIFEST} says {wanted[:12]}…; {CURE}")
    return content


def _read_signed(opened: OpenFolder, folder: Path) -> tuple[bytes, bytes]:
    document, path = _read(opened, folder / MANIFEST, LARGEST_MANIFEST), folder / MAKER_SIGNATURE
    with os_errors(path, "read", CURE, BundleError):
        try:
            signature = opened.read(path.name, SIGNATURE_BYTES)
        except FileNotFoundError:
            return document, b""
    if (size := len(signature)) != SIGNATURE_BYTES:
        raise BundleError(f"{path}: has {size} bytes, expected {SIGNATURE_BYTES}; {CURE}")
    return document, signature


def _read(opened: OpenFolder, path: Path, limit: int) -> bytes:
    with os_errors(path, "read", CURE, BundleError):
        return opened.read(path.name, limit)
