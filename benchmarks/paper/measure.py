"""Accuracies by corruption, stored; signatures are chosen by a perfect oracle, at the best strength on validation."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from rws.benchmarks.paper.columns import ColumnBuild
from rws.edge.signatures.quantization import Bits, Per, dequantise, quantise
from rws.oracle.belief import CLEAN
from rws.training.corruptions import CORRUPTIONS
from rws.training.data.images import Images
from rws.training.evaluation.frames import corrupted
from rws.training.evaluation.sets import corrupted_sets
from rws.training.jobs.store import JSON, Store
from rws.training.models.architectures import fold_batchnorm, group_layers, shallow_tensors
from rws.training.models.fit import accuracy
from rws.training.signatures.deltas import Deltas, composed, patched
from rws.training.signatures.residual import residual_signature

REPRODUCE_VERSION = 1
"""Raise it when the same models and images give other scores, tables or figures."""

ALPHAS = (0.5, 0.75, 1.0, 1.25)
ALL_LAYERS = 0
WHOLE = ("std", "augmented", "robust")


@dataclass(frozen=True)
class Variant:
    """The weights that are evaluated.

    `method` is `std`, `augmented` (one model, all corruptions as augmentation), `robust` (a model per corruption),
    or how signatures are made: one of `METHODS` (`residual`: the recipe's projection), `projected` (the paper's),
    `plain` (θ_r − θ_std) or `restart` (the paper's second option: θ_r − θ_init on θ_init as the standard model).
    """

    method: str
    layers: int = 5  # shallowest layers of signatures; 0: all, the head included
    bits: int = 32  # 32, 16, 8 or 4: of the signatures, or of the whole models
    per: str = "channel"  # one scale per `channel` or `tensor`

    @property
    def key(self) -> str:
        """The variant's name in file names."""
        layers = "" if self.method in WHOLE else f"-{self.layers or 'all'}layers"
        return f"{self.method}{layers}-{self.bits}bit" + ("-per_tensor" if self.per == "tensor" else "")


def code(deltas: Deltas, bits: int, per: str = "channel") -> Deltas:
    """Return tensors, float32, as they are after storage at `bits` bits, one scale per `per`."""
    if bits == 32:
        return deltas
    return {
        name: torch.from_numpy(dequantise(quantise(delta.numpy(), cast("Bits", bits), cast("Per", per))))
        for name, delta in deltas.items()
    }


def code_bytes(shapes: Sequence[tuple[int, ...]], bits: int, per: str = "channel") -> int:
    """Return the bytes of values and float32 scales of tensors of these shapes, without the file's header."""
    total = 0
    for shape in shapes:
        scales = 0 if bits == 32 else (shape[0] if per == "channel" else 1)
        total += (math.prod(shape) * bits + 7) // 8 + 4 * scales
    return total


Result = dict[str, object]
"""The content of a table or figure, plain data for its JSON file."""


Score = dict[str, Any]
"""Percent: `ta` clean, `ra` robust by corruption, each signature's on `validation` images; and each signature's `alpha`
(both empty for whole models), and the `bytes` that a device carries."""


class Measure:
    """The evaluation sets of a column and its scores; `limit` and `validation_limit` are numbers of images."""

    def __init__(self, build: ColumnBuild, limit: int, validation_limit: int) -> None:
        self.build, self.limit, self.validation_limit = build, limit, validation_limit
        # Every variant is evaluated on the same sets and needs the same models.
        self.tests = lru_cache(maxsize=1 + len(CORRUPTIONS))(self._tests)
        self.validations = lru_cache(maxsize=len(CORRUPTIONS))(self._validations)
        self.robust = lru_cache(maxsize=len(CORRUPTIONS))(self._robust)

    @cached_property
    def clean(self) -> Images:
        """Clean test images."""
        return self.build.test(self.limit)

    @cached_property
    def validation(self) -> Images:
        """Clean validation images."""
        return self.build.validation.first(self.validation_limit)

    def _tests(self, corruption: str, severity: int = 5) -> Images:
        if corruption == CLEAN:
            return self.clean
        sets = corrupted_sets(self.clean, (severity,), None, self.build.recipe.seed, (corruption,))
        return next(found for found in sets if found.corruption == corruption).images

    def _validations(self, corruption: str) -> Images:
        pixels = corrupted(self.validation.pixels, ((corruption, 5),), self.build.recipe.seed, "validation")
        return Images(pixels, self.validation.labels, self.validation.classes)

    @property
    def shipped(self) -> str:
        """The method of the signatures that the column's bundle carries."""
        settings = self.build.recipe
        return f"tuned-{settings.tuned.target}" if settings.signatures.method == "tuned" else settings.signatures.method

    @cached_property
    def model_bytes(self) -> int:
        """Bytes of the clean model's parameters, float32."""
        return code_bytes([tuple(parameter.shape) for parameter in self.std.parameters()], 32)

    def sizes(self) -> dict[str, int]:
        """Return the numbers of test and validation images, as keys of a result."""
        return {"test_images": len(self.clean), "validation_images": len(self.validation)}

    @cached_property
    def std(self) -> nn.Module:
        """θ_std, with BatchNorm folded."""
        return self.build.folded

    def _robust(self, corruption: str) -> nn.Module:
        return fold_batchnorm(self.build.robust(corruption))

    @cached_property
    def init(self) -> nn.Module:
        """θ_init, with BatchNorm folded."""
        return fold_batchnorm(self.build.init())

    def tensors(self, layers: int) -> tuple[str, ...]:
        """Return the tensor names of the shallowest `layers` layers; 0: of all layers, the head included."""
        if layers == ALL_LAYERS:
            return tuple(name for name, _ in self.std.named_parameters())
        return shallow_tensors(self.std, layers)

    @cached_property
    def groups(self) -> list[list[str]]:
        """The names of each layer's convolutions; a ResNet's block is one layer."""
        return group_layers([name for name, module in self.std.named_modules() if isinstance(module, nn.Conv2d)])

    def deltas(self, method: str, corruption: str, layers: int = 5) -> Deltas:
        """Return one signature, {tensor: change}, float32, on the CPU; `method` and `layers` as in `Variant`."""
        if method.startswith("tuned"):
            return self.build.signature(method, corruption)
        init, std, robust = (dict(m.named_parameters()) for m in (self.init, self.std, self.robust(corruption)))
        if method == "restart":
            std = init
        own = self.build.recipe.signatures.projection
        projection = {"residual": own, "projected": "per_tensor", "restart": "per_tensor", "plain": "plain"}
        found = residual_signature(init, std, robust, self.tensors(layers), projection[method])
        return {name: delta.cpu() for name, delta in found.items()}

    def calibrated(
        self, base: nn.Module, deltas: Deltas, images: Images, alphas: Sequence[float] = ALPHAS
    ) -> tuple[float, float]:
        """Return the strength, one of `alphas`, that is most accurate on `images`, and that accuracy, percent."""
        scores = [accuracy(patched(base, composed([(deltas, alpha)])), images) for alpha in alphas]
        return alphas[int(np.argmax(scores))], max(scores)

    def doubled(self, images: Images, pair: Sequence[str], purpose: str = "test") -> Images:
        """Return images under a pair of corruptions, the second on top of the first, severity 3 each."""
        pixels = corrupted(images.pixels, [(name, 3.0) for name in pair], self.build.recipe.seed, purpose)
        return Images(pixels, images.labels, images.classes)

    def both(self, method: str, pair: Sequence[str], doubled: Images) -> Deltas:
        """Return R_a + R_b at the common strength that is best on `doubled`: images with both corruptions."""
        total = composed([(self.deltas(method, name), 1.0) for name in pair])
        alpha, _ = self.calibrated(self.std, total, doubled)
        return composed([(total, alpha)])

    def canonical(self, variant: Variant) -> Variant:
        """Return the same variant; the recipe's residual under its own name, if it has one (`projected` or `plain`)."""
        if variant.method != "residual":
            return variant
        names = {"per_tensor": "projected", "plain": "plain"}
        return replace(variant, method=names.get(self.build.recipe.signatures.projection, "residual"))

    def score(self, variant: Variant) -> Score:
        """Return the scores of a variant, measured the first time and read from a file afterwards."""
        variant = self.canonical(variant)
        identity = [self.identity(), variant, len(self.validation)]
        score: Score = self.scores.get(f"{variant.key}.json", identity, lambda: self._measure(variant), JSON)
        return score

    @property
    def scores(self) -> Store:
        """The store of the scores."""
        return Store(self.build.work / "scores")

    def identity(self) -> Any:
        """Return what every score depends on: code, trainings and test images, as plain JSON data."""
        return [REPRODUCE_VERSION, self.build.identity(), self.clean.digest()]

    def _measure(self, variant: Variant) -> Score:
        if variant.method not in WHOLE:
            return self._measure_signatures(variant)
        shapes = [tuple(parameter.shape) for parameter in self.std.parameters()]
        size = code_bytes(shapes, variant.bits, variant.per)
        one = _stored(self.std if variant.method != "augmented" else fold_batchnorm(self.build.augmented()), variant)
        score: Score = {"ta": accuracy(one, self.clean), "ra": {}, "bytes": size, "alpha": {}, "validation": {}}
        for name in CORRUPTIONS:
            model = _stored(self.robust(name), variant) if variant.method == "robust" else one
            score["ra"][name] = accuracy(model, self.tests(name))
        if variant.method == "robust":
            score["bytes"] += len(CORRUPTIONS) * size
        return score

    def _measure_signatures(self, variant: Variant) -> Score:
        base = self.init if variant.method == "restart" else self.std
        exact = replace(variant, bits=32, per="channel")
        known = self.score(exact) if variant.bits != 32 else None
        score: Score = {"ta": accuracy(base, self.clean), "ra": {}, "bytes": 0, "alpha": {}, "validation": {}}
        for name in CORRUPTIONS:
            deltas = code(self.deltas(variant.method, name, variant.layers), variant.bits, variant.per)
            if known is None:
                alpha, reached = self.calibrated(base, deltas, self.validations(name))
            else:
                alpha, reached = known["alpha"][name], known["validation"][name]
            score["alpha"][name], score["validation"][name] = alpha, reached
            score["ra"][name] = accuracy(patched(base, composed([(deltas, alpha)])), self.tests(name))
        shapes = [tuple(delta.shape) for delta in deltas.values()]
        score["bytes"] = self.model_bytes + len(CORRUPTIONS) * code_bytes(shapes, variant.bits, variant.per)
        return score


def _stored(model: nn.Module, variant: Variant) -> nn.Module:
    if variant.bits == 32:
        return model
    stored = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in stored.parameters():
            parameter.copy_(code({"": parameter.detach().cpu().contiguous()}, variant.bits, variant.per)[""])
    return stored


def mean(by_corruption: Mapping[str, float]) -> float:
    """Return the mean over corruptions: robust accuracy (RA), percent."""
    return float(np.mean(list(by_corruption.values())))


def flat(deltas: Deltas) -> Tensor:
    """Return a signature as one vector, float64, shape (values,)."""
    return torch.cat([delta.double().flatten() for delta in deltas.values()])
