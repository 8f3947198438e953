"""The bundle: a folder with everything a device needs, checked before anything of it is used.

Format version 1:

- The folder MUST hold `bundle.json`, `model.onnx`, `signatures.safetensors`, `oracle.onnx` and `policy.safetensors`, as
  regular files, not links.
- `bundle.json` MUST be a JSON object with exactly the keys of `Manifest`, `format` ("rws-bundle") and `version` (1);
  its `files` MUST give size and SHA-256 of the other four files, and name no others.
- `model.onnx` MUST take one float32 image (N, 3, height, width), RGB, 0…1, give one logit a class, and hold every
  patched tensor as a finite float32 initializer. ONNX files MUST NOT refer to other files.
- `signatures.safetensors` (see `rws.edge.signatures.signature_set`) MUST be made for the patched tensors of
`model.onnx`.
- `oracle.onnx` MUST take the same image and give 1 + corruptions x levels probabilities.
- `policy.safetensors` MUST hold the finite arrays of a gain table (see `rws.oracle.policy`) and no others.
- A reader MUST check sizes and hashes first and refuse a bundle that breaks any of this.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rws.edge.common.files import atomic_path
from rws.edge.live.base import PatchableModel
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.onnx.graph import clean_tensors, data_input, output_shape, read_model
from rws.edge.signatures.signature_set import SignatureSet, check_signature_name
from rws.edge.signatures.tensor_file import read_tensors, write_tensors
from rws.errors import BundleError, FormatError, InputError, RwsError
from rws.oracle.classifier import Oracle
from rws.oracle.policy import GainTable, Policy, make_policy
from rws.oracle.temporal_filter import BeliefFilter

DEFAULT_BUNDLE = Path(__file__).parent / "default"
FORMAT = "rws-bundle"
VERSION = 1
MANIFEST = "bundle.json"
MODEL, SIGNATURES, ORACLE, POLICY = "model.onnx", "signatures.safetensors", "oracle.onnx", "policy.safetensors"
FILES = (MODEL, SIGNATURES, ORACLE, POLICY)

_POLICY_DESCRIPTION = {"format": "rws-policy", "version": 1}
_LARGEST_MANIFEST = 16 * 2**20


@dataclass(frozen=True)
class InputSpec:
    """The model's input: float32 (N, 3, height, width), range 0…1, not normalised."""

    height: int
    width: int
    colour: str


@dataclass(frozen=True)
class TensorSpec:
    """A patched tensor of the model."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class FileSpec:
    """Size in bytes and SHA-256, 64 hexadecimal digits, of a file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What `bundle.json` says.

    Args:
        name: the bundle's name.
        classes: the class names, in the order of the logits.
        input: the model's input.
        patched_tensors: in the order of the network.
        corruptions: the corruption names that the oracle knows, in the order of its output.
        severity_levels: the levels that the oracle tells apart, ascending, above 0, at most 5.
        filter: settings of `BeliefFilter`.
        policy: kind and settings of the policy, see `rws.oracle.policy.make_policy`.
        provenance: where everything came from: recipe, seed, data, versions, command.
        measured: accuracies in percent, and on what.
        files: file name → size and hash.
    """

    name: str
    classes: tuple[str, ...]
    input: InputSpec
    patched_tensors: tuple[TensorSpec, ...]
    corruptions: tuple[str, ...]
    severity_levels: tuple[float, ...]
    filter: Mapping[str, Any]
    policy: Mapping[str, Any]
    provenance: Mapping[str, Any]
    measured: Mapping[str, Any]
    files: Mapping[str, FileSpec]

    def size_warning(self, height: int, width: int) -> str:
        """What to know about frames of this size, pixels, in one line; "" if the oracle was calibrated on such.

        A frame that has to be shrunk to the model's input looks unlike a picture that was taken at that size.
        """
        # Only `rws build --model` sees pictures as the device does, shrunk from the camera's own size, and counts them
        # in its provenance. The oracle of any other bundle knows pictures of the model's input size.
        data = self.provenance.get("data")
        adopted = isinstance(data, dict) and "pictures" in data
        if adopted or height <= self.input.height or width <= self.input.width:
            return ""
        return (
            f"frames of {width}x{height} are larger than the {self.input.width}x{self.input.height} pixels that the "
            f"oracle of bundle {self.name} was calibrated on: on clear pictures it may see corruption that is not "
            "there; adopt a model with your own pictures (`rws build --model`, see docs/your_own_model.md)"
        )


@dataclass(frozen=True, eq=False)
class Bundle:
    """A verified bundle; get one with `Bundle.load` or `write_bundle`.

    Args:
        path: the folder.
        manifest: what `bundle.json` says.
        signatures: the signatures, checked against the model.
        table: the gain table of the signatures that are there.

    Example:
        >>> bundle = Bundle.load("my_bundle")  # doctest: +SKIP
        >>> model = bundle.model()
        >>> model.apply({"fog": 0.8})
    """

    path: Path
    manifest: Manifest
    signatures: SignatureSet
    table: GainTable

    @classmethod
    def load(cls, path: str | Path | None = None) -> Bundle:
        """Read a bundle and check all of it.

        Args:
            path: the folder; None for the bundled default.

        Raises:
            BundleError: if a file is missing, altered or breaks the format.
            SignatureError: if the signatures do, or are for another model.
        """
        folder = DEFAULT_BUNDLE if path is None else Path(path)
        if not folder.is_dir():
            raise BundleError(f"{folder}: no such folder; give the folder of a bundle, one that holds {MANIFEST}")
        manifest = _read_manifest(folder)
        contents = {name: _read_file(folder, manifest, name) for name in FILES}
        signatures = SignatureSet.from_bytes(contents[SIGNATURES], str(folder / SIGNATURES))
        table = _read_table(contents[POLICY], folder / POLICY, manifest).limited_to(signatures.names)
        _check_model(contents[MODEL], folder / MODEL, manifest, signatures)
        states = 1 + len(manifest.corruptions) * len(manifest.severity_levels)
        _check_network(contents[ORACLE], folder / ORACLE, manifest, states)
        bundle = cls(folder, manifest, signatures, table)
        bundle.policy()
        bundle.filter()
        return bundle

    def read(self, name: str) -> bytes:
        """One of the bundle's `FILES`, checked again.

        Raises:
            BundleError: if it has changed since the bundle was loaded.
        """
        return _read_file(self.path, self.manifest, name)

    def model(
        self, backend: str = "onnx", threads: int | None = None, provider: str = "auto", strategy: str = "auto"
    ) -> PatchableModel:
        """The clean model, ready to be patched.

        Args:
            backend: "onnx" for ONNX Runtime, "torch" for Torch (needs the extra `torch`).
            threads: threads inside an operator; for Torch this holds for the whole process.
            provider: what runs it: "cpu", "cuda", for ONNX Runtime also "tensorrt" or a provider's full name; "auto" is
                CUDA where it works, and else the CPU.
            strategy: how its weights are changed; see `OnnxModel` and `TorchModel`.

        Raises:
            BundleError: if the model's file has changed since, the backend cannot run it, or the provider is not there.
            InputError: if the backend or the strategy is unknown.
            MissingExtraError: if the backend is not installed.
        """
        if backend not in ("onnx", "torch"):
            raise InputError(f"backend is {backend!r}, expected 'onnx' or 'torch'")
        content = self.read(MODEL)
        if backend == "onnx":
            return OnnxModel(
                content,
                self.signatures,
                self.signatures.tensors,
                provider=provider,
                threads=threads,
                strategy=strategy,
                image_size=(self.manifest.input.height, self.manifest.input.width),
            )
        from rws.edge.live.torch_model import TorchModel

        return TorchModel.from_onnx(
            content, self.signatures, self.signatures.tensors, device=provider, threads=threads, strategy=strategy
        )

    def oracle(self, threads: int | None = None) -> Oracle:
        """The corruption classifier.

        Raises:
            BundleError: if its file has changed since.
            FormatError: if ONNX Runtime cannot run it.
        """
        return Oracle(self.read(ORACLE), self.manifest.corruptions, self.manifest.severity_levels, threads=threads)

    def policy(self, independent: bool = False) -> Policy:
        """The policy, limited to the signatures that are there.

        Args:
            independent: for images that have nothing to do with one another: no hysteresis.

        Raises:
            BundleError: if the manifest has settings that the policy does not take.
        """
        try:
            return make_policy(self.table, self.manifest.policy, independent)
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"{self.path / MANIFEST}: policy does not fit ({error}); build the bundle again"
            ) from error

    def filter(self) -> BeliefFilter:
        """A new temporal filter.

        Raises:
            BundleError: if the manifest has settings that the filter does not take.
        """
        try:
            return BeliefFilter(self.manifest.corruptions, self.manifest.severity_levels, **self.manifest.filter)
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"{self.path / MANIFEST}: filter does not fit ({error}); build the bundle again"
            ) from error


def write_bundle(
    path: str | Path,
    *,
    name: str,
    classes: Sequence[str],
    input_size: tuple[int, int],
    model: str | Path | bytes,
    signatures: SignatureSet,
    oracle: bytes,
    severity_levels: Sequence[float],
    policy_arrays: Mapping[str, NDArray[Any]],
    corruptions: Sequence[str] | None = None,
    policy: Mapping[str, Any] | None = None,
    filter: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a bundle folder, check it, and only then let it take the place of what was there.

    Args:
        path: the folder; an existing one must be a bundle, and is replaced.
        name: the bundle's name.
        classes: class names in the order of the logits.
        input_size: height and width of the input, pixels.
        model: path or bytes of the clean ONNX model, with the patched tensors as initializers.
        signatures: made for the model's patched tensors.
        oracle: bytes of the oracle's ONNX network.
        severity_levels: the oracle's levels.
        policy_arrays: `GainTable.to_arrays()`.
        corruptions: the oracle's corruptions; None for the signatures' names.
        policy, filter: see `rws.oracle.policy.make_policy`, and settings of `BeliefFilter`.
        provenance, measured: plain JSON values.

    Raises:
        BundleError: if the parts do not fit together, or `path` holds anything but a bundle.
        SignatureError: if the signatures are for another model.
    """
    manifest = Manifest(
        name=name,
        classes=tuple(classes),
        input=InputSpec(*input_size, colour="RGB"),
        patched_tensors=tuple(TensorSpec(tensor, shape) for tensor, shape in signatures.shapes.items()),
        corruptions=tuple(signatures.names if corruptions is None else corruptions),
        severity_levels=tuple(severity_levels),
        filter=dict(filter or {}),
        policy=dict(policy or {}),
        provenance=dict(provenance or {}),
        measured=dict(measured or {}),
        files={},
    )
    contents = {
        MODEL: read_model(model).SerializeToString(),
        SIGNATURES: signatures.to_bytes(),
        ORACLE: oracle,
        POLICY: write_tensors(policy_arrays, _POLICY_DESCRIPTION),
    }
    return _publish(Path(path), manifest, contents)


def add_signatures(
    path: str | Path, signatures: SignatureSet, names: Iterable[str] | None = None, transfer: bool = False
) -> Bundle:
    """Append signatures to a bundle, atomically.

    The oracle and the gain table do not learn about them: the policy does not choose a signature that was not
    measured, also where one of its name was there before. The bundle's measured accuracies no longer hold and move
    to its provenance.

    Args:
        path: the bundle's folder.
        signatures: the set to take them from.
        names: which of them; None for all.
        transfer: accept signatures that were made for other weights of the same names and shapes.

    Raises:
        SignatureError: if a name is taken or unknown, or the signatures do not fit the model.
        BundleError: if the bundle is not valid.
    """
    bundle = Bundle.load(path)
    clean = clean_tensors(read_model(bundle.read(MODEL)), bundle.signatures.tensors)
    chosen = tuple(signatures.names if names is None else names)
    merged = bundle.signatures.with_signatures(signatures.fitted_to(clean, transfer), chosen)
    return _with_signatures(bundle, merged, {"added": list(chosen), "made_for": signatures.clean_hash})


def remove_signature(path: str | Path, name: str) -> Bundle:
    """Take a signature out of a bundle, atomically; the policy no longer chooses it.

    Raises:
        SignatureError: if there is no such signature, or it is the only one.
        BundleError: if the bundle is not valid.
    """
    bundle = Bundle.load(path)
    return _with_signatures(bundle, bundle.signatures.without(name), {"removed": [name]})


def self_test(bundle: Bundle) -> list[str]:
    """Run a bundle: every network, and every signature alone, patched and taken back.

    Returns:
        One line for each thing that was found to work.

    Raises:
        RwsError: at the first that does not.
    """
    size = bundle.manifest.input
    x = np.random.default_rng(0).random((3, size.height, size.width), np.float32)
    model, oracle, policy = bundle.model(threads=1), bundle.oracle(threads=1), bundle.policy()
    clean = model.predict(x)
    if clean.shape != (1, len(bundle.manifest.classes)) or not np.isfinite(clean).all():
        raise BundleError(
            f"{bundle.path / MODEL}: gives {clean.shape} for one image, expected (1, {len(bundle.manifest.classes)}) "
            f"finite logits; export it again"
        )
    for name in bundle.signatures.names:
        model.apply({name: 1.0})
        if not np.isfinite(model.predict(x)).all():
            raise BundleError(
                f"{bundle.path / MODEL}: with {name!r} its logits are not finite; extract that signature again"
            )
    model.reset()
    if not np.array_equal(model.predict(x), clean):
        raise RwsError("the clean weights did not come back after a patch; report this with the versions in `pip list`")
    joint = oracle.observe(x).joint
    if not np.isfinite(joint).all() or abs(float(joint.sum()) - 1) > 1e-3:
        raise BundleError(f"{bundle.path / ORACLE}: its probabilities do not sum to 1; export it again")
    model.apply(policy.choose(oracle.observe(x)))
    return [
        f"model runs: 3 x {size.height} x {size.width} to {clean.shape[1]} classes",
        f"{len(bundle.signatures.names)} signatures patch it, and the clean weights come back bit for bit",
        f"oracle runs: {len(joint)} states",
        f"policy chooses among {len(bundle.table.alpha)} actions",
    ]


def _with_signatures(bundle: Bundle, signatures: SignatureSet, change: dict[str, Any]) -> Bundle:
    old = bundle.manifest
    change = {**change, "measured_before": old.measured}
    provenance = {**old.provenance, "changes": [*old.provenance.get("changes", []), change]}
    # What was measured of a signature that is taken out must not serve another one of its name later.
    measured = bundle.table.limited_to([name for name in signatures.names if name in bundle.signatures.names])
    contents = {name: bundle.read(name) for name in FILES} | {
        SIGNATURES: signatures.to_bytes(),
        POLICY: write_tensors(measured.to_arrays(), _POLICY_DESCRIPTION),
    }
    return _publish(bundle.path, replace(old, provenance=provenance, measured={}), contents)


def check_bundle_folder(target: Path) -> None:
    """Refuse a folder that holds anything that is no part of a bundle: it would be lost.

    Raises:
        BundleError: if it does, or if `target` is a file.
    """
    if target.is_file():
        raise BundleError(f"{target}: cannot be written, it is a file; give a folder")
    foreign = sorted({item.name for item in target.iterdir()} - {MANIFEST, *FILES}) if target.is_dir() else []
    if foreign:
        raise BundleError(
            f"{target}: holds {foreign[0]!r}, which is no part of a bundle; move it, or give another folder"
        )


def _publish(target: Path, manifest: Manifest, contents: Mapping[str, bytes]) -> Bundle:
    """Write a folder beside `target`, load it as any reader would, and put it in place."""
    check_bundle_folder(target)
    files = {name: FileSpec(hashlib.sha256(content).hexdigest(), len(content)) for name, content in contents.items()}
    document = {"format": FORMAT, "version": VERSION, **asdict(replace(manifest, files=files))}
    try:
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"{target}: the manifest is not plain JSON ({error}); use finite numbers, text and lists"
        ) from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            temporary.mkdir()
            for name, content in contents.items():
                (temporary / name).write_bytes(content)
            (temporary / MANIFEST).write_text(text + "\n", encoding="utf-8")
            bundle = _load_as(temporary, target)
    except OSError as error:
        raise BundleError(f"{target}: cannot be written ({error.strerror or error}); give a folder that can") from error
    return replace(bundle, path=target)


def _load_as(folder: Path, name: Path) -> Bundle:
    """Load a bundle whose folder is called `name` in errors."""
    try:
        return Bundle.load(folder)
    except RwsError as error:
        raise type(error)(str(error).replace(str(folder), str(name))) from error


def _check_model(content: bytes, source: Path, manifest: Manifest, signatures: SignatureSet) -> None:
    shapes = {tensor.name: tensor.shape for tensor in manifest.patched_tensors}
    clean = clean_tensors(_check_network(content, source, manifest, len(manifest.classes)), shapes)
    for name, shape in shapes.items():
        if clean[name].shape != shape:
            raise BundleError(
                f"{source}: tensor {name!r} has shape {clean[name].shape}, {MANIFEST} says {shape}; build the bundle "
                f"again"
            )
    signatures.fitted_to(clean)


def _check_network(content: bytes, source: Path, manifest: Manifest, outputs: int) -> Any:
    """The network of an ONNX file, which takes the manifest's image and gives `outputs` numbers for each."""
    network = read_model(content, str(source))
    expected = (3, manifest.input.height, manifest.input.width)
    shape = data_input(network, str(source))[1]
    if len(shape) != 4 or any(found not in (None, want) for found, want in zip(shape[1:], expected, strict=True)):
        raise BundleError(
            f"{source}: takes {shape}, expected (N, {expected[0]}, {expected[1]}, {expected[2]}); export it again"
        )
    result = output_shape(network)
    if len(result) != 2 or result[1] not in (None, outputs):
        raise BundleError(f"{source}: gives {result}, expected (N, {outputs}); export it again")
    return network


def _read_table(content: bytes, source: Path, manifest: Manifest) -> GainTable:
    arrays, description = read_tensors(content, str(source))
    if description != _POLICY_DESCRIPTION:
        raise BundleError(f"{source}: is {_short(description)}, expected {_POLICY_DESCRIPTION}; build the bundle again")
    try:
        table = GainTable.from_arrays(arrays, manifest.corruptions, manifest.severity_levels)
    except (TypeError, ValueError, IndexError) as error:
        raise BundleError(f"{source}: {error}") from error
    extra = arrays.keys() - table.to_arrays().keys()
    if extra:
        raise BundleError(f"{source}: tensor {min(extra)!r} is unknown; build the bundle again")
    return table


def _read_file(folder: Path, manifest: Manifest, name: str) -> bytes:
    """A file of a bundle, after its size and hash were checked."""
    expected = manifest.files[name]
    content = _read_regular(folder / name, expected.bytes)
    found = hashlib.sha256(content).hexdigest()
    if found != expected.sha256:
        raise BundleError(
            f"{folder / name}: altered: its SHA-256 is {found[:12]}…, {MANIFEST} says {expected.sha256[:12]}…; copy or "
            f"build the bundle again"
        )
    return content


def _read_manifest(folder: Path) -> Manifest:
    source = folder / MANIFEST
    try:
        document = json.loads(
            _read_regular(source).decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys
        )
    except (ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise BundleError(f"{source}: not valid JSON ({error}); copy or build the bundle again") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError(f"{source}: not the manifest of a bundle: 'format' is not {FORMAT!r}; give a bundle")
    if document.get("version") != VERSION:
        raise BundleError(
            f"{source}: format version is {_short(document.get('version'))}, this program reads {VERSION}; install the "
            f"version of rws-edge that wrote it, or build the bundle again"
        )
    for kind, keys in (("unknown", document.keys() - _SCHEMA.keys()), ("missing", _SCHEMA.keys() - document.keys())):
        if keys:
            raise BundleError(f"{source}: key {min(keys)!r} is {kind}; copy or build the bundle again")
    for key, (fits, expected) in _SCHEMA.items():
        if not fits(document[key]):
            raise BundleError(
                f"{source}: {key} is {_short(document[key])}, expected {expected}; build the bundle again"
            )
    for corruption in document["corruptions"]:
        check_signature_name(corruption, str(source))
    size = document["input"]
    return Manifest(
        name=document["name"],
        classes=tuple(document["classes"]),
        input=InputSpec(size["height"], size["width"], size["colour"]),
        patched_tensors=tuple(TensorSpec(item["name"], tuple(item["shape"])) for item in document["patched_tensors"]),
        corruptions=tuple(document["corruptions"]),
        severity_levels=tuple(float(level) for level in document["severity_levels"]),
        filter=document["filter"],
        policy=document["policy"],
        provenance=document["provenance"],
        measured=document["measured"],
        files={name: FileSpec(**entry) for name, entry in document["files"].items()},
    )


def _read_regular(path: Path, size: int | None = None) -> bytes:
    """Read a file that is no link and, where told, of the right size; nothing is read before that is known."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(
                f"{path}: not a regular file (links are not followed); copy the file itself into the bundle"
            )
        if size is not None and found.st_size != size:
            raise BundleError(
                f"{path}: {'truncated' if found.st_size < size else 'too long'}: has {found.st_size} bytes, {MANIFEST} "
                f"says {size}; copy or build the bundle again"
            )
        if size is None and found.st_size > _LARGEST_MANIFEST:
            raise BundleError(f"{path}: has {found.st_size} bytes, expected at most {_LARGEST_MANIFEST}; give a bundle")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be read ({error.strerror or error}); copy or build the bundle again"
        ) from error


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable()


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**53


def _is_list(value: Any, fits: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(fits(item) for item in value)


def _has_keys(value: Any, fits: Mapping[str, Any]) -> bool:
    return isinstance(value, dict) and value.keys() == fits.keys() and all(fits[key](value[key]) for key in fits)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_level(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 5


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


_INPUT = {"height": _is_count, "width": _is_count, "colour": lambda value: value == "RGB"}
_TENSOR = {"name": _is_text, "shape": lambda value: _is_list(value, _is_count)}
_FILE = {"sha256": _is_sha256, "bytes": _is_count}

_SCHEMA: dict[str, tuple[Any, str]] = {
    "format": (_is_text, repr(FORMAT)),
    "version": (_is_count, str(VERSION)),
    "name": (_is_text, "printable text"),
    "classes": (lambda value: _is_list(value, _is_text), "a list of class names in printable text"),
    "input": (lambda value: _has_keys(value, _INPUT), "height and width in pixels, and colour 'RGB'"),
    "patched_tensors": (
        lambda value: (
            _is_list(value, lambda item: _has_keys(item, _TENSOR))
            and len({item["name"] for item in value}) == len(value)
        ),
        "a list of {name, shape}, no name twice",
    ),
    "corruptions": (
        lambda value: _is_list(value, _is_text) and len(set(value)) == len(value),
        "a list of names, none twice",
    ),
    "severity_levels": (
        lambda value: _is_list(value, _is_level) and value == sorted(set(value)),
        "ascending numbers above 0, at most 5",
    ),
    "filter": (_is_object, "an object of settings"),
    "policy": (_is_object, "an object of settings"),
    "provenance": (
        lambda value: isinstance(value, dict) and isinstance(value.get("changes", []), list),
        "an object, its 'changes' a list",
    ),
    "measured": (_is_object, "an object"),
    "files": (
        lambda value: _has_keys(value, dict.fromkeys(FILES, lambda entry: _has_keys(entry, _FILE))),
        f"{{sha256, bytes}} for {', '.join(FILES)} and no other file",
    ),
}
