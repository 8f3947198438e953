"""Fit a classifier on clean or corrupted images; stops anywhere and resumes to the same bytes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as schema
from torch import Tensor, nn
from torch.nn import functional as F

from rws.edge.common.schema import STRICT
from rws.edge.preprocess import InputSpec
from rws.training.corruptions import CORRUPTIONS, corrupt, corrupt_mixed, seeds_for
from rws.training.data.images import Images
from rws.training.jobs.seeds import derive_seed
from rws.training.models.loop import BatchSize, Count, Plan, Precision, Rate, Report, Share, Warmup, identity_of, train

M = TypeVar("M", bound=nn.Module)


@schema(frozen=True, config=STRICT)
class FitRecipe:
    """How to fit: SGD under a warm-up and a cosine to zero; rates are for the given batch size.

    `learning_rate` is the peak, `momentum` Nesterov's, `warmup` as in `rws.training.models.loop.Plan`; `crop` is the
    border, reflected, pixels, that the random crop moves in.
    """

    epochs: Count = 50
    batch_size: BatchSize = 128
    learning_rate: Rate = 0.1
    warmup: Warmup = 0.2
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    momentum: Share = 0.9
    label_smoothing: Share = 0.0
    crop: Annotated[int, Field(ge=0)] = 4
    precision: Precision = "bf16"


@dataclass(frozen=True)
class Corrupted:
    """What training images are corrupted with.

    `name`: a corruption; `all` draws one for every image; None leaves images clean. `severity`: or ends of a range.
    `share`: the part of the images that `all` corrupts.
    """

    name: str | None = None
    severity: float | tuple[float, float] = 5.0
    share: float = 1.0

    def __call__(self, pixels: Tensor, seeds: Tensor) -> Tensor:
        """Corrupt uint8 (N, 3, H, W); the draw depends only on the seeds, int64 (N,)."""
        if self.name is None:
            return pixels
        low, high = self.severity if isinstance(self.severity, tuple) else (self.severity, self.severity)
        # The seeds are hashes already: their upper bits serve as a uniform number.
        severity = low + (high - low) * (((seeds >> 16) % 65536).float() / 65536)
        if self.name == "all":
            chosen = (seeds >> 36) % 65536 < round(65536 * self.share)
            return corrupt_mixed(pixels, torch.where(chosen, seeds % len(CORRUPTIONS), -1), severity, seeds)
        return corrupt(pixels, self.name, severity, seeds)


def to_input(pixels: Tensor, spec: InputSpec | None = None) -> Tensor:
    """Convert uint8 (N, 3, H, W), RGB, to what a model takes, channels last in memory; None: float32 0…1, RGB, NCHW."""
    if spec is None:
        return pixels.float().div_(255).contiguous(memory_format=torch.channels_last)
    x = _COLOURS[spec.colour](pixels)
    if spec.dtype != "uint8":
        x = (x.float() if spec.high == 255 else x.float().div_(255)).to(getattr(torch, spec.dtype))
    # What lies channels last is contiguous as NHWC.
    x = x.contiguous(memory_format=torch.channels_last)
    return x if spec.layout == "NCHW" else x.permute(0, 2, 3, 1)


_GREY = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # as OpenCV has it
_COLOURS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "RGB": lambda pixels: pixels,
    "BGR": lambda pixels: pixels.flip(1),
    "GREY": lambda pixels: (pixels * _GREY).sum(1, keepdim=True).round().to(torch.uint8),
    "RGBA": lambda pixels: torch.cat([pixels, torch.full_like(pixels[:, :1], 255)], 1),
}


def channels_last(model: M, device: torch.device | str = "cpu") -> M:
    """Move a model to a device, its weights channels last in memory, as `to_input` lays out images."""
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has no such stub
    return model


def crop_and_flip(pixels: Tensor, border: int, generator: torch.Generator) -> Tensor:
    """Crop at random out of a reflected border, and flip horizontally at random; uint8 (N, 3, H, W) in and out."""
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


def full_batches(order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Split an order of images, int64 (N,), into full batches; few images make one batch."""
    size = min(batch_size, len(order))
    return torch.split(order[: len(order) // size * size], size)


def batches(data: Images, batch_size: int, crop: int, corrupted: Corrupted, epoch: int, seed: int) -> Iterator[Batch]:
    """Yield one epoch of full batches, the same ones for the same seed and epoch."""
    drawn = derive_seed(seed, "training", draw=epoch)
    generator = torch.Generator().manual_seed(drawn)
    order = torch.randperm(len(data), generator=generator).to(data.labels.device)
    for index in full_batches(order, batch_size):
        # Corruption comes last: on the device, too, what corrupts a frame comes after its content.
        pixels = crop_and_flip(data.pixels[index], crop, generator)
        yield Batch(pixels, corrupted(pixels, seeds_for(drawn, index)), data.labels[index])


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
    """Fit `model` in place with cross-entropy on labels, on the device where `data` lies; raises as `train` does.

    `model`: float32 (N, 3, H, W) RGB 0…1 to logits; `corrupted`: what corrupts each batch; None: nothing.
    `seed`: of order, augmentation and corruption; `checkpoint`, `report`: see `train`.
    """
    corrupted = corrupted or Corrupted()
    device = data.pixels.device
    channels_last(model, device)
    rate, momentum, decay = recipe.learning_rate, recipe.momentum, recipe.weight_decay
    optimiser = torch.optim.SGD(model.parameters(), rate, momentum, weight_decay=decay, nesterov=momentum > 0)

    def loss_of(batch: Batch) -> Tensor:
        with autocast(device, recipe.precision):
            logits = model(to_input(batch.corrupted))
        return F.cross_entropy(logits.float(), batch.labels, label_smoothing=recipe.label_smoothing)

    identity = identity_of(recipe, corrupted, seed, len(data))
    plan = Plan.over(len(data), recipe.epochs, recipe.batch_size, recipe.warmup, identity)
    epochs = partial(batches, data, recipe.batch_size, recipe.crop, corrupted, seed=seed)
    return train(model, optimiser, epochs, loss_of, plan, checkpoint=checkpoint, report=report)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return an autocast to bfloat16 if `precision` is `bf16`, else one that does nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@torch.inference_mode()
def predict(model: nn.Module, pixels: Tensor, *, batch_size: int = 500) -> Tensor:
    """Return the logits, float32 (N, classes), of uint8 images (N, 3, H, W)."""
    model.eval()
    return torch.cat([model(to_input(part)).float() for part in torch.split(pixels, batch_size)])


def accuracy(model: nn.Module, data: Images) -> float:
    """Return the share of the images that are classified right, in percent."""
    return 100 * (predict(model, data.pixels).argmax(1) == data.labels).double().mean().item()
