"""What `rws extract` does: signatures for a model that exists, from checkpoints or from images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from rws.edge.common.files import check_target
from rws.edge.common.provenance import write_json
from rws.edge.signatures.quantization import Bits, Per, check_code
from rws.edge.signatures.signature_set import SignatureSet, shallow_sha256
from rws.errors import UsageError
from rws.training.build.checkpoints import folded_model, folded_weights
from rws.training.build.recipe import load_recipe
from rws.training.corruptions import CORRUPTIONS
from rws.training.data.images import load_images
from rws.training.models.architectures import shallow_tensors
from rws.training.models.fit import Corrupted
from rws.training.signatures.deltas import Deltas
from rws.training.signatures.residual import residual_signature
from rws.training.signatures.tuned import tuned_signature


@dataclass(frozen=True)
class ExtractOptions:
    """What signatures are made from, and how; see the options of `rws extract`."""

    std: Path
    out: Path
    method: str
    robust: tuple[str, ...]
    init: Path | None
    projection: str
    data: str | None
    corruptions: tuple[str, ...]
    severity: float
    layers: int
    bits: int
    per: str
    recipe: str | None
    classes: int
    norms: Path | None


def run_extract(options: ExtractOptions, say: Callable[[str], None]) -> None:
    """Make the signatures and write them; `say` is called with a line per epoch, and one at the end.

    Raises UsageError if options are missing, InputError for an unwritable file, FormatError for an unreadable one.
    """
    check_code(options.bits, options.per)
    check_target(options.out)
    clean, made = _residual(options) if options.method == "residual" else _tuned(options, say)
    tensors = tuple(next(iter(made.values())))
    arrays = {name: {tensor: delta.numpy() for tensor, delta in parts.items()} for name, parts in made.items()}
    clean_hash = shallow_sha256({tensor: clean[tensor].numpy() for tensor in tensors})
    bits, per = cast(Bits, options.bits), cast(Per, options.per)
    SignatureSet.from_deltas(arrays, bits, per, clean_hash=clean_hash).save(options.out)
    if options.norms is not None:
        norms = {name: {t: float(torch.linalg.norm(d)) for t, d in parts.items()} for name, parts in made.items()}
        write_json(options.norms, "signature-norms/1", {"tensors": tensors, "norm": norms})
    say(f"wrote {options.out}: {len(made)} signatures over {len(tensors)} tensors, {bits} bits per {per}")


def _residual(options: ExtractOptions) -> tuple[dict[str, Tensor], dict[str, Deltas]]:
    if not options.robust:
        raise UsageError("--method residual needs --robust CORRUPTION=FILE, one per robust model")
    weights_of = partial(folded_weights, layers=options.layers, recipe=options.recipe, classes=options.classes)
    clean, tensors = weights_of(options.std)
    base = clean if options.init is None else weights_of(options.init)[0]
    made = {}
    for item in options.robust:
        name, _, file = item.partition("=")
        if not file:
            raise UsageError(f"--robust {item!r} is not CORRUPTION=FILE")
        made[name] = residual_signature(base, clean, weights_of(Path(file))[0], tensors, options.projection)
    return clean, made


def _tuned(options: ExtractOptions, say: Callable[[str], None]) -> tuple[dict[str, Tensor], dict[str, Deltas]]:
    if options.data is None or options.recipe is None:
        raise UsageError("--method tuned needs --data with clean images, and --recipe for the model's architecture")

    def report(name: str, record: dict[str, Any]) -> None:
        say(f"{name:20s} epoch {record['epoch']}  loss {record['loss']}")

    settings = load_recipe(options.recipe)
    model = folded_model(options.std, options.recipe, options.classes)
    clean = {name: parameter.detach() for name, parameter in model.named_parameters()}
    images, tensors = load_images(options.data, "train"), shallow_tensors(model, options.layers)
    made = {}
    for name in options.corruptions or CORRUPTIONS:
        how = (model, images, Corrupted(name, options.severity), tensors, settings.tuned)
        made[name] = tuned_signature(*how, seed=settings.seed, report=partial(report, name))
    return clean, made
