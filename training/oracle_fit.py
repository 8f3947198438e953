"""Train the oracle: one frame to a joint distribution over clean and (corruption, severity level).

The network sees the RGB values and nine fixed high-pass residual maps (Laplacian, horizontal and vertical difference,
with a signed square root: most corruptions show in what a high-pass filter leaves), four convolutions, and pools the
mean and standard deviation of every stage. Its head scores each (corruption, level) pair, so that every corruption
has its own capacity for severity. A severity between two levels is a target split between them; below the first
level it is split with clean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.corruptions import CORRUPTIONS, WHOLE_SEVERITIES, corrupt_mixed, seeds_for
from training.data import Images
from training.fit import Report, autocast, check_schedule, crop_and_flip, steps_per_epoch, train

LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)


@dataclass(frozen=True)
class OracleRecipe:
    """How to train the oracle; AdamW under a warm-up and a cosine to zero.

    Args:
        epochs: passes over the training images, each with fresh corruptions.
        batch_size, learning_rate, warmup, weight_decay, precision: as in `FitRecipe`.
        widths: channels of the four convolutions.
        crop: pixels of reflected border for the random crop before the corruption.
        minimum_severity: corrupted training images have severities from this to 5.
    """

    epochs: int = 40
    batch_size: int = 256
    learning_rate: float = 5e-3
    warmup: float = 0.2
    weight_decay: float = 1e-2
    widths: tuple[int, ...] = (16, 32, 64, 96)
    crop: int = 4
    minimum_severity: float = 0.3
    precision: str = "bf16"

    def __post_init__(self) -> None:
        check_schedule(self)


class OracleNetwork(nn.Module):
    """float32 (N, 3, H, W), RGB, 0…1, to logits over 1 + C·S joint states."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96), states: int = 1 + 19 * 5) -> None:
        super().__init__()
        filters = torch.tensor(
            [
                [[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]],
                [[0.0, 0, 0], [0, 1, -1], [0, 0, 0]],
                [[0.0, 0, 0], [0, 1, 0], [0, -1, 0]],
            ]
        )
        self.register_buffer("high_pass", filters.repeat(3, 1, 1)[:, None])
        stages: list[nn.Module] = []
        channels = 12
        for index, width in enumerate(widths):
            convolution = nn.Conv2d(channels, width, 3, stride=1 if index == 0 else 2, padding=1, bias=False)
            stages.append(nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU()))
            channels = width
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(2 * sum(widths), states)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch."""
        residual = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), self.high_pass, groups=3)
        maps = torch.cat([x - 0.5, residual.sign() * (residual.abs() + 1e-6).sqrt()], dim=1)
        pooled = []
        for stage in self.stages:
            maps = stage(maps)
            values = maps.float()
            mean = values.mean((2, 3))
            spread = (values - mean[:, :, None, None]).square().mean((2, 3))
            pooled += [mean, (spread + 1e-5).sqrt()]
        return self.head(torch.cat(pooled, 1))


class OracleBatch(NamedTuple):
    """float32 images (N, 3, H, W) and target distributions (N, 1 + C·S)."""

    x: Tensor
    target: Tensor


def draw_severities(types: Tensor, minimum: float, generator: torch.Generator) -> Tensor:
    """Severities minimum…5 of types, int64 (N,), −1 = clean (0); whole ones where no others exist.

    Uniform up to 5.5 and cut at 5: a target is split between the levels around it, so level 5 would otherwise get half
    of what the others get.
    """
    severities = (minimum + (5.5 - minimum) * torch.rand(len(types), generator=generator)).clamp(max=5)
    whole = torch.tensor([name in WHOLE_SEVERITIES for name in CORRUPTIONS])
    severities = torch.where(whole[types], torch.randint(1, 6, (len(types),), generator=generator).float(), severities)
    return torch.where(types < 0, 0.0, severities)


def joint_target(types: Tensor, severities: Tensor) -> Tensor:
    """Target distribution, float32 (N, 1 + C·S), of type indices (N,), −1 = clean, and severities (N,), 0…5."""
    steps = len(LEVELS)
    target = torch.zeros(len(types), 1 + len(CORRUPTIONS) * steps)
    rows = torch.arange(len(types))
    low = severities.floor().clamp(0, steps - 1).long()
    upper = (severities - low).clamp(0, 1)
    start = 1 + types.clamp(min=0) * steps
    target[rows, torch.where((types < 0) | (low == 0), 0, start + low - 1)] += 1 - upper
    target[rows, torch.where(types < 0, 0, start + low)] += upper
    return target


def training_prior(recipe: OracleRecipe, draws: int = 400_000) -> Tensor:
    """How often each joint state occurs in training, float32 (1 + C·S,), by a seeded draw."""
    generator = torch.Generator().manual_seed(0)
    types = torch.randint(-1, len(CORRUPTIONS), (draws,), generator=generator)
    return joint_target(types, draw_severities(types, recipe.minimum_severity, generator)).mean(0)


def oracle_batches(data: Images, recipe: OracleRecipe, epoch: int, seed: int) -> Iterator[OracleBatch]:
    """One epoch: every image once, under a type drawn from clean and the 19 with equal odds."""
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    order = torch.randperm(len(data), generator=generator)
    batch_size = min(recipe.batch_size, len(data))
    for start in range(0, len(data) - batch_size + 1, batch_size):
        index = order[start : start + batch_size].to(data.pixels.device)
        pixels = crop_and_flip(data.pixels[index], recipe.crop, generator)
        types = torch.randint(-1, len(CORRUPTIONS), (len(index),), generator=generator)
        severities = draw_severities(types, recipe.minimum_severity, generator)
        target = joint_target(types, severities).to(pixels.device)
        seeds = seeds_for(seed * 1_000_003 + epoch, index)
        corrupted = corrupt_mixed(pixels, types.to(pixels.device), severities.to(pixels.device), seeds)
        yield OracleBatch(corrupted.float().div_(255), target)


def fit_oracle(
    data: Images, recipe: OracleRecipe, *, seed: int = 0, checkpoint: Path | None = None, report: Report | None = None
) -> OracleNetwork:
    """Train the oracle on clean images; labels are not used. Arguments as in `training.fit.fit`."""
    torch.manual_seed(seed)
    device = data.pixels.device
    network = OracleNetwork(recipe.widths).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)

    def loss_of(batch: OracleBatch) -> Tensor:
        with autocast(device, recipe.precision):
            logits = network(batch.x)
        return F.cross_entropy(logits.float(), batch.target)

    train(
        network,
        optimiser,
        recipe,
        lambda epoch: oracle_batches(data, recipe, epoch, seed),
        loss_of,
        steps_per_epoch=steps_per_epoch(data, recipe),
        identity=repr((sorted(asdict(recipe).items()), seed, len(data))),
        checkpoint=checkpoint,
        report=report,
    )
    return network


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


def export_oracle(network: OracleNetwork, temperature: float, size: int) -> bytes:
    """ONNX bytes: `image`, float32 (N, 3, size, size), to `joint`, calibrated probabilities (N, 1 + C·S)."""

    class Calibrated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Tensor) -> Tensor:
            return (self.network(image) / temperature).softmax(1)

    from training.export import export_onnx

    return export_onnx(Calibrated().cpu().eval(), size, input_name="image", output_name="joint")
