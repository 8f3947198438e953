"""Accuracy of the signatures at 32, 16, 8 and 4 bits, one scale a tensor or an output channel.

Every code runs as it would on a device, through `OnnxModel`, with each corruption's own signature at the alpha that the
bundle's gain table has for it (the paper's perfect oracle).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import MODEL
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.signatures.quantization import Bits, Per
from rws.edge.signatures.signature_set import SignatureSet
from rws.edge.signatures.tensor_file import write_tensors
from rws.errors import InputError
from rws.oracle.belief import CLEAN
from rws.oracle.policy import ToldPolicy
from rws.records import Mix
from rws.training.data.images import Images
from rws.training.evaluation.evaluator import percent_right
from rws.training.evaluation.sets import evaluation_sets
from rws.training.models.architectures import read_state_dict

ArrayDeltas = Mapping[str, Mapping[str, NDArray[np.float32]]]

_REST = ".rest"


@dataclass(frozen=True, eq=False)
class Code:
    """Signatures under one code.

    Args:
        bits: 4, 8, 16, or 32 for float32.
        per: "channel", "tensor", or "" for float32, which has no scale.
        signatures: what a model mixes; those of float32 are in two parts, see `float_code`.
        bytes: size of the signature file.
    """

    bits: int
    per: str
    signatures: SignatureSet
    bytes: int

    def mix(self, mix: Mix) -> Mix:
        """A mix {signature: alpha}, with both parts of those that have two."""
        rests = {name + _REST: alpha for name, alpha in mix.items() if name + _REST in self.signatures.names}
        return {**mix, **rests}


def float_file(deltas: ArrayDeltas) -> bytes:
    """A safetensors file of float32 changes {signature: {tensor: change}}, named as in a signature file."""
    tensors = {f"{name}/{tensor}": delta for name, parts in deltas.items() for tensor, delta in parts.items()}
    return write_tensors(tensors, {"names": list(deltas)})


def float_code(deltas: ArrayDeltas, clean_hash: str) -> Code:
    """Float32 signatures for a model that mixes integers: each is a 16-bit one and another of what it left over.

    The error of a value is below 2⁻³¹ of its channel's largest, less than float32 itself has there.

    Args:
        deltas: signature name → tensor name → change of that tensor, float32.
        clean_hash: `shallow_sha256` of the clean tensors.
    """
    coarse = SignatureSet.from_deltas(deltas, 16, "channel", clean_hash=clean_hash)
    left_over = {
        name + _REST: {tensor: delta - rounded for (tensor, delta), rounded in zip(parts.items(), exact, strict=True)}
        for name, parts in deltas.items()
        for exact in [coarse.get(name).values()]
    }
    rest = SignatureSet.from_deltas(left_over, 16, "channel", clean_hash=clean_hash)
    return Code(32, "", coarse.with_signatures(rest, rest.names), len(float_file(deltas)))


def codes_of(bundle: Bundle, work: Path | None) -> list[Code]:
    """What can be compared: every code, where the build's float32 signatures are at hand; else the bundle's own.

    Args:
        bundle: the bundle.
        work: work folder of the build that made it, or None.

    Raises:
        InputError: if the folder does not hold the signatures that the bundle's were made from.
        FormatError: if one of its files is damaged.
    """
    own = bundle.signatures
    if work is None:
        return [Code(own.bits, own.per, own, len(own.to_bytes()))]
    deltas = _read_deltas(bundle, work)
    codes = [float_code(deltas, own.clean_hash)]
    for bits in sorted(get_args(Bits), reverse=True):
        for per in get_args(Per):
            signatures = SignatureSet.from_deltas(deltas, bits, per, clean_hash=own.clean_hash)
            codes.append(Code(bits, per, signatures, len(signatures.to_bytes())))
    made = next(code for code in codes if (code.bits, code.per) == (own.bits, own.per))
    if made.signatures.to_bytes() != own.to_bytes():
        raise InputError(
            f"{work}: its signatures at {own.bits} bits per {own.per} are not those of {bundle.path}; give the work "
            f"folder of the build that made this bundle, or leave --work out"
        )
    return codes


def _read_deltas(bundle: Bundle, work: Path) -> dict[str, dict[str, NDArray[np.float32]]]:
    try:
        way = bundle.manifest.provenance["recipe"]["signatures"]["way"]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{bundle.path}: its provenance does not say how the signatures were made, expected a bundle that "
            f"`rws build` wrote; leave --work out"
        ) from error
    deltas = {}
    for name in bundle.signatures.names:
        path = work / f"signature-{way}-{name}.safetensors"
        found = read_state_dict(path)
        if set(found) != set(bundle.signatures.tensors):
            raise InputError(
                f"{path}: holds {', '.join(found)}, expected {', '.join(bundle.signatures.tensors)}; give the work "
                f"folder of the build that made {bundle.path}"
            )
        deltas[name] = {tensor: found[tensor].numpy() for tensor in bundle.signatures.tensors}
    return deltas


def compare_codes(
    bundle: Bundle,
    source: str,
    work: Path | None = None,
    *,
    severity: int = 5,
    limit: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure each code on a test set.

    Args:
        bundle: gives the model, the alphas and the classes.
        source, limit, seed: see `rws.training.evaluation.sets.evaluation_sets`.
        work: see `codes_of`.
        severity: of the corruptions, 1 to 5.
        threads: threads of the model; None leaves the choice to ONNX Runtime.
        progress: called with a line after each test set.

    Returns:
        `rows`, one a code: `bits` (32 is float32), `per`, `ra` (mean over the corruptions), `ta_after_reset` (clean
        images after every signature was patched and reset) and `bytes` of the signature file; beside them `ta` and
        `ra_never_patched` of the clean model, and the `alphas`. Accuracies in percent.

    Raises:
        InputError: if the source has no clean images or does not fit the bundle, or the work folder does not.
    """
    codes = codes_of(bundle, work)
    content = bundle.read(MODEL)
    models = [OnnxModel(content, code.signatures, code.signatures.tensors, threads=threads) for code in codes]
    told = ToldPolicy(bundle.table, own=True)
    sets = evaluation_sets(source, bundle.manifest.classes, bundle.manifest.input.height, (severity,), limit, seed)
    clean: Images | None = None
    never_patched: dict[str, float] = {}
    patched: dict[str, list[float]] = {}
    alphas: dict[str, float] = {}
    for test in sets:
        never_patched[test.corruption] = percent_right(models[0], test.images.pixels, test.images.labels)
        if test.corruption == CLEAN:
            clean = test.images
            continue
        mix = told.choose_told(test.corruption, severity)
        alphas |= mix
        patched[test.corruption] = []
        for code, model in zip(codes, models, strict=True):
            model.apply(code.mix(mix))
            patched[test.corruption].append(percent_right(model, test.images.pixels, test.images.labels))
            model.reset()
        if progress is not None:
            scores = "  ".join(f"{score:6.2f}" for score in patched[test.corruption])
            progress(f"{test.corruption:18s} {never_patched[test.corruption]:6.2f}  {scores}")
    if clean is None or not patched:
        raise InputError(f"{source} lacks clean images, or corrupted ones of severity {severity}; give a clean folder")
    ra = np.array(list(patched.values())).mean(0)
    return {
        "ta": round(never_patched.pop(CLEAN), 2),
        "ra_never_patched": round(float(np.mean(list(never_patched.values()))), 2),
        "rows": [
            {
                "bits": code.bits,
                "per": code.per,
                "ra": round(float(score), 2),
                "ta_after_reset": round(percent_right(model, clean.pixels, clean.labels), 2),
                "bytes": code.bytes,
            }
            for code, model, score in zip(codes, models, ra, strict=True)
        ],
        "alphas": alphas,
        "images": len(clean),
        "corruptions": len(patched),
        "severity": severity,
        "seed": seed,
    }
