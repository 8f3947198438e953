"""Which model everything should start from: the question that the paper answers with ImageNet weights.

(a) `pretrained`: ImageNet's convolutions as far as they are at hand, fresh layers behind them, no BatchNorm; θ_std and
    every θ_r are trained from there, as in the paper.
(b) `continued`: a standard model is trained first; θ_std and every θ_r continue from it for a few epochs.
(c) `restart`: the same robust models, with the first model as θ_std (v_base = 0, so R = θ_r − θ_std).

(b) and (c) with BatchNorm folded before anything continues, and with BatchNorm kept and folded at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.reproduce.measure import Measure
from training.fit import Corrupted, FitRecipe, fit
from training.models import build_model, fold_batchnorm, shallow_tensors
from training.signatures import composed, patched, residual_signature

CORRUPTIONS_TRIED = ("gaussian_noise", "glass_blur", "fog", "contrast")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def compare_inits(measure: Measure, pretrained: str) -> dict[str, Any]:
    """RA over four corruptions, from each init, of whole robust models and of signatures on five layers.

    Args:
        measure: the column's.
        pretrained: ImageNet weights of VGG-16: a file, or torchvision's name for them.

    Returns:
        `rows`: {init, batch_norm, epochs, ta, ra_std, ra_robust, validation, ra_residual, ra_plain}.
    """
    build = measure.build
    recipe = build.recipe
    trained_first = recipe.init.epochs
    from_pretrained = replace(recipe.init, learning_rate=0.01, precision=recipe.init.precision)
    spec = replace(recipe.model, weights=pretrained, batch_norm=False, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def fresh() -> nn.Module:
        torch.manual_seed(recipe.seed)
        return build_model(spec, len(build.train.classes))

    rows = []
    for name, norm, start, schedule in (
        ("pretrained", "none", fresh, from_pretrained),
        ("continued", "folded first", lambda: fold_batchnorm(build.init()), recipe.robust),
        ("continued", "kept", build.init, recipe.robust),
    ):
        rows += _compare(measure, name, norm, start, schedule)
    for row in rows:
        row["epochs"] = f"{row['epochs']}" if row["init"] == "pretrained" else f"{trained_first} + {row['epochs']}"
    return {"rows": rows, "corruptions": list(CORRUPTIONS_TRIED), **measure.sizes()}


def _compare(
    measure: Measure, name: str, norm: str, start: Callable[[], nn.Module], schedule: FitRecipe
) -> list[dict[str, Any]]:
    build = measure.build

    def trained(job: str, corrupted: Corrupted, recipe: FitRecipe) -> nn.Module:
        folder = build.work / "inits"
        folder.mkdir(exist_ok=True)
        checkpoint = folder / f"{name}-{norm.replace(' ', '-')}-{job}.pt"
        model = fit(
            start(), build.train, recipe, corrupted=corrupted, seed=build.recipe.seed + 1, checkpoint=checkpoint
        )
        return fold_batchnorm(model)

    init = fold_batchnorm(copy.deepcopy(start()).to(build.device))
    std = trained("std", Corrupted(), schedule if name == "pretrained" else build.recipe.continued)
    tensors = shallow_tensors(std, 5)
    kinds = {"residual": (std, "per_tensor"), "plain": (std, "plain")}
    if name == "continued":
        kinds["restart"] = (init, "per_tensor")
    scores: dict[str, list[float]] = {"std": [], "init": [], "robust": []}
    validation: dict[str, list[float]] = {}
    for corruption in CORRUPTIONS_TRIED:
        robust = trained(corruption, Corrupted(corruption, build.recipe.signatures.severity), schedule)
        tests = measure.tests(corruption)
        for key, model in (("std", std), ("init", init), ("robust", robust)):
            scores[key].append(measure.accuracy(model, tests))
        for kind, (base, projection) in kinds.items():
            origin = base if kind == "restart" else init
            weights = [dict(model.named_parameters()) for model in (origin, base, robust)]
            deltas = {key: value.cpu() for key, value in residual_signature(*weights, tensors, projection).items()}
            alpha, reached = measure.calibrated(base, deltas, corruption)
            validation.setdefault(kind, []).append(reached)
            scores.setdefault(kind, []).append(measure.accuracy(patched(base, composed([(deltas, alpha)])), tests))

    def mean(values: list[float]) -> float:
        return round(float(np.mean(values)), 2)

    rows = []
    for kind, (base, _) in kinds.items():
        rows.append(
            {
                "init": "restart" if kind == "restart" else name,
                "signature": "plain difference" if kind == "plain" else "projection residual",
                "batch_norm": norm,
                "epochs": schedule.epochs,
                "ta": round(measure.accuracy(base, measure.clean), 2),
                "ra_std": mean(scores["init" if kind == "restart" else "std"]),
                "ra_robust": mean(scores["robust"]),
                "validation": mean(validation[kind]),
                "ra": mean(scores[kind]),
            }
        )
    return rows
