"""Compare models to start all training from; the paper starts from ImageNet weights."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from rws.benchmarks.paper.measure import Measure, Result
from rws.training.models.architectures import build_model, fold_batchnorm, shallow_tensors
from rws.training.models.fit import Corrupted, accuracy, to_input
from rws.training.models.loop import DivergedError
from rws.training.signatures.deltas import composed, patched
from rws.training.signatures.residual import residual_signature

MODELS = 20
CORRUPTIONS_TRIED = ("gaussian_noise", "glass_blur", "fog", "contrast")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def compare_inits(measure: Measure) -> Result:
    """Measure RA, percent, over four corruptions from each init, of robust models and signatures; none if diverged."""
    build = measure.build
    recipe, pretrained = build.recipe, build.place.pretrained
    spec = replace(recipe.model, weights=pretrained, batch_norm=False, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    # As many epochs in all: (b) spends them once on the first model, (a) divides them among its 20.
    spread = math.ceil(recipe.init.epochs / MODELS) + recipe.robust.epochs
    schedule = replace(recipe.init, epochs=spread, batch_size=recipe.robust.batch_size, learning_rate=0.01)
    torch.manual_seed(recipe.seed)
    fresh = build_model(spec, len(build.train.classes)).to(build.device)
    some = torch.randperm(len(build.train), generator=torch.Generator().manual_seed(recipe.seed))[:256]
    _to_unit_variance(fresh, to_input(build.train.pixels[some]))

    def from_pretrained(job: str, corrupted: Corrupted) -> nn.Module:
        return build.continued(f"inits-pretrained-{job}", fresh, schedule, corrupted, spec)

    def from_first(folded: bool) -> Callable[[str, Corrupted], nn.Module]:
        def trained(job: str, corrupted: Corrupted) -> nn.Module:
            if folded == recipe.signatures.fold_first:  # the column's own models
                return fold_batchnorm(build.std() if corrupted.name is None else build.robust(job))
            how = recipe.continued if corrupted.name is None else recipe.robust
            start = fold_batchnorm(build.init()) if folded else build.init()
            return fold_batchnorm(build.continued(f"inits-folded-{folded}-{job}", start, how, corrupted, recipe.init))

        return trained

    continued = f"{recipe.init.epochs} + {recipe.robust.epochs}"
    # (a) ImageNet's convolutions, fresh layers behind them: all is trained from there, as in the paper, for as many
    # epochs in all as (b). (b) A standard model is trained first, and all continues from it, with BatchNorm folded
    # before or at the end. (c) `restart`: as (b), with the first model as θ_std (v_base = 0, so R = θ_r − θ_std).
    cases = (
        ("pretrained", "none", str(schedule.epochs), fold_batchnorm(fresh), from_pretrained),
        ("continued", "folded first", continued, measure.init, from_first(folded=True)),
        ("continued", "kept", continued, measure.init, from_first(folded=False)),
    )
    rows: list[Result] = []
    for name, norm, epochs, init, trained in cases:
        try:
            rows += _compare(measure, name, norm, epochs, init, trained)
        except DivergedError:
            rows.append({"init": name, "signature": "", "batch_norm": norm, "epochs": epochs})
    return {"rows": rows, "corruptions": list(CORRUPTIONS_TRIED), **measure.sizes()}


@torch.no_grad()
def _to_unit_variance(model: nn.Module, x: Tensor) -> None:
    # LSUV (Mishkin & Matas 2016): fresh layers behind VGG-16's features, which are in the hundreds, would not train.
    seen: list[Tensor] = []
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output.std()))
            model(x)
            handle.remove()
            deviation = seen.pop().clamp(min=1e-6)
            layer.weight /= deviation
            if layer.bias is not None:
                layer.bias /= deviation


def _compare(
    measure: Measure, name: str, norm: str, epochs: str, init: nn.Module, trained: Callable[[str, Corrupted], nn.Module]
) -> list[Result]:
    std = trained("std", Corrupted())
    tensors = shallow_tensors(std, 5)
    kinds = {"residual": (std, "per_tensor"), "plain": (std, "plain")}
    if name == "continued":
        kinds["restart"] = (init, "per_tensor")
    scores: dict[str, list[float]] = {"std": [], "init": [], "robust": []}
    validation: dict[str, list[float]] = {}
    for corruption in CORRUPTIONS_TRIED:
        robust = trained(corruption, Corrupted(corruption, measure.build.recipe.signatures.severity))
        tests = measure.tests(corruption)
        for key, model in (("std", std), ("init", init), ("robust", robust)):
            scores[key].append(accuracy(model, tests))
        for kind, (base, projection) in kinds.items():
            origin = base if kind == "restart" else init
            init_, base_, robust_ = (dict(model.named_parameters()) for model in (origin, base, robust))
            found = residual_signature(init_, base_, robust_, tensors, projection)
            deltas = {key: value.cpu() for key, value in found.items()}
            alpha, reached = measure.calibrated(base, deltas, measure.validations(corruption))
            validation.setdefault(kind, []).append(reached)
            scores.setdefault(kind, []).append(accuracy(patched(base, composed([(deltas, alpha)])), tests))

    def mean(values: list[float]) -> float:
        return round(float(np.mean(values)), 2)

    return [
        {
            "init": "restart" if kind == "restart" else name,
            "signature": "plain difference" if kind == "plain" else "projection residual",
            "batch_norm": norm,
            "epochs": epochs,
            "ta": round(accuracy(base, measure.clean), 2),
            "ra_std": mean(scores["init" if kind == "restart" else "std"]),
            "ra_robust": mean(scores["robust"]),
            "validation": mean(validation[kind]),
            "ra": mean(scores[kind]),
        }
        for kind, (base, _) in kinds.items()
    ]
