"""Writing a bundle, and adding and removing its signatures; what was there stays until the new one is checked."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from rws.edge.bundle.bundle import POLICY_DESCRIPTION, Bundle
from rws.edge.bundle.contents import BundleFiles
from rws.edge.bundle.keys import sign
from rws.edge.bundle.manifest import (
    FILES,
    FOLDER,
    MAKER_SIGNATURE,
    MANIFEST,
    MODEL,
    ORACLE,
    POLICY,
    SIGNATURES,
    Manifest,
)
from rws.edge.common.files import atomic_path, locked, os_errors
from rws.edge.onnx.graph import clean_tensors, read_model
from rws.edge.preprocess import InputSpec, TileView
from rws.edge.signatures.signature_set import SignatureSet
from rws.edge.signatures.tensor_file import write_tensors
from rws.edge.tasks.base import TaskSpec
from rws.errors import BundleError, RwsError
from rws.oracle.policy import GainTable

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class BundleParts:
    """What a bundle is made of; the fields of plain JSON values are those of `Manifest`."""

    name: str
    classes: Sequence[str]  # in the order of the outputs
    input: InputSpec
    model: str | Path | bytes  # ONNX, path or bytes, clean, with the patched tensors as initializers
    signatures: SignatureSet
    oracle: bytes  # ONNX
    table: GainTable
    policy: Mapping[str, Any] = field(default_factory=dict)
    filter: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    task: TaskSpec = field(default_factory=lambda: TaskSpec("classify"))
    outputs: Sequence[str] = ()  # that the task reads, by name; default: all of the model's
    tiles: TileView | None = None


def write_bundle(path: str | Path, parts: BundleParts) -> Bundle:
    """Write a bundle, check it, put it in place; BundleError or SignatureError if it does not fit."""
    model = read_model(parts.model)
    document = {
        "name": parts.name,
        "classes": list(parts.classes),
        "task": asdict(parts.task),
        "outputs": list(parts.outputs or [value.name for value in model.graph.output]),
        "input": asdict(parts.input),
        "patched_tensors": [{"name": name, "shape": shape} for name, shape in parts.signatures.shapes.items()],
        "corruptions": parts.table.corruptions,
        "severity_levels": parts.table.levels,
        "filter": dict(parts.filter),
        "policy": dict(parts.policy),
        "provenance": dict(parts.provenance),
        "measured": dict(parts.measured),
        "tiles": None if parts.tiles is None else asdict(parts.tiles),
    }
    contents = {
        MODEL: parts.model if isinstance(parts.model, bytes) else model.SerializeToString(),
        SIGNATURES: parts.signatures.to_bytes(),
        ORACLE: parts.oracle,
        POLICY: write_tensors(parts.table.to_arrays(), POLICY_DESCRIPTION),
    }
    with changing(path, new=True) as target:
        return replace(_publish(target, document, contents), path=Path(path))


def add_signatures(
    path: str | Path, signatures: SignatureSet, names: Iterable[str] | None = None, transfer: bool = False
) -> Bundle:
    """Append signatures, all or those named, to a bundle, atomically; `transfer` accepts those made for other weights.

    The oracle and the gain table do not change: the policy does not choose a signature that was not measured, even if
    one of its name was there before. The bundle's measured accuracies no longer hold and move to its provenance.
    If another process changes the bundle, its end is awaited, see `changing`.
    Raises SignatureError if a name is taken or unknown, or the signatures do not fit, BundleError for a bad bundle.
    """
    with changing(path) as target:
        bundle = Bundle.load(target)
        clean = clean_tensors(read_model(bundle.read(MODEL)), bundle.signatures.tensors)
        chosen = tuple(signatures.names if names is None else names)
        merged = bundle.signatures.with_signatures(signatures.fitted_to(clean, transfer), chosen)
        changed = _with_signatures(bundle, merged, {"added": list(chosen), "made_for": signatures.clean_hash})
        return replace(changed, path=Path(path))


def remove_signature(path: str | Path, name: str) -> Bundle:
    """Take a signature out of a bundle, atomically; raise SignatureError if there is none of the name, or no other.

    Other errors, and what happens if another process changes the bundle, are as in `add_signatures`.
    """
    with changing(path) as target:
        bundle = Bundle.load(target)
        return replace(_with_signatures(bundle, bundle.signatures.without(name), {"removed": [name]}), path=Path(path))


def sign_bundle(path: str | Path, private: Path, passphrase: Callable[[], bytes]) -> str:
    """Check a bundle, sign its manifest, atomically, and return the key's ID; an earlier signature is replaced.

    The manifest holds the hashes of all other files. Raises as `Bundle.load` and `rws.edge.bundle.keys.sign`; what
    happens if another process changes the bundle is as in `add_signatures`.
    """
    with changing(path) as target:
        files = BundleFiles.read(target)
        Bundle.parse(files)
        signature, key_id = sign(files.document, private, passphrase)
        check_bundle_folder(target)
        publish(target, {**files.by_name(), MAKER_SIGNATURE: signature}, BundleFiles.read)
    return key_id


def upgrade_bundle(path: str | Path) -> bool:
    """Write a bundle in this version of the format, atomically; returns whether it was in an earlier one.

    Only `bundle.json` changes. Errors, and what happens if another process changes the bundle, are as in
    `add_signatures`.
    """
    with changing(path) as target:
        files = BundleFiles.read(target)
        bundle = Bundle.parse(files)
        if files.manifest.outputs:
            return False
        _publish(target, asdict(bundle.manifest), files.contents)
        return True


@contextmanager
def changing(path: str | Path, *, new: bool = False) -> Iterator[Path]:
    """Hold a bundle from load to publication, so that no other process changes it meanwhile; gives its real folder.

    The folder need not exist; if `new`, the one above it is created. Raises BundleError if nothing can be written
    there, InUseError if another process holds the bundle for a minute.
    """
    target = Path(os.path.realpath(path))
    with os_errors(target, "written", "give a folder that can", BundleError):
        if new:
            target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target):
            yield target


def _with_signatures(bundle: Bundle, signatures: SignatureSet, change: Mapping[str, Any]) -> Bundle:
    old = asdict(bundle.manifest)
    changes = [*old["provenance"].get("changes", []), {**change, "measured_before": old["measured"]}]
    document = {**old, "provenance": {**old["provenance"], "changes": changes}, "measured": {}}
    # What was measured of a signature that is taken out must not serve another one of its name later.
    measured = bundle.table.limited_to([name for name in signatures.names if name in bundle.signatures.names])
    contents = {name: bundle.read(name) for name in FILES} | {
        SIGNATURES: signatures.to_bytes(),
        POLICY: write_tensors(measured.to_arrays(), POLICY_DESCRIPTION),
    }
    return _publish(bundle.path, document, contents)


def check_bundle_folder(target: Path) -> None:
    """Raise BundleError if `target` is a file, or a folder with files that are not a bundle's and would be lost."""
    if target.is_file():
        raise BundleError(f"{target}: cannot be written, it is a file; give a folder")
    foreign = sorted({item.name for item in target.iterdir()} - {*FOLDER}) if target.is_dir() else []
    if foreign:
        raise BundleError(
            f"{target}: holds {foreign[0]!r}, which is not part of a bundle; move it, or give another folder"
        )


def publish(target: Path, contents: Mapping[str, bytes], check: Callable[[Path], T]) -> T:
    """Write a folder next to `target`, check it there, and put it in place; returns and raises as `check`."""
    with atomic_path(target, folder=True) as temporary:
        for name, content in contents.items():
            (temporary / name).write_bytes(content)
        try:
            return check(temporary)
        except RwsError as error:
            raise type(error)(str(error).replace(str(temporary), str(target))) from error


def _publish(target: Path, document: Mapping[str, Any], contents: Mapping[str, bytes]) -> Bundle:
    check_bundle_folder(target)
    hashed = ((name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in contents.items())
    files = {name: {"sha256": digest, "bytes": size} for name, digest, size in hashed}
    manifest = Manifest.check({**document, "files": files}, str(target / MANIFEST))
    return replace(publish(target, {**contents, MANIFEST: manifest.to_bytes()}, Bundle.load), path=target)
