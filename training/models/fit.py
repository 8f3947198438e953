"""Fit a classifier on clean or corrupted images; stops anywhere and resumes to the same bytes.

Recipe: SGD with Nesterov momentum under a one-cycle or cosine rate, crop and flip augmentation, label smoothing.
Corruption comes last, after crop and flip: on the device, too, what corrupts a frame comes after its content.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rws.edge.common.files import atomic_path
from rws.errors import InputError
from rws.training.corruptions import CORRUPTIONS, corrupt, corrupt_mixed, seeds_for
from rws.training.data.images import Images
from rws.training.jobs.seeds import derive_seed
from rws.training.models.allocator import keep_freed_memory

Report = Callable[[dict[str, Any]], None]
T = TypeVar("T")


class DivergedError(InputError):
    """The loss of a training is no longer finite."""


@dataclass(frozen=True)
class FitRecipe:
    """How to fit; rates are for the given batch size.

    Args:
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate: the peak.
        warmup: share of the steps over which the rate rises linearly; then it falls as a cosine to zero.
        weight_decay: L2 penalty of SGD.
        momentum: Nesterov momentum.
        label_smoothing: mass spread over the other classes.
        crop: pixels of reflected border that the random crop moves in.
        precision: `bf16` (autocast) or `fp32`.
    """

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 0.1
    warmup: float = 0.2
    weight_decay: float = 5e-4
    momentum: float = 0.9
    label_smoothing: float = 0.0
    crop: int = 4
    precision: str = "bf16"

    def __post_init__(self) -> None:
        check_schedule(self)


@dataclass(frozen=True)
class Corrupted:
    """What training images are corrupted with.

    Args:
        name: a corruption; `all` draws one of the 19 for every image; None leaves images clean.
        severity: fixed severity, or the two ends of a uniform range.
    """

    name: str | None = None
    severity: float | tuple[float, float] = 5.0

    def __call__(self, pixels: Tensor, seeds: Tensor) -> Tensor:
        """Corrupt uint8 (N, 3, H, W); the draw depends only on the seeds, int64 (N,)."""
        if self.name is None:
            return pixels
        severity = self._draw_severity(seeds)
        if self.name == "all":
            types = seeds % len(CORRUPTIONS)
            return corrupt_mixed(pixels, types, severity, seeds)
        return corrupt(pixels, self.name, severity, seeds)

    def _draw_severity(self, seeds: Tensor) -> Tensor:
        if isinstance(self.severity, (int, float)):
            return torch.full(seeds.shape, float(self.severity), device=seeds.device)
        low, high = self.severity
        # The seeds are hashes already: their upper bits serve as a uniform number.
        uniform = ((seeds >> 16) % 65536).float() / 65536
        return low + (high - low) * uniform


def to_input(pixels: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to the model's input, float32 0…1, channels last in memory."""
    return pixels.float().div_(255).contiguous(memory_format=torch.channels_last)


def crop_and_flip(pixels: Tensor, border: int, generator: torch.Generator) -> Tensor:
    """Random crop out of a reflected border, and horizontal flip; uint8 (N, 3, H, W) in and out."""
    count, _, height, width = pixels.shape
    offsets = torch.randint(0, 2 * border + 1, (count, 2), generator=generator).to(pixels.device)
    flipped = (torch.rand(count, generator=generator) < 0.5).to(pixels.device)
    padded = F.pad(pixels.float(), (border,) * 4, mode="reflect").to(torch.uint8)
    rows = offsets[:, :1] + torch.arange(height, device=pixels.device)
    columns = torch.arange(width, device=pixels.device)
    columns = offsets[:, 1:] + torch.where(flipped[:, None], columns.flip(0), columns)
    batch = torch.arange(count, device=pixels.device)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()


class Batch(NamedTuple):
    """uint8 (N, 3, H, W) clean and corrupted pixels, int64 (N,) labels."""

    clean: Tensor
    corrupted: Tensor
    labels: Tensor


def batches(data: Images, batch_size: int, crop: int, corrupted: Corrupted, epoch: int, seed: int) -> Iterator[Batch]:
    """One epoch of full batches, the same ones for the same seed and epoch; few images make one batch."""
    batch_size = min(batch_size, len(data))
    drawn = derive_seed(seed, "training", draw=epoch)
    generator = torch.Generator().manual_seed(drawn)
    order = torch.randperm(len(data), generator=generator).to(data.labels.device)
    for start in range(0, len(data) - batch_size + 1, batch_size):
        index = order[start : start + batch_size]
        pixels = crop_and_flip(data.pixels[index], crop, generator)
        seeds = seeds_for(drawn, index)
        yield Batch(pixels, corrupted(pixels, seeds), data.labels[index])


def steps_per_epoch(data: Images, recipe: Schedule) -> int:
    """Full batches in an epoch, at least one."""
    return max(1, len(data) // recipe.batch_size)


def learning_rate_at(recipe: Schedule, step: int, steps: int) -> float:
    """Linear warm-up to the peak, then a cosine to zero."""
    progress = (step + 1) / steps
    if progress < recipe.warmup:
        return recipe.learning_rate * progress / recipe.warmup
    falling = (progress - recipe.warmup) / max(1e-9, 1 - recipe.warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * falling))


def fit(
    model: nn.Module,
    data: Images,
    recipe: FitRecipe,
    *,
    corrupted: Corrupted | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    report: Report | None = None,
) -> nn.Module:
    """Fit `model` in place with cross-entropy on labels, on the device where `data` lies.

    Args:
        model: takes float32 (N, 3, H, W) RGB 0…1, gives logits.
        data: training images.
        recipe: how to fit.
        corrupted: what corrupts each batch; None trains on clean images.
        seed: of order, augmentation and corruption.
        checkpoint: file written after every epoch; where it exists, the run goes on from it.
        report: called after each epoch with {epoch, loss, learning_rate}.

    Raises:
        InputError: if the loss is no longer finite, or the checkpoint belongs to another recipe.
    """
    corrupted = corrupted or Corrupted()
    device = data.pixels.device
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )

    def loss_of(batch: Batch) -> Tensor:
        with autocast(device, recipe.precision):
            logits = model(to_input(batch.corrupted))
        return F.cross_entropy(logits.float(), batch.labels, label_smoothing=recipe.label_smoothing)

    return train(
        model,
        optimiser,
        recipe,
        lambda epoch: batches(data, recipe.batch_size, recipe.crop, corrupted, epoch, seed),
        loss_of,
        steps_per_epoch=steps_per_epoch(data, recipe),
        identity=repr((sorted(asdict(recipe).items()), corrupted, seed, len(data))),
        checkpoint=checkpoint,
        report=report,
    )


class Schedule(Protocol):
    """What every recipe of a training has."""

    @property
    def epochs(self) -> int:
        """Passes over the data."""

    @property
    def learning_rate(self) -> float:
        """The peak rate."""

    @property
    def warmup(self) -> float:
        """Share of the steps over which the rate rises."""

    @property
    def batch_size(self) -> int:
        """Images a step."""

    @property
    def precision(self) -> str:
        """`bf16` or `fp32`."""


def check_schedule(recipe: Schedule) -> None:
    """Refuse a recipe that cannot be followed.

    Raises:
        InputError: if a number is out of range or the precision unknown.
    """
    if recipe.epochs < 1 or recipe.batch_size < 2 or recipe.learning_rate <= 0 or not 0 <= recipe.warmup < 1:
        raise InputError(
            f"recipe: need epochs >= 1, batch_size >= 2, learning_rate > 0, 0 <= warmup < 1; got {recipe.epochs}, "
            f"{recipe.batch_size}, {recipe.learning_rate}, {recipe.warmup}"
        )
    if recipe.precision not in ("bf16", "fp32"):
        raise InputError(f"precision {recipe.precision!r} is not one of bf16, fp32")


def train(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    recipe: Schedule,
    epoch_batches: Callable[[int], Iterable[T]],
    loss_of: Callable[[T], Tensor],
    *,
    steps_per_epoch: int,
    identity: str,
    checkpoint: Path | None = None,
    report: Report | None = None,
) -> nn.Module:
    """The one training loop of the project: every epoch ends in a checkpoint, from which a later call goes on.

    Args:
        model: trained in place; its state dict is what the checkpoint holds.
        optimiser: over the parameters to train.
        recipe: epochs and learning-rate schedule.
        epoch_batches: the batches of an epoch, the same ones whenever it is asked.
        loss_of: the loss of a batch.
        steps_per_epoch: number of batches.
        identity: what the run depends on; a checkpoint with another one is refused.
        checkpoint: file written after every epoch.
        report: called after each epoch with {epoch, loss}.

    Raises:
        DivergedError: if the loss is no longer finite.
        InputError: if the checkpoint belongs to another run.
    """
    keep_freed_memory()
    done = _resume(checkpoint, identity, model, optimiser)
    steps = recipe.epochs * steps_per_epoch
    for epoch in range(done, recipe.epochs):
        model.train()
        # Dropout draws from the global generator: seeded here, a run that was stopped goes on with the same draws.
        torch.manual_seed(zlib.crc32(f"{identity} {epoch}".encode()))
        losses: list[Tensor] = []
        for step, batch in enumerate(epoch_batches(epoch), start=epoch * steps_per_epoch):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate_at(recipe, step, steps)
            loss = loss_of(batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        total = torch.stack(losses).mean().item()
        if not math.isfinite(total):
            raise DivergedError(f"epoch {epoch + 1}: loss is {total}; lower the learning rate or lengthen the warm-up")
        if checkpoint is not None:
            weights = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            with atomic_path(checkpoint) as temporary:
                torch.save({"identity": identity, "epoch": epoch + 1, **weights}, temporary)
        if report is not None:
            report({"epoch": epoch + 1, "loss": round(total, 4)})
    return model.eval()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bfloat16 autocast where `precision` asks for it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _resume(checkpoint: Path | None, identity: str, model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    if checkpoint is None or not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    if state["identity"] != identity:
        raise InputError(f"{checkpoint} was made with another recipe, seed or data; remove it to start anew")
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["epoch"])


@torch.inference_mode()
def predict(model: nn.Module, pixels: Tensor, *, batch_size: int = 500, precision: str = "fp32") -> Tensor:
    """Logits, float32 (N, classes), of uint8 images (N, 3, H, W)."""
    model.eval()
    with autocast(pixels.device, precision):
        return torch.cat([model(to_input(part)).float() for part in pixels.split(batch_size)])


def accuracy(model: nn.Module, data: Images, *, precision: str = "fp32") -> float:
    """Share of the images that are classified right, in percent."""
    return 100 * (predict(model, data.pixels, precision=precision).argmax(1) == data.labels).double().mean().item()
