"""What the oracle is trained on: which corruptions an image gets, how strong, and the distribution it should name."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from rws.edge.common.schema import STRICT
from rws.training.corruptions import CORRUPTIONS, WHOLE_SEVERITIES
from rws.training.models.loop import BatchSize, Count, Precision, Rate, Share, Warmup

LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)


@dataclass(frozen=True, config=STRICT)
class OracleRecipe:
    """How to train the oracle; AdamW under a warm-up and a cosine to zero.

    Args:
        learning_rate, warmup, weight_decay, crop: as in `FitRecipe`; the corruption comes after the crop.
        precision: as there; what tells corruptions apart is often a fraction of a grey level, so not bf16.
        clean_share: part of the images that stay clean; the other types share the rest evenly.
        pair_share: part of the images that get a second corruption, over the first one.
        whole_share: part of the severities that are whole numbers, as in test sets.
        minimum_severity: corrupted training images have severities from this to 5.
    """

    epochs: Count = 40
    batch_size: BatchSize = 256
    learning_rate: Rate = 5e-3
    warmup: Warmup = 0.2
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    filters: Annotated[int, Field(ge=9)] = 16
    widths: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64, 96)
    crop: Annotated[int, Field(ge=0)] = 4
    clean_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    pair_share: Share = 0.0
    whole_share: Share = 0.5
    minimum_severity: Annotated[float, Field(ge=0, lt=5)] = 1.0
    precision: Precision = "fp32"


def draw_severities(
    types: Tensor, recipe: OracleRecipe, generator: torch.Generator, corruptions: Sequence[str] = CORRUPTIONS
) -> Tensor:
    """Draw severities of types, int64 (N,), −1 = clean (0): whole ones, or real ones from the recipe's minimum to 5.

    Real ones are uniform up to 5.5 and cut at 5: targets are split between levels, so level 5 would get half as much.
    """
    low = recipe.minimum_severity
    real = (low + (5.5 - low) * torch.rand(len(types), generator=generator)).clamp(max=5)
    whole = torch.randint(1, 6, (len(types),), generator=generator).float()
    is_whole = torch.tensor([name in WHOLE_SEVERITIES for name in corruptions])[types]
    is_whole |= torch.rand(len(types), generator=generator) < recipe.whole_share
    return torch.where(types < 0, 0.0, torch.where(is_whole, whole, real))


def draw_types(count: int, recipe: OracleRecipe, kinds: int, generator: torch.Generator) -> Tensor:
    """Draw types of training images, int64 (count,): −1 (clean) with the recipe's odds, else one of `kinds`."""
    types = torch.randint(0, kinds, (count,), generator=generator)
    return torch.where(torch.rand(count, generator=generator) < recipe.clean_share, -1, types)


def joint_target(types: Tensor, severities: Tensor, kinds: int = len(CORRUPTIONS)) -> Tensor:
    """Make targets, float32 (N, 1 + C·S), of types (N,), −1 = clean, split between the levels around severity (N,)."""
    steps, rows = len(LEVELS), torch.arange(len(types))
    target = torch.zeros(len(types), 1 + kinds * steps)
    low = severities.floor().clamp(0, steps - 1).long()
    upper = (severities - low).clamp(0, 1)
    start = 1 + types.clamp(min=0) * steps
    target[rows, torch.where((types < 0) | (low == 0), 0, start + low - 1)] += 1 - upper
    target[rows, torch.where(types < 0, 0, start + low)] += upper
    return target


class Draw(NamedTuple):
    """Types, int64 (N,), −1 = none, and severities, float32, of two layers; `target`, float32 (N, 1 + C·S)."""

    types: Tensor
    severities: Tensor
    second_types: Tensor
    second_severities: Tensor
    target: Tensor


def draw(count: int, recipe: OracleRecipe, corruptions: Sequence[str], generator: torch.Generator) -> Draw:
    """Draw what happens to `count` training images."""
    kinds = len(corruptions)
    types = draw_types(count, recipe, kinds, generator)
    severities = draw_severities(types, recipe, generator, corruptions)
    other = (types + torch.randint(1, max(2, kinds), (count,), generator=generator)) % kinds
    paired = (torch.rand(count, generator=generator) < recipe.pair_share) & (types >= 0) & (other != types)
    second_types = torch.where(paired, other, -1)
    second_severities = draw_severities(second_types, recipe, generator, corruptions)
    target = joint_target(types, severities, kinds)
    both = (target + joint_target(second_types, second_severities, kinds)) / 2
    return Draw(types, severities, second_types, second_severities, torch.where(paired[:, None], both, target))


def training_prior(recipe: OracleRecipe, draws: int = 400_000, corruptions: Sequence[str] = CORRUPTIONS) -> Tensor:
    """Return how often each joint state occurs in training, float32 (1 + C·S,), by a seeded draw."""
    return draw(draws, recipe, corruptions, torch.Generator().manual_seed(0)).target.mean(0)
