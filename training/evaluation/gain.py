"""The gain table: accuracy of each action in each state, measured on validation images.

Measured are a few severities, the own signature and its nearest neighbours (by a coarse pass at the strongest
severity). Other cells hold what is safe to assume: no gain, and any loss in the coarse pass or on clean images.
No action gains on clean images: what seems to is chance, and would patch a clear frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from rws.edge.common.schema import STRICT
from rws.edge.live.base import PatchableModel
from rws.errors import InputError
from rws.oracle.policy import GainTable
from rws.training.corruptions import CORRUPTIONS, corrupt, seeds_for
from rws.training.jobs.seeds import derive_seed
from rws.training.models.loop import Count
from rws.training.oracle.sampling import LEVELS


@dataclass(frozen=True, config=STRICT)
class CalibrationRecipe:
    """What to measure: validation images per cell, also of the coarse pass; severities, ascending; the signatures.

    Those are a corruption's own at `alphas`, and as many `neighbours` at `neighbour_alphas`. The oracle must name
    `clean_recall` percent of the clean validation images so.
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

    def quick(self) -> "CalibrationRecipe":
        """Return the recipe of a first look."""
        alphas = tuple(sorted({0.5, 1.0, *self.neighbour_alphas}))
        severities = tuple(sorted({min(3.0, max(self.severities)), max(self.severities)}))
        return replace(self, images=25, coarse_images=10, neighbours=1, severities=severities, alphas=alphas)


Score = Callable[[PatchableModel, Tensor], float]  # percent; of the first images, corrupted or not, under a mix
Action = tuple[int, float]  # index of the signature's corruption, and alpha; (−1, 0) is no patch


def check_signed(names: Sequence[str], corruptions: Sequence[str] = CORRUPTIONS) -> None:
    """Raise an InputError if one of these signatures is for none of the corruptions, so cannot be calibrated."""
    if strange := [name for name in names if name not in corruptions]:
        found = f"signature {strange[0]!r} is for no corruption that can be made here, so that it cannot be calibrated"
        raise InputError(f"{found}; known: {', '.join(corruptions)}")


def measure_gain(
    model: PatchableModel,
    names: Sequence[str],
    pixels: Tensor,
    recipe: CalibrationRecipe,
    score: Score,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    seed: int = 0,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> GainTable:
    """Measure the gain table of a model's signatures with validation images.

    Args:
        model: the clean model with its signatures, as the device runs it; left without a patch.
        names: of its signatures; InputError if one is none of `corruptions`, of which the table has all.
        pixels: clean images, uint8 (N, 3, H, W), RGB.
        score: what a cell holds. A soft score, such as the right class's mean probability, tells more of a few dozen
            images than accuracy does.
        report: called after the clean images and each corruption with {corruption, answers, answers_left, …}.
    """
    check_signed(names, corruptions)
    signed = sorted(corruptions.index(name) for name in names)
    actions: list[Action] = [(-1, 0.0)] + [(index, alpha) for index in signed for alpha in recipe.alphas]
    sample = pixels[: recipe.images]

    def accuracy(images: Tensor, action: Action) -> float:
        model.apply({} if action[0] < 0 else {corruptions[action[0]]: action[1]})
        return score(model, images)

    of_clean, of_corruption = count_answers(recipe, len(pixels), len(names))
    clean = np.array([accuracy(sample, action) for action in actions])
    clean = np.minimum(clean, clean[0])
    if report is not None:
        report({"corruption": "clean", "answers": of_clean, "answers_left": of_corruption * len(corruptions)})
    grid, states = np.array([0.0, *recipe.severities]), [clean]
    for row, name in enumerate(corruptions):
        drawn = derive_seed(seed, "calibration", name)
        measured, nearest = _measure_corruption((row, name), pixels, recipe, drawn, (actions, clean), accuracy)
        curves = np.stack([clean, *measured]).T
        states += [np.array([np.interp(level, grid, curve) for curve in curves]) for level in LEVELS]
        if report is not None:
            unpatched, best = round(measured[-1][0], 2), round(float(measured[-1].max()), 2)
            left = {"answers": of_corruption, "answers_left": of_corruption * (len(corruptions) - 1 - row)}
            scores = {"std": unpatched, "best": best, "nearest": [corruptions[n] for n in nearest]}
            report({"corruption": name, **left, **scores})
    model.reset()
    signature, alpha = zip(*actions, strict=True)
    accuracies = np.stack(states).astype(np.float32)
    columns = (np.array(signature, np.int64), np.array(alpha, np.float32), accuracies)
    return GainTable(tuple(corruptions), LEVELS, *columns)


def count_answers(recipe: CalibrationRecipe, images: int, signatures: int) -> tuple[int, int]:
    """Return how often `measure_gain` runs the model on an image: on clean ones, and on those of one corruption."""
    sample, coarse = min(images, recipe.images), min(images, recipe.coarse_images)
    chosen = 1 + len(recipe.alphas) + min(recipe.neighbours, signatures - 1) * len(recipe.neighbour_alphas)
    clean = sample * (1 + signatures * len(recipe.alphas))
    return clean, coarse * (signatures + 1) + sample * len(recipe.severities) * chosen


def _measure_corruption(
    corruption: tuple[int, str],
    pixels: Tensor,
    recipe: CalibrationRecipe,
    drawn: int,
    clean: tuple[Sequence[Action], NDArray[np.float64]],
    accuracy: Callable[[Tensor, Action], float],
) -> tuple[list[NDArray[np.float64]], list[int]]:
    (row, name), (actions, on_clean) = corruption, clean
    signed = sorted({other for other, _ in actions} - {-1})
    sample = pixels[: recipe.images]
    seeds = seeds_for(drawn, len(sample)).to(sample.device)

    def corrupted(images: Tensor, severity: float) -> Tensor:
        return corrupt(images, name, severity, seeds[: len(images)])

    strongest = corrupted(pixels[: recipe.coarse_images], recipe.severities[-1])
    scores = {other: accuracy(strongest, (other, 1.0)) for other in signed}
    before = accuracy(strongest, (-1, 0.0))
    nearest = sorted((other for other in signed if other != row), key=lambda other: -scores[other])[: recipe.neighbours]
    chosen = [(-1, 0.0)] + [(row, alpha) for alpha in recipe.alphas if row in signed]
    chosen += [(other, alpha) for other in nearest for alpha in recipe.neighbour_alphas]
    measured = []
    for severity in recipe.severities:
        images = corrupted(sample, severity)
        found = {action: accuracy(images, action) for action in chosen}
        for action, reached in zip(actions, on_clean - on_clean[0], strict=True):
            if action not in found:
                other, alpha = action
                found[action] = found[-1, 0.0] + min(reached, alpha * min(0, scores[other] - before))
        measured.append(np.array([found[action] for action in actions]))
    return measured, nearest
