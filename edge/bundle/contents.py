"""The files of a bundle as bytes: of them only the manifest is parsed, so that nothing in them can do harm yet."""

import hashlib
import stat
from dataclasses import dataclass, field
from pathlib import Path

from rws.edge.bundle.manifest import CURE, FILES, MANIFEST, FileSpec, Manifest
from rws.errors import BundleError

DEFAULT_BUNDLE = Path(__file__).parent / "default"
_LARGEST_MANIFEST = 16 * 2**20


@dataclass(frozen=True, eq=False)
class BundleFiles:
    """The files of a bundle, each read once; sizes and hashes are those that the manifest says."""

    path: Path
    document: bytes = field(repr=False)  # of `bundle.json`
    manifest: Manifest
    contents: dict[str, bytes] = field(repr=False)  # of each of `FILES`

    @classmethod
    def read(cls, path: str | Path | None = None) -> "BundleFiles":
        """Read a bundle's files, by default the bundled one's; raise BundleError if one is missing or altered."""
        folder = DEFAULT_BUNDLE if path is None else Path(path)
        if not folder.is_dir():
            raise BundleError(f"{folder}: no such folder; give the folder of a bundle, one that holds {MANIFEST}")
        document = read_document(folder)
        manifest = Manifest.parse(document, str(folder / MANIFEST))
        return cls(folder, document, manifest, {name: read_file(folder / name, manifest.files[name]) for name in FILES})

    @property
    def size(self) -> int:
        """The size of all files, bytes."""
        return len(self.document) + sum(map(len, self.contents.values()))


def read_document(folder: Path) -> bytes:
    """Return the bytes of a bundle's manifest; raise BundleError if it is no regular file, or too large."""
    return _read_regular(folder / MANIFEST)


def read_file(path: Path, expected: FileSpec) -> bytes:
    """Read one of the `FILES`; raise BundleError if its size or hash is not the expected one."""
    content = _read_regular(path, expected.bytes)
    if (found := hashlib.sha256(content).hexdigest()) != (wanted := expected.sha256):
        raise BundleError(f"{path}: altered: its SHA-256 is {found[:12]}…, {MANIFEST} says {wanted[:12]}…; {CURE}")
    return content


def _read_regular(path: Path, size: int | None = None) -> bytes:
    """Read a file that is not a link, of the given size if any; the size is checked before anything is read."""
    try:
        status = path.lstat()
        found = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path}: not a regular file (links are not followed); copy the file into the bundle")
        if size is not None and found != size:
            what = "truncated" if found < size else "too long"
            raise BundleError(f"{path}: {what}: has {found} bytes, {MANIFEST} says {size}; {CURE}")
        if size is None and found > _LARGEST_MANIFEST:
            raise BundleError(f"{path}: has {found} bytes, expected at most {_LARGEST_MANIFEST}; give a bundle")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error}); {CURE}") from error
