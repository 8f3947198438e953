"""The baselines by name, each small, after its paper, on the bundle's own model in Torch; and what they compare with.

`all_models` bounds nothing from above: each of its 20 models was trained as the bundle's recipe says, the default one
for two epochs. `std_unfolded` is `std` with BatchNorm as separate layers, which the methods that adapt it need."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from rws.benchmarks.baselines.all_models import AllModels
from rws.benchmarks.baselines.base import Baseline, Fixed
from rws.benchmarks.baselines.batchnorm import NormsOfTypes, adapt_norms
from rws.benchmarks.baselines.models import BaselineModels
from rws.benchmarks.baselines.outputs import Lame, Recentred
from rws.benchmarks.baselines.tent import Sar, Tent
from rws.edge.bundle.bundle import Bundle
from rws.edge.live.arena import ALPHA_STEP
from rws.errors import check_known
from rws.training.corruptions import CORRUPTIONS
from rws.training.models.architectures import fold_batchnorm

BASELINES_VERSION = 1
"""Raise it if the same weights give other answers or costs."""

PRIOR_IMAGES = 16
"""Schneider's number for small batches."""


@torch.no_grad()
def _averaged(bundle: Bundle, folded: nn.Module) -> nn.Module:
    """Add all signatures averaged to the folded model; strengths are rounded as in `PatchableModel.apply`."""
    alpha = round(1 / len(bundle.signatures.names) / ALPHA_STEP) * ALPHA_STEP
    own = dict(folded.named_parameters())
    for name in bundle.signatures.names:
        for tensor, delta in bundle.signatures.get(name).items():
            own[tensor].add_(alpha * torch.from_numpy(delta))
    return folded


BASELINES: Mapping[str, Callable[[BaselineModels], Baseline]] = {
    "augmented": lambda models: Fixed("augmented", fold_batchnorm(models.augmented())),
    "augmix": lambda models: Fixed("augmix", fold_batchnorm(models.augmix())),
    "all_models": lambda models: AllModels(
        fold_batchnorm(models.unfolded()), [fold_batchnorm(models.robust(name)) for name in CORRUPTIONS]
    ),
    "bn_batch": lambda models: Fixed("bn_batch", adapt_norms(models.unfolded(), prior=0)),
    "bn_prior": lambda models: Fixed("bn_prior", adapt_norms(models.unfolded(), PRIOR_IMAGES)),
    "bn_types": lambda models: NormsOfTypes("bn_types", models.unfolded(), models.statistics(), models.bundle),
    "bn_types_perfect": lambda models: NormsOfTypes("bn_types_perfect", models.unfolded(), models.statistics()),
    "neo": lambda models: Recentred("neo", fold_batchnorm(models.unfolded()), models.centre()),
    "lame": lambda models: Lame("lame", fold_batchnorm(models.unfolded())),
    "tent": lambda models: Tent("tent", models.unfolded()),
    "tent_scaled": lambda models: Tent("tent_scaled", models.unfolded(), scaled=True),
    "sar": lambda models: Sar("sar", models.unfolded()),
}
COMPARED: Mapping[str, Callable[[BaselineModels], Baseline]] = {
    "std": lambda models: Fixed("std", fold_batchnorm(models.unfolded())),
    "std_unfolded": lambda models: Fixed("std_unfolded", models.unfolded()),
    "always": lambda models: Fixed("always", _averaged(models.bundle, fold_batchnorm(models.unfolded()))),
}


def make_baseline(name: str, models: BaselineModels) -> Baseline:
    """Make one of `BASELINES` or `COMPARED`; UsageError if it is unknown, InputError if a model is not trained yet."""
    known = {**BASELINES, **COMPARED}
    check_known("baseline", [name], known)
    return known[name](models)


def make_baselines(bundle: Bundle, work: Path, only: Sequence[str] = ()) -> list[Baseline]:
    """Make the baselines, or `only` some, from the models in `work`.

    Raises UsageError if one is unknown, InputError if one is not trained yet.
    """
    check_known("baseline", only, BASELINES)
    models = BaselineModels(bundle, None, work)
    return [make_baseline(name, models) for name in BASELINES if not only or name in only]
