"""The manifest of a bundle: what `bundle.json` holds."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from rws.edge.common.schema import STRICT, Count, Sha256, Text, checked_format, distinct, parse_json, required, validate
from rws.edge.preprocess import InputSpec, TileView, View
from rws.edge.signatures.signature_set import SignatureNames, TensorSpecs
from rws.edge.tasks.base import TaskSpec
from rws.errors import BundleError

FORMAT = "rws-bundle"
VERSION = 2
_FIRST_INPUT = ("height", "width", "colour")  # what version 1 says of the input
MANIFEST = "bundle.json"
MODEL, SIGNATURES, ORACLE, POLICY = "model.onnx", "signatures.safetensors", "oracle.onnx", "policy.safetensors"
FILES = (MODEL, SIGNATURES, ORACLE, POLICY)
MAKER_SIGNATURE = "bundle.sig"  # of the manifest's bytes; see `rws.edge.bundle.keys`
FOLDER = (MANIFEST, *FILES, MAKER_SIGNATURE)  # all that a bundle's folder can hold
CURE = "copy or build the bundle again"
# Bytes, checked before a file is read. ONNX files hold at most 2 GiB.
LARGEST: Mapping[str, int] = {MODEL: 2**31 - 1, SIGNATURES: 2**30, ORACLE: 2**28, POLICY: 2**26}


@dataclass(frozen=True, config=STRICT)
class FileSpec:
    """Size in bytes and SHA-256, 64 hexadecimal digits, of a file."""

    sha256: Sha256
    bytes: Count


def _bounded(files: Mapping[str, FileSpec]) -> bool:
    return all(spec.bytes <= LARGEST[name] for name, spec in files.items())


@dataclass(frozen=True, config=STRICT)
class Manifest:
    """What `bundle.json` says: classes, tensors, corruptions and levels in the order of the networks.

    `outputs` are those that the task reads, by name; a file of version 1 names none: it means the first.
    `filter` and `policy` are settings of `BeliefFilter` and of `rws.oracle.policy.make_policy`; `provenance` has
    recipe, seed, data, versions and command, `measured` accuracies in percent, and on what. `tiles` are what the oracle
    sees of a frame; None: what the model sees, as RGB.
    """

    name: Annotated[Text, Field(description="printable text")]
    classes: Annotated[
        tuple[Text, ...], Field(min_length=1, max_length=2**17, description="a list of class names in printable text")
    ]
    task: TaskSpec
    outputs: Annotated[
        tuple[Text, ...],
        required("no name twice", distinct),
        Field(max_length=64, description="a list of the outputs' names, none twice"),
    ]
    input: InputSpec
    patched_tensors: TensorSpecs
    corruptions: SignatureNames
    severity_levels: Annotated[
        tuple[Annotated[float, Field(gt=0, le=5)], ...],
        required("ascending numbers", lambda levels: list(levels) == sorted(set(levels))),
        Field(min_length=1, max_length=100, description="ascending numbers above 0, at most 5"),
    ]
    filter: Annotated[Mapping[str, Any], Field(description="an object of settings")]
    policy: Annotated[Mapping[str, Any], Field(description="an object of settings")]
    provenance: Annotated[
        Mapping[str, Any],
        required("a list", lambda provenance: isinstance(provenance.get("changes", []), list)),
        Field(description="an object, its 'changes' a list"),
    ]
    measured: Annotated[Mapping[str, Any], Field(description="an object")]
    files: Annotated[
        Mapping[str, FileSpec],
        required("each file once, of bounded size", lambda files: files.keys() == set(FILES) and _bounded(files)),
        Field(
            description=f"{{sha256, bytes}} for {', '.join(FILES)} and no other file, at most {list(LARGEST.values())}"
        ),
    ]
    tiles: TileView | None = None

    @property
    def view(self) -> View:
        """What the oracle sees of a frame: tiles, or what the model sees."""
        return self.tiles or self.input.view

    @classmethod
    def parse(cls, data: bytes, source: str) -> "Manifest":
        """Read a `bundle.json`; raise BundleError, which begins with `source`, if it breaks the format."""
        try:
            document = parse_json(data)
        except ValueError as error:
            raise BundleError(f"{source}: not valid JSON ({error}); {CURE}") from error
        rest = checked_format(document, FORMAT, (1, VERSION), source, cure=CURE, error=BundleError)
        first = document["version"] == 1
        manifest = cls.check(_from_first(rest, source) if first else rest, source)
        if not manifest.outputs and not first:
            raise BundleError(f"{source}: outputs is [], expected at least one name; {CURE}")
        return manifest

    @classmethod
    def check(cls, document: object, source: str) -> "Manifest":
        """Make a manifest of plain data, all but `format` and `version`; raises as `parse` does."""
        return validate(cls, document, source, cure=CURE, error=BundleError)

    def to_bytes(self) -> bytes:
        """Return the bytes of `bundle.json`."""
        document = {"format": FORMAT, "version": VERSION, **asdict(self)}
        if self.tiles is None:  # so earlier versions of this program read it
            del document["tiles"]
        return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()

    def size_warning(self, height: int, width: int) -> str:
        """Return what to know about frames of this size, pixels, in one line, or "" if there is nothing."""
        if self.tiles is not None:
            return ""
        # A frame that is shrunk to the model's input looks different from one that was taken at that size. Only
        # `rws adopt` sees images as the device does, and counts them in its provenance.
        data = self.provenance.get("data")
        adopted = isinstance(data, dict) and "pictures" in data
        if adopted or height <= self.input.height or width <= self.input.width:
            return ""
        return (
            f"frames of {width}x{height} are larger than the {self.input.width}x{self.input.height} pixels that the "
            f"oracle of bundle {self.name} was calibrated on: on clear frames it may see corruption that is not "
            "there; adopt a model with your own images (see `rws adopt --help`)"
        )


def _from_first(document: dict[str, Any], source: str) -> dict[str, Any]:
    """Return a document of version 1, in which all models are classifiers of RGB images, as one of this version."""
    size = document.get("input")
    size = size if isinstance(size, dict) else {}
    if extra := [*sorted(document.keys() & {"task", "outputs"}), *sorted(size.keys() - {*_FIRST_INPUT})]:
        raise BundleError(f"{source}: key {extra[0]!r:.80} is unknown in version 1; {CURE}")
    if (colour := size.get("colour", "RGB")) != "RGB":
        raise BundleError(f"{source}: input.colour is {colour!r:.80}, expected 'RGB' in version 1; {CURE}")
    return {**document, "task": {"name": "classify"}, "outputs": []}
