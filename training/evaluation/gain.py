"""The gain table: accuracy of each action in each state, measured on validation images.

Kept affordable: a few severities (levels between them are interpolated); in each state no patch, the corruption's own
signature on a grid of alphas, and the signatures of its nearest neighbours (those that help most at the strongest
severity, by a coarse pass) on a shorter one. Cells that were not measured are filled with what is safe to assume: no
gain, and any loss that the coarse pass or the clean images show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from rws.edge.common.schema import STRICT
from rws.edge.live.base import PatchableModel
from rws.errors import InputError
from rws.oracle.policy import GainTable
from rws.training.corruptions import CORRUPTIONS, corrupt, seeds_for
from rws.training.data.images import Images
from rws.training.evaluation.evaluator import percent_right
from rws.training.jobs.seeds import derive_seed
from rws.training.models.loop import Count


@dataclass(frozen=True, config=STRICT)
class CalibrationRecipe:
    """What to measure.

    Args:
        images: validation images a cell.
        coarse_images: images a cell of the coarse pass over all pairs of corruption and signature.
        severities: measured severities, ascending, the last one the strongest.
        alphas: strengths of the own signature.
        neighbours: how many other signatures are measured for each corruption.
        neighbour_alphas: their strengths.
        clean_recall: percent of the clean validation images that the oracle must name so.
    """

    images: Count = 2000
    coarse_images: Count = 400
    severities: Annotated[tuple[float, ...], Field(min_length=1)] = (1.0, 2.0, 3.0, 4.0, 5.0)
    alphas: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25)
    neighbours: Annotated[int, Field(ge=0)] = 4
    neighbour_alphas: tuple[float, ...] = (0.5, 1.0)
    clean_recall: Annotated[float, Field(ge=0, lt=100)] = 97.5

    def __post_init__(self) -> None:
        if 1.0 not in self.alphas or not set(self.neighbour_alphas) <= set(self.alphas):
            raise ValueError("alphas that hold 1.0 and every one of neighbour_alphas")


def check_signed(names: Sequence[str]) -> None:
    """Refuse signatures that cannot be calibrated.

    Raises:
        InputError: if one is for none of the corruptions.
    """
    strange = [name for name in names if name not in CORRUPTIONS]
    if strange:
        raise InputError(
            f"signature {strange[0]!r} is for no corruption that can be made here, so that it cannot be calibrated; "
            f"known: {', '.join(CORRUPTIONS)}"
        )


def measure_gain(
    model: PatchableModel,
    names: Sequence[str],
    data: Images,
    recipe: CalibrationRecipe,
    levels: Sequence[float],
    *,
    seed: int = 0,
    soft: bool = False,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> GainTable:
    """Measure the gain table of a model's signatures with validation images.

    Args:
        model: the clean model with its signatures, as the device runs it; left without a patch.
        names: of its signatures, which are those of the corruptions that they are for. The table has all corruptions.
        data: validation images.
        recipe: what to measure.
        levels: severity levels of the oracle's states.
        seed: of the corruptions.
        soft: a cell is the mean probability of the right class instead of how often it is the likeliest: with a few
            dozen images, where a handful of them decides the latter, that tells actions apart far more surely.
        report: called after each corruption with {corruption, …}.

    Raises:
        InputError: if a signature is for none of the corruptions.
    """
    check_signed(names)
    signed = sorted(CORRUPTIONS.index(name) for name in names)
    actions = [(-1, 0.0)] + [(index, alpha) for index in signed for alpha in recipe.alphas]
    column = {action: position for position, action in enumerate(actions)}
    sample = data.first(recipe.images)

    def accuracy(pixels: Tensor, labels: Tensor, action: tuple[int, float]) -> float:
        model.apply({} if action[0] < 0 else {CORRUPTIONS[action[0]]: action[1]})
        return percent_right(model, pixels, labels, soft=soft)

    clean_row = np.array([accuracy(sample.pixels, sample.labels, action) for action in actions])
    clean_loss = np.minimum(0, clean_row - clean_row[0])
    measured = np.full((len(CORRUPTIONS), 1 + len(recipe.severities), len(actions)), np.nan)
    measured[:, 0] = clean_row
    coarse = data.first(recipe.coarse_images)
    for row, name in enumerate(CORRUPTIONS):
        seeds = seeds_for(derive_seed(seed, "calibration", name), len(sample)).to(sample.pixels.device)
        strongest = corrupt(coarse.pixels, name, recipe.severities[-1], seeds[: len(coarse)])
        scores = {other: accuracy(strongest, coarse.labels, (other, 1.0)) for other in signed}
        before = accuracy(strongest, coarse.labels, (-1, 0.0))
        nearest = sorted((other for other in signed if other != row), key=lambda other: -scores[other])
        nearest = nearest[: recipe.neighbours]
        chosen = [(-1, 0.0)] + [(row, alpha) for alpha in recipe.alphas if row in signed]
        chosen += [(other, alpha) for other in nearest for alpha in recipe.neighbour_alphas]
        for place, severity in enumerate(recipe.severities, start=1):
            pixels = corrupt(sample.pixels, name, severity, seeds)
            for action in chosen:
                measured[row, place, column[action]] = accuracy(pixels, sample.labels, action)
            unpatched = measured[row, place, 0]
            for position, (other, alpha) in enumerate(actions):
                if np.isnan(measured[row, place, position]):
                    loss = min(clean_loss[position], alpha * min(0, scores[other] - before))
                    measured[row, place, position] = unpatched + loss
        if report is not None:
            best = float(measured[row, -1].max())
            neighbours = [CORRUPTIONS[other] for other in nearest]
            report({"corruption": name, "std": round(unpatched, 2), "best": round(best, 2), "nearest": neighbours})
    model.reset()
    grid = np.array([0.0, *recipe.severities])
    states = [clean_row] + [
        np.array([np.interp(level, grid, measured[row, :, position]) for position in range(len(actions))])
        for row in range(len(CORRUPTIONS))
        for level in levels
    ]
    return GainTable(
        CORRUPTIONS,
        tuple(float(level) for level in levels),
        np.array([action[0] for action in actions], np.int64),
        np.array([action[1] for action in actions], np.float32),
        np.stack(states).astype(np.float32),
    )
