"""The oracle of a large input: the bundled one, trained on for the four tiles that it sees of a frame.

For a whole frame of 224 pixels its network would take as long as a small classifier does; what tells corruptions apart
lies in the finest structure. The bundled oracle knows the same corruptions, and its pooled statistics fit any size.
"""

from collections.abc import Sequence
from dataclasses import field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import ORACLE
from rws.edge.common.schema import STRICT
from rws.training.corruptions import CORRUPTIONS, corrupt_mixed, seeds_for
from rws.training.jobs.seeds import derive_seed
from rws.training.models.fit import channels_last, full_batches, to_input
from rws.training.models.loop import BatchSize, Count, Plan, Rate, Report, Warmup, identity_of, train
from rws.training.oracle.calibration import (
    Calibration,
    OracleScores,
    calibrate_oracle,
    export_oracle,
    named_types,
    percent,
    weigh_clean,
)
from rws.training.oracle.network import SHARPNESS, OracleNetwork, oracle_logits
from rws.training.oracle.sampling import OracleRecipe, draw_severities, draw_types, joint_target, training_prior

_CHUNK = 200


@dataclass(frozen=True, config=STRICT)
class ViewRecipe:
    """How to train the oracle of an adopted model; AdamW under a warm-up and a cosine to zero.

    Args:
        tile: side of each of the four tiles, pixels.
        frames: corrupted frames that are made; each image is used many times, each time corrupted differently.
        looks: views that are taken of each, with their tiles in other places; of small inputs there is only one.
        draws: of the states and severities; its schedule is not used.
    """

    tile: Annotated[int, Field(ge=16)] = 48
    frames: Annotated[int, Field(ge=2)] = 10_000
    looks: Count = 2
    epochs: Count = 4
    batch_size: BatchSize = 64
    learning_rate: Rate = 2e-3
    warmup: Warmup = 0.2
    clean_recall: Annotated[float, Field(ge=0, lt=100)] = 98.0
    draws: OracleRecipe = field(default_factory=OracleRecipe)

    def quick(self) -> "ViewRecipe":
        """Return the recipe of a first look."""
        return replace(self, frames=max(self.batch_size, self.frames // 4), epochs=2)


def views(pixels: Tensor, tile: int, generator: torch.Generator | None = None) -> Tensor:
    """Return four tiles of each image, one of each quarter, set together: (N, 3, H, W) to (N, 3, 2·tile, 2·tile).

    Images of any dtype with a side of at most 2·tile pixels are returned whole. `generator` draws where the tiles of
    each image lie; None: in the middle of the quarters.
    """
    if not _is_tiled(pixels.shape[2:], tile):
        return pixels
    half = [side // 2 for side in pixels.shape[2:]]
    if generator is None:
        middle = [(side - tile) // 2 for side in half]
        rows, columns = (
            [slice(start, start + tile) for start in (m, m + h)] for m, h in zip(middle, half, strict=True)
        )
        return torch.cat([torch.cat([pixels[:, :, row, column] for column in columns], 3) for row in rows], 2)
    room = torch.tensor(half) - tile + 1
    # Drawn for the longer side; of the shorter one the remainder is about as random.
    drawn = torch.randint(0, int(room.max()), (len(pixels), 2, 2, 2), generator=generator)
    places = (drawn % room).tolist()
    made = torch.empty(*pixels.shape[:2], 2 * tile, 2 * tile, dtype=pixels.dtype)
    for image, out, corners in zip(pixels, made, places, strict=True):
        for row, column in product(range(2), repeat=2):
            down, right = corners[row][column]
            found = image[:, half[0] * row + down :, half[1] * column + right :][:, :tile, :tile]
            out[:, row * tile :, column * tile :][:, :tile, :tile] = found
    return made


def bundled_network() -> OracleNetwork:
    """Return the default bundle's oracle to train further; its folded BatchNorms come back and change nothing."""
    model = onnx.load_model_from_string(Bundle.load().read(ORACLE))
    arrays = {
        tensor.name.removesuffix(".half"): torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float32).copy())
        for tensor in model.graph.initializer
        if tensor.data_type != onnx.TensorProto.INT64
    }
    stages = range(sum(name.startswith("network.stages.") and name.endswith(".0.weight") for name in arrays))
    widths = tuple(len(arrays[f"network.stages.{place}.0.weight"]) for place in stages)
    filters = len(arrays["network.front.bias"])
    network = OracleNetwork(filters, widths).eval()
    state = {name: arrays.get(f"network.{name}", tensor) for name, tensor in network.state_dict().items()}
    front = next(array for array in arrays.values() if tuple(array.shape) == (filters, 3, 3, 3))
    state["front.weight"] = front / SHARPNESS
    for place in stages:
        state[f"stages.{place}.1.bias"] = arrays[f"network.stages.{place}.0.weight_bias"]
        state[f"stages.{place}.1.running_var"] = torch.full((widths[place],), 1 - network.scale.eps)
    network.load_state_dict(state)
    return network


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
        assert isinstance(batchnorm, nn.BatchNorm2d)
        undone = {"weight": (variance + batchnorm.eps).sqrt(), "bias": batchnorm.bias + mean}
        batchnorm.load_state_dict(undone | {"running_mean": mean, "running_var": variance}, strict=False)


class Views(NamedTuple):
    """uint8 views (N, 3, S, S), float32 targets (N, 1 + C·S) and int64 types (N,), −1 = clean."""

    x: Tensor
    target: Tensor
    types: Tensor


def corrupted_views(
    images: Tensor, count: int, recipe: ViewRecipe, seed: int, *, looks: int = 1, report: Report | None = None
) -> Views:
    """Make `count` corrupted frames as the oracle sees them; `report` is called with {frames, frames_left} per part.

    `images`: uint8 (N, 3, H, W), RGB, clean; `looks`: views of each frame; in a block, all first ones come first.
    """
    generator = torch.Generator().manual_seed(seed)
    types = draw_types(count, recipe.draws, len(CORRUPTIONS), generator)
    severities = draw_severities(types, recipe.draws, generator)
    which = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(-(-count // len(images)))])
    mirrored = torch.rand(count, generator=generator) < 0.5
    made, places = [], []
    for part in torch.split(torch.arange(count), _CHUNK):
        pixels = images[which[part]]
        pixels = torch.where(mirrored[part][:, None, None, None], pixels.flip(3), pixels)
        pixels = corrupt_mixed(pixels, types[part], severities[part], seeds_for(seed, part))
        made += [views(pixels, recipe.tile, generator) for _ in range(looks)]
        places += [part] * looks
        if report is not None:
            report({"frames": len(part), "frames_left": count - 1 - int(part[-1])})
    place = torch.cat(places)
    return Views(torch.cat(made), joint_target(types, severities)[place], types[place])


def count_steps(recipe: ViewRecipe, size: Sequence[int]) -> int:
    """Return how many steps `fit_view_oracle` takes with images of that size, height and width."""
    views_made = recipe.frames * _looks(recipe, size)
    return Plan.over(views_made, recipe.epochs, min(recipe.batch_size, views_made), recipe.warmup, "").steps


def _looks(recipe: ViewRecipe, size: Sequence[int]) -> int:
    return recipe.looks if _is_tiled(size, recipe.tile) else 1


def _is_tiled(size: Sequence[int], tile: int) -> bool:
    return min(size) > 2 * tile


def probe_step(network: OracleNetwork, recipe: ViewRecipe, size: Sequence[int]) -> None:
    """Take a step like those of `fit_view_oracle` with images of that size, to time it."""
    x = to_input(views(torch.zeros(recipe.batch_size, 3, *size, dtype=torch.uint8), recipe.tile))
    torch.autograd.backward([network.train()(x).square().mean()])


def fit_view_oracle(
    images: Tensor,
    held_out: Tensor,
    recipe: ViewRecipe,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    report: Report,
) -> tuple[bytes, OracleScores]:
    """Fine-tune the bundled oracle for images of another size; calibrate and score it with held-out ones.

    Both are uint8 (N, 3, H, W), RGB, clean. The ONNX bytes take `image`, float32 (N, 3, H, W), to `joint`.
    `checkpoint`, `report`: as in `train`; also called while frames are made.
    """
    torch.manual_seed(seed)
    size = (images.shape[2], images.shape[3])
    drawn = derive_seed(seed, "oracle training")
    data = corrupted_views(images, recipe.frames, recipe, drawn, looks=_looks(recipe, size), report=report)
    network = channels_last(bundled_network())
    _measure_batchnorm(network, data.x[:_CHUNK].float().div(255))
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(data.x), generator=generator) for _ in range(recipe.epochs)]
    batch = min(recipe.batch_size, len(data.x))
    train(
        network,
        torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=1e-2),
        lambda epoch: ((to_input(data.x[i]), data.target[i]) for i in full_batches(orders[epoch], batch)),
        lambda part: F.cross_entropy(network(part[0]), part[1]),
        Plan.over(len(data.x), recipe.epochs, batch, recipe.warmup, identity_of(recipe, seed, data.x.shape)),
        checkpoint=checkpoint,
        report=report,
    )
    calibration, scores = _calibrated(network, held_out, recipe, seed, generator)
    report(dict(scores))
    prior = weigh_clean(training_prior(recipe.draws), calibration.clean_weight)
    scores["prior"] = [round(share, 7) for share in prior.tolist()]
    return export_oracle(network, calibration, size, partial(views, tile=recipe.tile)), scores


def _calibrated(
    network: OracleNetwork, held_out: Tensor, recipe: ViewRecipe, seed: int, generator: torch.Generator
) -> tuple[Calibration, OracleScores]:
    count = max(400, min(2000, 12 * len(held_out)))
    corrupted = corrupted_views(held_out, count, recipe, derive_seed(seed, "oracle calibration"))
    logits = oracle_logits(network, corrupted.x, _CHUNK)
    clean = [views(held_out, recipe.tile), *(views(held_out, recipe.tile, generator) for _ in range(4))]
    clean_logits = oracle_logits(network, torch.cat(clean), _CHUNK)
    found = calibrate_oracle(logits, corrupted.target, clean_logits, recipe.clean_recall)
    named = named_types(found.joint(logits))
    return found, OracleScores(
        temperature=round(found.temperature, 4),
        clean_weight=round(found.clean_weight, 3),
        type_accuracy=percent(named == corrupted.types),
        corrupted_called_clean=percent(named[corrupted.types >= 0] < 0),
    )
