"""Keys of those who make bundles: `bundle.sig` is an ed25519 signature over the bytes of `bundle.json`.

Key files are PEM and the signature is 64 plain bytes, so that `openssl` makes and checks them, too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rws.edge.common.extras import require
from rws.edge.common.files import os_errors, read_regular
from rws.errors import BundleError, FormatError, InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_BYTES = 64
_LARGEST_KEY = 16 * 2**10


@dataclass(frozen=True)
class TrustedKeys:
    """The public keys whose owners may make bundles, by ID; from `trusted_keys`."""

    by_id: Mapping[str, Ed25519PublicKey]

    def signer(self, manifest: bytes, signature: bytes, source: str) -> str:
        """Return the ID of the key that has signed the bytes of a manifest; BundleError, with `source`, if none has."""
        from cryptography.exceptions import InvalidSignature

        known = f"the trusted keys ({', '.join(self.by_id)})"
        if not signature:
            raise BundleError(f"{source}: not signed, expected a signature of one of {known}; get a signed bundle")
        for key_id, key in self.by_id.items():
            with suppress(InvalidSignature):
                key.verify(signature, manifest)
                return key_id
        fault = f"altered, or signed by none of {known}"
        raise BundleError(f"{source}: {fault}; get the bundle from its maker again, or trust the maker's key")


def trusted_keys(paths: Sequence[str | Path] | None) -> TrustedKeys | None:
    """Read public keys, one PEM file each; None, which trusts every bundle, only if no path is given.

    Raises InputError for a file that cannot be read, FormatError for one that is not an ed25519 public key,
    MissingExtraError without the extra `sign`.
    """
    return TrustedKeys(dict(_read_public(Path(path)) for path in paths)) if paths else None


def make_keys(private: Path, public: Path, passphrase: bytes | None = None) -> str:
    """Write a new pair of keys, the private one readable by its owner only, and return its ID.

    With a passphrase, 1…1023 bytes, the private key is encrypted. Raises InputError if a file is there already.
    """
    with require("sign"):
        from cryptography.hazmat.primitives import serialization as form
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    key = Ed25519PrivateKey.generate()
    locked = form.NoEncryption() if passphrase is None else form.BestAvailableEncryption(passphrase)
    secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, locked)
    shown = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    for path in (private, public):
        if os.path.lexists(path):
            raise InputError(f"{path}: is there already, and a key is not replaced; choose another name")
    _write_new(private, secret, 0o600)
    try:
        _write_new(public, shown, 0o644)
    except OSError:
        private.unlink()
        raise
    return _key_id(key.public_key())


def sign(data: bytes, private: Path, passphrase: Callable[[], bytes]) -> tuple[bytes, str]:
    """Sign bytes with a private key, and return the signature and the key's ID; raises as `trusted_keys`.

    `passphrase` is called if the key is encrypted; the wrong one is an InputError.
    """
    key = _read_private(private, passphrase)
    return key.sign(data), _key_id(key.public_key())


def _read_public(path: Path) -> tuple[str, Ed25519PublicKey]:
    with require("sign"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    pem = _read_pem(path)
    if b"PRIVATE KEY" in pem:
        raise FormatError(f"{path}: is a private key; give the public one, and keep this one off the device")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FormatError(f"{path}: not a public key in PEM; give one of `rws bundle keygen`") from error
    if not isinstance(key, Ed25519PublicKey):
        raise FormatError(f"{path}: {_kind(key)}, expected ed25519; give one of `rws bundle keygen`")
    return _key_id(key), key


def _read_private(path: Path, passphrase: Callable[[], bytes]) -> Ed25519PrivateKey:
    with require("sign"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    pem = _read_pem(path)
    if b"PUBLIC KEY" in pem:
        raise FormatError(f"{path}: is a public key; give the private one, which signs")
    password = passphrase() if b"ENCRYPTED" in pem else None
    try:
        key = load_pem_private_key(pem, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if password is not None:
            raise InputError(f"{path}: cannot be decrypted; give its passphrase") from error
        raise FormatError(f"{path}: not a private key in PEM; give one of `rws bundle keygen`") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise FormatError(f"{path}: {_kind(key)}, expected ed25519; give one of `rws bundle keygen`")
    return key


def _read_pem(path: Path) -> bytes:
    with os_errors(path, "read", "give a key file"):
        pem = read_regular(path, _LARGEST_KEY)
    if (found := pem.count(b"-----BEGIN ")) != 1:
        raise FormatError(f"{path}: holds {found} keys in PEM, expected one; give a file for each key")
    return pem


def _kind(key: Any) -> str:
    return f"is of the type {type(key).__name__.lstrip('_')}"


def _key_id(key: Ed25519PublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    # The first half of what `openssl pkey -pubin -in FILE -outform DER | sha256sum` shows, halved again.
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()[:16]


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink()
            raise
