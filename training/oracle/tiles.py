"""The oracle of a large input: the bundled one, trained on for what it sees of a frame.

Its network would take as long for a frame of 224 pixels as a small classifier does. What tells corruptions apart lies
in the finest structure and needs no whole frame: so it sees four tiles, one of each quarter, at the frame's own
resolution, set together to one small picture. The tiles lie in the middle of the quarters; in training, anywhere in
them. Small inputs are seen whole. The bundled oracle's weights are where the training begins: it knows the same
corruptions, and its pooled statistics fit any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import ORACLE
from rws.errors import InputError
from rws.training.corruptions import CORRUPTIONS, corrupt_mixed, seeds_for
from rws.training.jobs.seeds import derive_seed
from rws.training.models.export import export_onnx, stored_as_half
from rws.training.models.fit import DivergedError, learning_rate_at
from rws.training.oracle.fit import (
    _SHARPNESS,
    OracleNetwork,
    OracleRecipe,
    draw_severities,
    draw_types,
    fit_clean_weight,
    fit_temperature,
    joint_target,
    training_prior,
    weigh_clean,
)

_CHUNK = 200


@dataclass(frozen=True)
class ViewRecipe:
    """How to train the oracle of an adopted model; AdamW under a warm-up and a cosine to zero.

    Args:
        tile: side of each of the four tiles, pixels.
        frames: corrupted frames that are made; each picture is used again and again, each time corrupted anew.
        looks: views that are taken of each, with their tiles in other places; of small inputs there is only one.
        epochs: passes over all views.
        batch_size, learning_rate, warmup: as in `FitRecipe`.
        clean_recall: percent of clean held-out views that must be named so.
        draws: of the states and severities; its schedule is not used.
    """

    tile: int = 48
    frames: int = 10_000
    looks: int = 2
    epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: float = 0.2
    clean_recall: float = 98.0
    draws: OracleRecipe = field(default_factory=OracleRecipe)

    precision = "fp32"

    def __post_init__(self) -> None:
        if self.tile < 16 or self.frames < self.batch_size or self.epochs < 1 or self.looks < 1:
            raise InputError("oracle: need tile >= 16, frames >= batch_size, epochs >= 1 and looks >= 1")
        if not 0 <= self.clean_recall < 100:
            raise InputError(f"oracle: clean_recall is {self.clean_recall}, expected 0 up to below 100, percent")

    def quick(self) -> ViewRecipe:
        """For a first look."""
        return replace(self, frames=max(self.batch_size, self.frames // 4), epochs=2)


def views(pixels: Tensor, tile: int, generator: torch.Generator | None = None) -> Tensor:
    """Four tiles of each picture, one of each quarter, set together: (N, 3, H, H) to (N, 3, 2·tile, 2·tile).

    Args:
        pixels: any dtype; where H is at most 2·tile they are given back whole.
        tile: pixels.
        generator: draws where the tiles lie, anew for each picture; None: in the middle of the quarters.
    """
    side = pixels.shape[-1]
    if side <= 2 * tile:
        return pixels
    half = side // 2
    room = half - tile
    if generator is None:
        start = room // 2
        spans = [slice(start, start + tile), slice(half + start, half + start + tile)]
        rows = [torch.cat([pixels[:, :, row, column] for column in spans], 3) for row in spans]
        return torch.cat(rows, 2)
    places = torch.randint(0, room + 1, (len(pixels), 2, 2, 2), generator=generator).tolist()
    made = torch.empty(*pixels.shape[:2], 2 * tile, 2 * tile, dtype=pixels.dtype)
    for image, out, corners in zip(pixels, made, places, strict=True):
        for row in range(2):
            for column in range(2):
                top, left = (half * at + offset for at, offset in zip((row, column), corners[row][column], strict=True))
                out[:, row * tile : (row + 1) * tile, column * tile : (column + 1) * tile] = image[
                    :, top : top + tile, left : left + tile
                ]
    return made


def bundled_network() -> OracleNetwork:
    """The default bundle's oracle as a network that can be trained on.

    Its file has BatchNorm folded into the convolutions: the layers come back with statistics that change nothing.
    """
    model = onnx.load_model_from_string(Bundle.load().read(ORACLE))
    arrays = {
        tensor.name.removesuffix(".half"): torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float32).copy())
        for tensor in model.graph.initializer
        if tensor.data_type != onnx.TensorProto.INT64
    }
    widths = tuple(len(arrays[f"network.stages.{place}.0.weight"]) for place in range(_stages(arrays)))
    filters = len(arrays["network.front.bias"])
    network = OracleNetwork(filters, widths).eval()
    front = next(array for array in arrays.values() if tuple(array.shape) == (filters, 3, 3, 3))
    with torch.no_grad():
        network.front.weight.copy_(front / _SHARPNESS)
        network.front.bias.copy_(arrays["network.front.bias"])
        for place, stage in enumerate(network.stages):
            convolution, batchnorm, _ = stage.children()
            convolution.weight.copy_(arrays[f"network.stages.{place}.0.weight"])
            batchnorm.bias.copy_(arrays[f"network.stages.{place}.0.weight_bias"])
            batchnorm.running_var.fill_(1 - batchnorm.eps)
        for name in ("scale.weight", "scale.bias", "scale.running_mean", "scale.running_var"):
            network.state_dict()[name].copy_(arrays[f"network.{name}"])
        network.head.weight.copy_(arrays["network.head.weight"])
        network.head.bias.copy_(arrays["network.head.bias"])
    return network


def _stages(arrays: dict[str, Tensor]) -> int:
    return sum(name.startswith("network.stages.") and name.endswith(".0.weight") for name in arrays)


@torch.no_grad()
def _measure_batchnorm(network: OracleNetwork, x: Tensor) -> None:
    """Give the BatchNorm of the stages the statistics of a batch, with a scale and shift that undo them."""
    for stage in network.stages:
        convolution, batchnorm, _ = stage.children()
        seen: list[Tensor] = []
        hook = convolution.register_forward_hook(lambda module, given, found, seen=seen: seen.append(found))
        network(x)
        hook.remove()
        mean, variance = seen[0].mean((0, 2, 3)), seen[0].var((0, 2, 3))
        batchnorm.bias += mean
        batchnorm.weight.copy_((variance + batchnorm.eps).sqrt())
        batchnorm.running_mean.copy_(mean)
        batchnorm.running_var.copy_(variance)


@dataclass(frozen=True)
class Views:
    """uint8 views (N, 3, S, S), float32 targets (N, 1 + C·S) and int64 types (N,), −1 = clean."""

    x: Tensor
    target: Tensor
    types: Tensor


def corrupted_views(
    pictures: Tensor,
    count: int,
    recipe: ViewRecipe,
    seed: int,
    *,
    looks: int = 1,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Views:
    """Corrupted frames as the oracle sees them.

    Args:
        pictures: uint8 (N, 3, H, H), RGB, clean.
        count: frames; types and severities are drawn.
        recipe: the size of the tiles, and the odds.
        seed: of everything.
        looks: views of each frame; within a block of frames, all first views come before all second ones.
        report: called with {frames, of} now and then.
    """
    generator = torch.Generator().manual_seed(seed)
    types = draw_types(count, recipe.draws, len(CORRUPTIONS), generator)
    severities = draw_severities(types, recipe.draws, generator)
    which = torch.cat([torch.randperm(len(pictures), generator=generator) for _ in range(-(-count // len(pictures)))])
    mirrored = torch.rand(count, generator=generator) < 0.5
    made, places = [], []
    for part in torch.arange(count).split(_CHUNK):
        pixels = pictures[which[part]]
        pixels = torch.where(mirrored[part][:, None, None, None], pixels.flip(3), pixels)
        pixels = corrupt_mixed(pixels, types[part], severities[part], seeds_for(seed, part))
        made += [views(pixels, recipe.tile, generator) for _ in range(looks)]
        places += [part] * looks
        if report is not None and int(part[-1]) % (10 * _CHUNK) == 10 * _CHUNK - 1:
            report({"frames": int(part[-1]) + 1, "of": count})
    place = torch.cat(places)
    return Views(torch.cat(made), joint_target(types, severities)[place], types[place])


def _batches(data: Views, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(data.x), generator=generator)
    for start in range(0, len(order) - batch + 1, batch):
        index = order[start : start + batch]
        yield data.x[index].float().div_(255).contiguous(memory_format=torch.channels_last), data.target[index]


@torch.no_grad()
def _logits(network: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([network(part.float().div(255)) for part in x.split(_CHUNK)])


def fit_view_oracle(
    pictures: Tensor,
    held_out: Tensor,
    recipe: ViewRecipe,
    *,
    seed: int = 0,
    report: Callable[[dict[str, Any]], None],
) -> tuple[bytes, dict[str, Any]]:
    """Train the bundled oracle on for pictures of another size, and calibrate it with held-out ones.

    Args:
        pictures: uint8 (N, 3, H, H), RGB, clean; trained on.
        held_out: uint8 (M, 3, H, H): its temperature and the weight of clean come from them.
        recipe: how.
        seed: of everything.
        report: called with {epoch, …} and while frames are made.

    Returns:
        ONNX bytes (`image`, float32 (N, 3, H, H), to `joint`), and what was measured: `type_accuracy` and
        `clean_recall`, percent, on held-out pictures; `prior`, the training's, for the temporal filter.
    """
    torch.manual_seed(seed)
    size = pictures.shape[-1]
    looks = recipe.looks if size > 2 * recipe.tile else 1
    data = corrupted_views(
        pictures, recipe.frames, recipe, derive_seed(seed, "oracle training"), looks=looks, report=report
    )
    network = bundled_network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _measure_batchnorm(network, data.x[:_CHUNK].float().div(255))
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(seed)
    batch = min(recipe.batch_size, len(data.x))
    steps, step = recipe.epochs * (len(data.x) // batch), 0
    for epoch in range(recipe.epochs):
        losses = []
        for x, target in _batches(data, batch, generator):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate_at(recipe, step, steps)
            loss = F.cross_entropy(network(x), target)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            step += 1
        if not math.isfinite(sum(losses)):
            raise DivergedError(f"oracle, epoch {epoch + 1}: loss is not finite; lower its learning rate")
        report({"epoch": epoch + 1, "loss": round(float(np.mean(losses)), 4)})
    network.eval()
    count = max(400, min(2000, 12 * len(held_out)))
    judged = corrupted_views(held_out, count, recipe, derive_seed(seed, "oracle calibration"))
    logits = _logits(network, judged.x)
    temperature = fit_temperature(logits, judged.target)
    fixed, moved = views(held_out, recipe.tile), [views(held_out, recipe.tile, generator) for _ in range(4)]
    clean = (_logits(network, torch.cat([fixed, *moved])) / temperature).softmax(1)
    weight = fit_clean_weight(clean, recipe.clean_recall)
    joint = weigh_clean((logits / temperature).softmax(1), weight)
    per_type = torch.cat([joint[:, :1], joint[:, 1:].reshape(len(joint), len(CORRUPTIONS), -1).sum(2)], dim=1)
    right = per_type.argmax(1) == judged.types + 1
    scores = {
        "temperature": round(temperature, 4),
        "clean_weight": round(weight, 3),
        "type_accuracy": round(100 * right.float().mean().item(), 2),
        "corrupted_called_clean": round(100 * (per_type.argmax(1) == 0)[judged.types >= 0].float().mean().item(), 2),
    }
    report(dict(scores))
    prior = weigh_clean(training_prior(recipe.draws), weight)
    scores["prior"] = [round(share, 7) for share in prior.tolist()]
    return _export(network, temperature, weight, size, recipe.tile), scores


def _export(network: OracleNetwork, temperature: float, clean_weight: float, size: int, tile: int) -> bytes:
    """ONNX bytes; what is constant goes into the last layer, so that a frame costs nothing more."""

    class Calibrated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            with torch.no_grad():
                network.head.weight /= temperature
                network.head.bias /= temperature
                network.head.bias[0] += math.log(clean_weight)

        def forward(self, image: Tensor) -> Tensor:
            return self.network(views(image, tile)).softmax(1)

    return stored_as_half(export_onnx(Calibrated().eval(), size, input_name="image", output_name="joint"))
