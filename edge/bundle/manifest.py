"""The manifest of a bundle: what `bundle.json` holds."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from rws.edge.common.schema import STRICT, Count, Sha256, Text, checked_format, parse_json, required, validate
from rws.edge.signatures.signature_set import SignatureNames, TensorSpecs
from rws.errors import BundleError

FORMAT = "rws-bundle"
VERSION = 1
MANIFEST = "bundle.json"
MODEL, SIGNATURES, ORACLE, POLICY = "model.onnx", "signatures.safetensors", "oracle.onnx", "policy.safetensors"
FILES = (MODEL, SIGNATURES, ORACLE, POLICY)
MAKER_SIGNATURE = "bundle.sig"  # of the manifest's bytes; see `rws.edge.bundle.keys`
FOLDER = (MANIFEST, *FILES, MAKER_SIGNATURE)  # all that a bundle's folder can hold
CURE = "copy or build the bundle again"
# Bytes, checked before a file is read. ONNX files hold at most 2 GiB.
LARGEST: Mapping[str, int] = {MODEL: 2**31 - 1, SIGNATURES: 2**30, ORACLE: 2**28, POLICY: 2**26}
Side = Annotated[int, Field(gt=0, le=4096)]


@dataclass(frozen=True, config=STRICT)
class InputSpec:
    """The model's input: float32 (N, 3, height, width), range 0…1, not normalised."""

    height: Side
    width: Side
    colour: Literal["RGB"]


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

    `filter` and `policy` are settings of `BeliefFilter` and of `rws.oracle.policy.make_policy`; `provenance` has
    recipe, seed, data, versions and command, `measured` accuracies in percent, and on what.
    """

    name: Annotated[Text, Field(description="printable text")]
    classes: Annotated[
        tuple[Text, ...], Field(min_length=1, max_length=2**17, description="a list of class names in printable text")
    ]
    input: Annotated[InputSpec, Field(description="height and width in pixels, and colour 'RGB'")]
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

    @classmethod
    def parse(cls, data: bytes, source: str) -> "Manifest":
        """Read a `bundle.json`; raise BundleError, which begins with `source`, if it breaks the format."""
        try:
            document = parse_json(data)
        except ValueError as error:
            raise BundleError(f"{source}: not valid JSON ({error}); {CURE}") from error
        return cls.check(checked_format(document, FORMAT, VERSION, source, cure=CURE, error=BundleError), source)

    @classmethod
    def check(cls, document: object, source: str) -> "Manifest":
        """Make a manifest of plain data, all but `format` and `version`; raises as `parse` does."""
        return validate(cls, document, source, cure=CURE, error=BundleError)

    def to_bytes(self) -> bytes:
        """Return the bytes of `bundle.json`."""
        document = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()

    def size_warning(self, height: int, width: int) -> str:
        """Return what to know about frames of this size, pixels, in one line, or "" if there is nothing."""
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
