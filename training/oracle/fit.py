"""Train the oracle: one frame to a joint distribution over clean and (corruption, severity level).

Most corruptions show in what a high-pass filter leaves, and small residuals tell more than large ones. So the first
convolution starts as such filters (Laplacian, horizontal and vertical difference of each colour) and goes through
softsign, x / (1 + |x|). Three convolutions follow, and the mean and the logarithm of the variance of each one's
channels, over the whole frame, are what the linear head sees. It scores each (corruption, level) pair, so that every
corruption has its own capacity for severity. A severity between two levels is a target split between them; a frame with
two corruptions is a target split between these.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rws.errors import InputError
from rws.training.corruptions import CORRUPTIONS, WHOLE_SEVERITIES, corrupt_mixed, seeds_for
from rws.training.data.images import Images
from rws.training.jobs.seeds import derive_seed
from rws.training.jobs.store import STATE, Store
from rws.training.models.fit import Report, autocast, check_schedule, crop_and_flip, steps_per_epoch, train

ORACLE_VERSION = 1
"""Raise it when the same recipe and images give another network."""

LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)

_SHARPNESS = 30.0
"""Softsign is half-way at a residual of 1/30, about eight grey levels."""


@dataclass(frozen=True)
class OracleRecipe:
    """How to train the oracle; AdamW under a warm-up and a cosine to zero.

    Args:
        epochs: passes over the training images, each with fresh corruptions.
        batch_size, learning_rate, warmup, weight_decay: as in `FitRecipe`.
        precision: as there; what tells corruptions apart is often a fraction of a grey level, so not bf16.
        filters: of the first convolution.
        widths: channels of the convolutions after it.
        crop: pixels of reflected border for the random crop before the corruption.
        clean_share: part of the images that stay clean; the other types share the rest evenly.
        pair_share: part of the images that get a second corruption, over the first one.
        whole_share: part of the severities that are whole numbers, as in test sets.
        minimum_severity: corrupted training images have severities from this to 5.
    """

    epochs: int = 40
    batch_size: int = 256
    learning_rate: float = 5e-3
    warmup: float = 0.2
    weight_decay: float = 1e-2
    filters: int = 16
    widths: tuple[int, ...] = (32, 64, 96)
    crop: int = 4
    clean_share: float = 0.1
    pair_share: float = 0.0
    whole_share: float = 0.5
    minimum_severity: float = 1.0
    precision: str = "fp32"

    def __post_init__(self) -> None:
        check_schedule(self)
        shares = (self.clean_share, self.pair_share, self.whole_share)
        if not all(0 <= share <= 1 for share in shares) or not 0 < self.clean_share < 1:
            raise InputError(f"oracle: shares must lie in 0…1, the clean one inside it; got {shares}")
        if not 0 <= self.minimum_severity < 5 or self.filters < 9 or not self.widths:
            raise InputError(
                "oracle: need 0 <= minimum_severity < 5, 9 filters or more, and widths; "
                f"got {self.minimum_severity}, {self.filters}, {self.widths}"
            )


class OracleNetwork(nn.Module):
    """float32 (N, 3, H, W), RGB, 0…1, to logits over 1 + C·S joint states."""

    def __init__(self, filters: int = 16, widths: tuple[int, ...] = (32, 64, 96), states: int = 1 + 19 * 5) -> None:
        super().__init__()
        self.front = nn.Conv2d(3, filters, 3, padding=1)
        with torch.no_grad():
            self.front.weight.copy_(_high_pass(filters))
            self.front.bias.zero_()
        stages: list[nn.Module] = []
        channels = filters
        for width in widths:
            # The first one halves the resolution itself: the most expensive place to do it later.
            convolution = (
                nn.Conv2d(channels, width, 3, padding=1, bias=False)
                if stages
                else nn.Conv2d(channels, width, 4, stride=2, padding=1, bias=False)
            )
            stages.append(nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU()))
            channels = width
        self.stages = nn.ModuleList(stages)
        self.scale = nn.BatchNorm1d(2 * sum(widths))
        self.head = nn.Linear(2 * sum(widths), states)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        maps = F.softsign(F.conv2d(x - 0.5, _SHARPNESS * self.front.weight, self.front.bias, padding=1))
        pooled = []
        for index, stage in enumerate(self.stages):
            maps = stage(F.max_pool2d(maps, 2) if index else maps)
            values = maps.float()
            mean = F.adaptive_avg_pool2d(values, 1).flatten(1)
            square = F.adaptive_avg_pool2d(values * values, 1).flatten(1)
            pooled += [mean, ((square - mean * mean).clamp(min=0) + 1e-4).log()]
        return self.head(self.scale(torch.cat(pooled, 1)))


def _high_pass(filters: int) -> Tensor:
    """First weights (filters, 3, 3, 3): Laplacian and differences of each colour, the colours, then random ones."""
    weights = 0.3 * torch.randn(filters, 3, 3, 3)
    weights -= weights.mean((1, 2, 3), keepdim=True)
    kernels = torch.tensor(
        [
            [[0, -0.25, 0], [-0.25, 1, -0.25], [0, -0.25, 0]],
            [[0, 0, 0], [-1, 1, 0], [0, 0, 0]],
            [[0, -1, 0], [0, 1, 0], [0, 0, 0]],
            [[0, 0, 0], [0, 0.5, 0], [0, 0, 0]],
        ]
    )
    for index, (kernel, colour) in enumerate(product(kernels, range(3))):
        if index < filters:
            weights[index] = 0
            weights[index, colour] = kernel
    return weights


class OracleBatch(NamedTuple):
    """float32 images (N, 3, H, W) and target distributions (N, 1 + C·S)."""

    x: Tensor
    target: Tensor


def draw_severities(
    types: Tensor, recipe: OracleRecipe, generator: torch.Generator, corruptions: Sequence[str] = CORRUPTIONS
) -> Tensor:
    """Severities of types, int64 (N,), −1 = clean (0): whole ones, or real ones from the recipe's minimum to 5.

    Real ones are uniform up to 5.5 and cut at 5: a target is split between the levels around it, so level 5 would
    otherwise get half of what the others get.
    """
    low = recipe.minimum_severity
    real = (low + (5.5 - low) * torch.rand(len(types), generator=generator)).clamp(max=5)
    whole = torch.randint(1, 6, (len(types),), generator=generator).float()
    is_whole = torch.tensor([name in WHOLE_SEVERITIES for name in corruptions])[types]
    is_whole |= torch.rand(len(types), generator=generator) < recipe.whole_share
    return torch.where(types < 0, 0.0, torch.where(is_whole, whole, real))


def draw_types(count: int, recipe: OracleRecipe, kinds: int, generator: torch.Generator) -> Tensor:
    """Types of training images, int64 (count,): −1 (clean) with the recipe's odds, else one of `kinds`."""
    types = torch.randint(0, kinds, (count,), generator=generator)
    return torch.where(torch.rand(count, generator=generator) < recipe.clean_share, -1, types)


def joint_target(types: Tensor, severities: Tensor, kinds: int = len(CORRUPTIONS)) -> Tensor:
    """Target distribution, float32 (N, 1 + C·S), of type indices (N,), −1 = clean, and severities (N,), 0…5."""
    steps = len(LEVELS)
    target = torch.zeros(len(types), 1 + kinds * steps)
    rows = torch.arange(len(types))
    low = severities.floor().clamp(0, steps - 1).long()
    upper = (severities - low).clamp(0, 1)
    start = 1 + types.clamp(min=0) * steps
    target[rows, torch.where((types < 0) | (low == 0), 0, start + low - 1)] += 1 - upper
    target[rows, torch.where(types < 0, 0, start + low)] += upper
    return target


class Draw(NamedTuple):
    """What happens to N training images: types, int64, −1 = clean, and severities, float32, of the first corruption
    and of the one over it (−1 and 0 where there is none); `target`, float32 (N, 1 + C·S)."""

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
    """How often each joint state occurs in training, float32 (1 + C·S,), by a seeded draw."""
    return draw(draws, recipe, corruptions, torch.Generator().manual_seed(0)).target.mean(0)


def oracle_batches(
    data: Images, recipe: OracleRecipe, epoch: int, seed: int, corruptions: Sequence[str] = CORRUPTIONS
) -> Iterator[OracleBatch]:
    """One epoch: every image once, under what is drawn for it."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "oracle training", draw=epoch))
    order = torch.randperm(len(data), generator=generator)
    batch_size = min(recipe.batch_size, len(data))
    known = torch.tensor([*(CORRUPTIONS.index(name) for name in corruptions), -1])
    for start in range(0, len(data) - batch_size + 1, batch_size):
        index = order[start : start + batch_size].to(data.pixels.device)
        pixels = crop_and_flip(data.pixels[index], recipe.crop, generator)
        drawn = draw(len(index), recipe, corruptions, generator)
        for layer, (types, severities) in enumerate(
            [(drawn.types, drawn.severities), (drawn.second_types, drawn.second_severities)]
        ):
            seeds = seeds_for(derive_seed(seed, f"oracle training, layer {layer}", draw=epoch), index)
            pixels = corrupt_mixed(pixels, known[types].to(pixels.device), severities.to(pixels.device), seeds)
        yield OracleBatch(pixels.float().div_(255), drawn.target.to(pixels.device))


def fit_oracle(
    data: Images,
    recipe: OracleRecipe,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    seed: int = 0,
    checkpoint: Path | None = None,
    report: Report | None = None,
) -> OracleNetwork:
    """Train the oracle on clean images; labels are not used.

    Args:
        data: the images.
        recipe: how to train.
        corruptions: the types it learns to tell apart; its states are clean and these, in this order.
        seed, checkpoint, report: as in `rws.training.models.fit.fit`.
    """
    torch.manual_seed(seed)
    device = data.pixels.device
    network = OracleNetwork(recipe.filters, recipe.widths, 1 + len(corruptions) * len(LEVELS))
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)

    def loss_of(batch: OracleBatch) -> Tensor:
        with autocast(device, recipe.precision):
            logits = network(batch.x.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), batch.target)

    train(
        network,
        optimiser,
        recipe,
        lambda epoch: oracle_batches(data, recipe, epoch, seed, corruptions),
        loss_of,
        steps_per_epoch=steps_per_epoch(data, recipe),
        identity=repr((sorted(asdict(recipe).items()), tuple(corruptions), seed, len(data))),
        checkpoint=checkpoint,
        report=report,
    )
    return network


def stored_oracle(
    store: Store,
    name: str,
    data: Images,
    recipe: OracleRecipe,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    seed: int = 0,
    report: Report | None = None,
) -> OracleNetwork:
    """The network of `fit_oracle` on the CPU, trained once.

    Args:
        store: where it is kept.
        name: of its file there, `.pt`.
        data, recipe, corruptions, seed, report: as in `fit_oracle`.
    """
    entry = store.entry(name, [ORACLE_VERSION, data.digest(), recipe, tuple(corruptions), seed], STATE)
    state = entry.get(
        lambda: fit_oracle(
            data, recipe, corruptions=corruptions, seed=seed, checkpoint=entry.checkpoint, report=report
        ).state_dict()
    )
    network = OracleNetwork(recipe.filters, recipe.widths, 1 + len(corruptions) * len(LEVELS))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.load_state_dict(state)
    return network.eval()


@torch.no_grad()
def oracle_logits(network: OracleNetwork, x: Tensor, batch_size: int = 500) -> Tensor:
    """float32 logits (N, 1 + C·S) of uint8 images (N, 3, H, W)."""
    return torch.cat([network(part.float().div(255)) for part in x.split(batch_size)])


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature T that minimises the cross-entropy of softmax(logits / T) (Guo et al. 2017, Sec. 4.2)."""
    log_temperature = torch.zeros((), requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature], max_iter=50)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(logits / log_temperature.exp(), target)
        loss.backward()
        return loss

    optimiser.step(closure)
    return float(log_temperature.detach().exp())


def fit_clean_weight(joint: Tensor, recall: float) -> float:
    """The least weight, 1 or more, on the odds of clean at which that part of clean frames is named so.

    In training clean is as rare as the recipe says; in use it is the rule, and named far more often.

    Args:
        joint: beliefs of N clean images, float32 (N, 1 + C·S).
        recall: percent, below 100.
    """
    per_type = joint[:, 1:].reshape(len(joint), -1, len(LEVELS)).sum(2)
    needed = per_type.max(1).values / joint[:, 0].clamp(min=1e-12)
    return max(1.0, float(torch.quantile(needed.double(), recall / 100, interpolation="higher")) * (1 + 1e-6))


def weigh_clean(joint: Tensor, weight: float) -> Tensor:
    """Distributions (…, 1 + C·S) after the odds of clean were multiplied."""
    odds = torch.cat([joint[..., :1] * weight, joint[..., 1:]], dim=-1)
    return odds / odds.sum(-1, keepdim=True)


def export_oracle(network: OracleNetwork, temperature: float, size: int, clean_weight: float = 1.0) -> bytes:
    """ONNX bytes: `image`, float32 (N, 3, size, size), to `joint`, calibrated probabilities (N, 1 + C·S).

    Args:
        network: the network.
        temperature: divides its logits; see `fit_temperature`.
        size: side of the images, pixels.
        clean_weight: multiplies the odds of clean; see `fit_clean_weight`.
    """

    class Calibrated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = copy.deepcopy(network)
            with torch.no_grad():  # what is constant goes into the last layer: a frame costs nothing more
                self.network.head.weight /= temperature
                self.network.head.bias /= temperature
                self.network.head.bias[0] += math.log(clean_weight)

        def forward(self, image: Tensor) -> Tensor:
            return self.network(image).softmax(1)

    from rws.training.models.export import export_onnx, stored_as_half

    return stored_as_half(export_onnx(Calibrated().cpu().eval(), size, input_name="image", output_name="joint"))
