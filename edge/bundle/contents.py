"""The files of a bundle as bytes: of them only the manifest is parsed, so that nothing in them can do harm yet."""

import hashlib
import stat
from dataclasses import dataclass, field
from pathlib import Path

from rws.edge.bundle.keys import SIGNATURE_BYTES, TrustedKeys
from rws.edge.bundle.manifest import CURE, FILES, MAKER_SIGNATURE, MANIFEST, FileSpec, Manifest
from rws.edge.common.files import read_regular
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
    maker_signature: bytes = b""  # of `document`; b"" if there is none
    signed_by: str = ""  # ID of the trusted key that has signed it; "" if that was not checked

    @classmethod
    def read(cls, path: str | Path | None = None, keys: TrustedKeys | None = None) -> "BundleFiles":
        """Read a bundle's files, by default the bundled one's; raise BundleError if one is missing or altered.

        With keys, a manifest that none of them has signed is a BundleError before it is parsed.
        """
        folder = DEFAULT_BUNDLE if path is None else Path(path)
        if not folder.is_dir():
            raise BundleError(f"{folder}: no such folder; give the folder of a bundle, one that holds {MANIFEST}")
        document, signature = _read_regular(folder / MANIFEST), _read_maker_signature(folder)
        signed_by = "" if keys is None else keys.signer(document, signature, str(folder))
        manifest = Manifest.parse(document, str(folder / MANIFEST))
        contents = {name: read_file(folder / name, manifest.files[name]) for name in FILES}
        return cls(folder, document, manifest, contents, signature, signed_by)

    def by_name(self) -> dict[str, bytes]:
        """Return all files of the folder, byte by byte as they were read."""
        signature = {MAKER_SIGNATURE: self.maker_signature} if self.maker_signature else {}
        return {**self.contents, MANIFEST: self.document, **signature}

    @property
    def size(self) -> int:
        """The size of all files, bytes."""
        return len(self.document) + sum(map(len, self.contents.values()))


def _read_maker_signature(folder: Path) -> bytes:
    """Return the signature of a bundle's maker, b"" if there is none; raise BundleError if its file is malformed."""
    path = folder / MAKER_SIGNATURE
    try:
        signature = read_regular(path, SIGNATURE_BYTES, follow=False)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error}); {CURE}") from error
    if len(signature) != SIGNATURE_BYTES:
        raise BundleError(f"{path}: has {len(signature)} bytes, expected {SIGNATURE_BYTES}; {CURE}")
    return signature


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
