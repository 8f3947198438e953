"""Accuracy of the signatures at 32, 16, 8 and 4 bits, one scale per tensor or output channel.

Every encoding runs in `OnnxModel`, each corruption's own signature at the alpha of the bundle (perfect oracle).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from rws.benchmarks.common.tables import Column, Record, columns, label
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import MODEL
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.signatures.quantization import Bits, Per
from rws.edge.signatures.signature_set import SignatureSet
from rws.edge.signatures.tensor_file import write_tensors
from rws.errors import InputError
from rws.oracle.belief import CLEAN
from rws.oracle.policy import ReferencePolicy
from rws.records import Mix
from rws.training.data.images import Images
from rws.training.evaluation.evaluator import DEFAULTS, EvaluationOptions, percent_right
from rws.training.evaluation.sets import evaluation_sets
from rws.training.models.architectures import read_state_dict

ArrayDeltas = Mapping[str, Mapping[str, NDArray[np.float32]]]

_REST = ".rest"


@dataclass(frozen=True, eq=False)
class Encoding:
    """Signatures in one encoding: `bits` 32 and `per` "" are float32, in two parts (see `float_encoding`).

    `bytes`: size of the signature file.
    """

    bits: int
    per: str
    signatures: SignatureSet
    bytes: int

    def mix(self, mix: Mix) -> Mix:
        """Return a mix {signature: alpha} with both parts of each signature that has two."""
        return {**mix, **{name + _REST: mix[name] for name in mix if name + _REST in self.signatures.names}}


def float_file(deltas: ArrayDeltas) -> bytes:
    """Return a safetensors file of float32 changes {signature: {tensor: change}}, named as in a signature file."""
    tensors = {f"{name}/{tensor}": delta for name, parts in deltas.items() for tensor, delta in parts.items()}
    return write_tensors(tensors, {"names": list(deltas)})


def float_encoding(deltas: ArrayDeltas, clean_hash: str) -> Encoding:
    """Encode float32 signatures for a model that mixes integers: each as a 16-bit one, and a second one of the rest.

    The error of a value is below 2⁻³¹ of its channel's largest, less than that of float32.

    Args:
        deltas: {signature: {tensor: change}}, float32.
        clean_hash: `shallow_sha256` of the clean tensors.
    """
    coarse = SignatureSet.from_deltas(deltas, 16, "channel", clean_hash=clean_hash)
    left_over = {}
    for name, parts in deltas.items():
        rounded = coarse.get(name)
        left_over[name + _REST] = {tensor: delta - rounded[tensor] for tensor, delta in parts.items()}
    rest = SignatureSet.from_deltas(left_over, 16, "channel", clean_hash=clean_hash)
    return Encoding(32, "", coarse.with_signatures(rest, rest.names), len(float_file(deltas)))


def encodings_of(bundle: Bundle, work: Path | None) -> list[Encoding]:
    """Return all encodings if the build's float32 signatures are available, else only the bundle's own.

    Raises:
        InputError: if `work`, the folder of a build, lacks the signatures that the bundle's are made from.
        FormatError: if one of its files is damaged.
    """
    own = bundle.signatures
    if work is None:
        return [Encoding(own.bits, own.per, own, len(own.to_bytes()))]
    deltas = _read_deltas(bundle, work)
    encodings = [float_encoding(deltas, own.clean_hash)]
    for bits, per in product(sorted(get_args(Bits), reverse=True), get_args(Per)):
        signatures = SignatureSet.from_deltas(deltas, bits, per, clean_hash=own.clean_hash)
        encodings.append(Encoding(bits, per, signatures, len(signatures.to_bytes())))
    made = next(found for found in encodings if (found.bits, found.per) == (own.bits, own.per))
    if made.signatures.to_bytes() != own.to_bytes():
        reason = f"its signatures at {own.bits} bits per {own.per} are not those of {bundle.path}"
        advice = "give the work folder of the build that made this bundle, or leave --work out"
        raise InputError(f"{work}: {reason}; {advice}")
    return encodings


def _read_deltas(bundle: Bundle, work: Path) -> dict[str, dict[str, NDArray[np.float32]]]:
    try:
        settings = bundle.manifest.provenance["recipe"]["signatures"]
        method = settings["method"] if "method" in settings else settings["way"]  # as bundles of before call it
    except (KeyError, TypeError) as error:
        reason = "its provenance does not say how the signatures were made, expected a bundle that `rws train` wrote"
        raise InputError(f"{bundle.path}: {reason}; leave --work out") from error
    deltas = {}
    for name in bundle.signatures.names:
        path = work / f"signature-{method}-{name}.safetensors"
        found = read_state_dict(path)
        if set(found) != set(bundle.signatures.tensors):
            reason = f"holds {', '.join(found)}, expected {', '.join(bundle.signatures.tensors)}"
            raise InputError(f"{path}: {reason}; give the work folder of the build that made {bundle.path}")
        deltas[name] = {tensor: found[tensor].numpy() for tensor in bundle.signatures.tensors}
    return deltas


COLUMNS = [
    label("bits", "bits"),
    label("one scale per", "per"),
    *columns({"RA": "ra", "TA after resets": "ta_after_reset"}, ".2f"),
    Column("bytes", "bytes", ","),
]


def compare_encodings(
    bundle: Bundle, source: str, work: Path | None = None, severity: int = 5, options: EvaluationOptions = DEFAULTS
) -> Record:
    """Measure each encoding on a test set, in percent.

    `source` and `severity` are those of `evaluation_sets`, `work` is that of `encodings_of`.

    Raises InputError if the source has no clean images or does not fit the bundle, or the work folder does not.
    """
    encodings = encodings_of(bundle, work)
    content = bundle.read(MODEL)
    models = [OnnxModel(content, e.signatures, e.signatures.tensors, threads=options.threads) for e in encodings]
    perfect = ReferencePolicy(bundle.table, "perfect")
    classes, size = bundle.manifest.classes, bundle.manifest.input.height
    clean: Images | None = None
    clean_model: dict[str, float] = {}
    patched: list[list[float]] = []
    alphas: dict[str, float] = {}
    for test in evaluation_sets(source, classes, size, (severity,), options.limit, options.seed):
        clean_model[test.corruption] = percent_right(models[0], test.images.pixels, test.images.labels)
        if test.corruption == CLEAN:
            clean = test.images
            continue
        mix = perfect.mix(test.corruption, severity)
        alphas |= mix
        patched.append([])
        for encoding, model in zip(encodings, models, strict=True):
            model.apply(encoding.mix(mix))
            patched[-1].append(percent_right(model, test.images.pixels, test.images.labels))
            model.reset()
        scores = "  ".join(f"{score:6.2f}" for score in patched[-1])
        options.progress(f"{test.corruption:18s} {clean_model[test.corruption]:6.2f}  {scores}")
    if clean is None or not patched:
        raise InputError(f"{source} lacks clean images, or corrupted ones of severity {severity}; give a clean folder")
    after = [round(percent_right(model, clean.pixels, clean.labels), 2) for model in models]
    return {
        "ta": round(clean_model.pop(CLEAN), 2),
        "ra_no_patch": round(float(np.mean(list(clean_model.values()))), 2),
        "rows": [
            {"bits": e.bits, "per": e.per, "ra": round(float(ra), 2), "ta_after_reset": ta, "bytes": e.bytes}
            for e, ra, ta in zip(encodings, np.mean(patched, axis=0), after, strict=True)
        ],
        "alphas": alphas,
        "images": len(clean),
        "corruptions": len(patched),
        "severity": severity,
        "seed": options.seed,
    }
