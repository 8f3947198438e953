"""The bundle: a folder with everything a device needs, checked before it is used; its format is in README.md."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from rws.edge.bundle.contents import BundleFiles, read_file
from rws.edge.bundle.keys import TrustedKeys
from rws.edge.bundle.manifest import CURE, MANIFEST, MODEL, ORACLE, POLICY, SIGNATURES, Manifest
from rws.edge.bundle.options import ModelOptions
from rws.edge.common.schema import shorten
from rws.edge.live.base import PatchableModel
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.onnx.check import check_network
from rws.edge.onnx.graph import clean_tensors, data_input, read_model, value_shape
from rws.edge.preprocess import View
from rws.edge.signatures.quantization import largest_value
from rws.edge.signatures.signature_set import SignatureSet
from rws.edge.signatures.tensor_file import read_tensors
from rws.edge.tasks.base import Task
from rws.edge.tasks.registry import make_task
from rws.errors import BundleError, InputError, SignatureError
from rws.oracle.classifier import Oracle
from rws.oracle.policy import GainTable, Policy, make_policy
from rws.oracle.temporal_filter import BeliefFilter

POLICY_DESCRIPTION: Mapping[str, Any] = {"format": "rws-policy", "version": 1}
_LARGEST_CHANGE = 1e6  # of a weight: far beyond what an extraction gives
_LARGEST_BATCH = 64  # that a model may be fixed to


@dataclass(frozen=True, eq=False)
class Bundle:
    """A verified bundle, from `Bundle.load` or `write_bundle`; until `release` it keeps what was read of its files."""

    path: Path
    manifest: Manifest
    signatures: SignatureSet
    table: GainTable  # of the signatures that are there
    signed: bool = False
    signed_by: str = ""  # ID of the trusted key, if it was checked
    _contents: dict[str, bytes] = field(default_factory=dict, repr=False)
    _networks: dict[str, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        about, size = self.manifest, self.manifest.input
        holds = f"{len(about.classes)} classes, {len(self.signatures.names)} signatures"
        return f"Bundle({about.name}, {size.width}x{size.height} px, {holds}, {self.path})"

    @classmethod
    def load(cls, path: str | Path | None = None, keys: TrustedKeys | None = None) -> "Bundle":
        """Check and read a bundle, by default the detector; raise BundleError or SignatureError if it is invalid.

        With keys, a bundle that none of them has signed is a BundleError before anything of it is parsed.
        """
        return cls.parse(BundleFiles.read(path, keys))

    @classmethod
    def parse(cls, files: BundleFiles) -> "Bundle":
        """Check files that were read; raise BundleError or SignatureError if one of them is invalid."""
        folder, manifest, contents = files.path, files.manifest, dict(files.contents)
        signatures = SignatureSet.from_bytes(contents[SIGNATURES], str(folder / SIGNATURES))
        table = _read_table(contents[POLICY], folder / POLICY, manifest).limited_to(signatures.names)
        model = _check_model(contents[MODEL], folder / MODEL, manifest, signatures)
        manifest = replace(manifest, outputs=manifest.outputs or (model.graph.output[0].name,))
        _check_strength(signatures, table, folder / SIGNATURES)
        states = 1 + len(manifest.corruptions) * len(manifest.severity_levels)
        oracle = _check_network(contents[ORACLE], folder / ORACLE, manifest.view)
        _check_rows(oracle, (oracle.graph.output[0].name,), states, folder / ORACLE)
        signed = bool(files.maker_signature)
        bundle = cls(folder, manifest, signatures, table, signed, files.signed_by, contents, {MODEL: model})
        bundle.policy()
        bundle.filter()
        return bundle

    @classmethod
    def load_classifier(cls, path: str | Path | None = None, any_range: bool = False) -> "Bundle":
        """Load a bundle as `load` does; BundleError unless it classifies the square images that its oracle sees.

        With `any_range` its model may take them in another range, type, layout or order of the colours.
        """
        bundle = cls.load(path)
        about = bundle.manifest
        same = about.input.height == about.input.width if any_range else about.input == about.input.view
        if about.task.name != "classify" or not same:
            found = f"has the task {about.task.name} and takes {about.input}"
            needed = "a classifier of square images" if any_range else "a classifier of RGB images, float32, 0…1"
            raise BundleError(f"{bundle.path}: {found}; this command needs {needed}")
        return bundle

    def read(self, name: str) -> bytes:
        """Return one of the bundle's `FILES`; after `release` it is read again, and a BundleError if it has changed."""
        return self._contents.get(name) or read_file(self.path / name, self.manifest.files[name])

    def release(self) -> None:
        """Drop the contents of the files; call it once model and oracle are built, which hold their own copies."""
        self._contents.clear()
        self._networks.clear()

    def model(self, options: ModelOptions | None = None) -> PatchableModel:
        """Build the clean model; BundleError, InputError or MissingExtraError if an option is unavailable here."""
        options = options or ModelOptions()
        if options.backend not in ("onnx", "torch"):
            raise InputError(f"backend is {options.backend!r}, expected 'onnx' or 'torch'")
        arguments = (self.signatures, self.signatures.tensors, options.provider, options.threads, options.strategy)
        outputs = self.manifest.outputs
        if options.backend == "onnx":
            size, network = (self.manifest.input.height, self.manifest.input.width), self._networks.pop(MODEL, None)
            return OnnxModel(network or self.read(MODEL), *arguments, image_size=size, outputs=outputs)
        from rws.edge.live.torch_model import TorchModel

        return TorchModel.from_onnx(self.read(MODEL), *arguments, outputs=outputs)

    def task(self) -> Task[Any]:
        """Make the task, which reads the model's outputs."""
        return make_task(self.manifest.task, self.manifest.classes)

    def oracle(self, threads: int | None = None) -> Oracle:
        """Build the corruption classifier; raise FormatError if ONNX Runtime cannot run it."""
        about = self.manifest
        return Oracle(self.read(ORACLE), about.corruptions, about.severity_levels, threads, about.view)

    def policy(self, independent: bool = False) -> Policy:
        """Make the policy, without hysteresis if `independent`; raise BundleError for settings it does not take."""
        with self._settings_of("policy"):
            return make_policy(self.table, self.manifest.policy, independent)

    def filter(self) -> BeliefFilter:
        """Make a temporal filter; raise BundleError for settings that it does not take."""
        with self._settings_of("filter"):
            return BeliefFilter(self.manifest.corruptions, self.manifest.severity_levels, **self.manifest.filter)

    @contextmanager
    def _settings_of(self, part: str) -> Iterator[None]:
        try:
            yield
        except (TypeError, ValueError) as error:
            where = self.path / MANIFEST
            fault = shorten(str(error), 300)[1:-1]
            raise BundleError(f"{where}: {part} does not fit ({fault}); build the bundle again") from error


def _check_model(content: bytes, source: Path, manifest: Manifest, signatures: SignatureSet) -> Any:
    network = _check_network(content, source, manifest.input)
    outputs = [value.name for value in network.graph.output]
    if unknown := [name for name in manifest.outputs if name not in outputs]:
        named = f"{MANIFEST} names the output {shorten(unknown[0])}"
        raise BundleError(f"{source}: gives {shorten(', '.join(outputs))}, {named}; {CURE}")
    if manifest.task.name in ("classify", "multilabel"):
        _check_rows(network, manifest.outputs or outputs[:1], len(manifest.classes), source)
    shapes = {tensor.name: tensor.shape for tensor in manifest.patched_tensors}
    clean = clean_tensors(network, shapes)
    for name, shape in shapes.items():
        if (found := clean[name].shape) != shape:
            raise BundleError(f"{source}: tensor {name!r} has shape {found}, {MANIFEST} says {shape}; {CURE}")
    signatures.fitted_to(clean)
    return network


def _check_strength(signatures: SignatureSet, table: GainTable, source: Path) -> None:
    """Raise SignatureError if a patch could change a weight by more than `_LARGEST_CHANGE`, or out of float32."""
    strongest = max(1.0, float(table.alpha.max()))
    for name, tensor in product(signatures.names, signatures.tensors):
        entry = signatures.entries[name][tensor]
        change = strongest * largest_value(signatures.bits) * float(entry.scale.max())
        if change > _LARGEST_CHANGE:
            fault = f"{name!r} can change {shorten(tensor)} by {change:.0e}, expected at most {_LARGEST_CHANGE:.0e}"
            raise SignatureError(f"{source}: {fault}; extract the signatures again")


def _check_network(content: bytes, source: Path, takes: View) -> Any:
    """Return a network that holds nothing harmful and takes images as `takes` says; else raise BundleError."""
    network = read_model(content, str(source))
    shape = (given := data_input(network, str(source))).shape
    batch = shape[0] if shape and shape[0] is not None else 1
    if not 0 < batch <= _LARGEST_BATCH:
        raise BundleError(f"{source}: takes batches of {batch}, expected 1 to {_LARGEST_BATCH}; export it again")
    check_network(network, str(source), (batch, *takes.shape), len(content))
    pairs = zip(shape[1:], takes.shape, strict=False)
    if (
        len(shape) != 1 + len(takes.shape)
        or given.dtype != takes.dtype
        or any(found not in (None, want) for found, want in pairs)
    ):
        expected = f"{takes.dtype} (N, {', '.join(map(str, takes.shape))})"
        raise BundleError(f"{source}: takes {given.dtype} {shape}, expected {expected}; export it again")
    return network


def _check_rows(network: Any, outputs: Sequence[str], width: int, source: Path) -> None:
    """Raise BundleError unless one of a network's outputs is read, and it may have the shape (N, width)."""
    shapes = [value_shape(value) for value in network.graph.output if value.name in outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][1] not in (None, width):
        raise BundleError(f"{source}: gives {', '.join(map(str, shapes))}, expected (N, {width}); export it again")


def _read_table(content: bytes, source: Path, manifest: Manifest) -> GainTable:
    arrays, description = read_tensors(content, str(source))
    if description != POLICY_DESCRIPTION:
        raise BundleError(f"{source}: is {shorten(description)}, expected {POLICY_DESCRIPTION}; build the bundle again")
    try:
        table = GainTable.from_arrays(arrays, manifest.corruptions, manifest.severity_levels)
    except (TypeError, ValueError, IndexError) as error:
        raise BundleError(f"{source}: {error}") from error
    if extra := arrays.keys() - table.to_arrays().keys():
        raise BundleError(f"{source}: tensor {min(extra)!r} is unknown; build the bundle again")
    return table
