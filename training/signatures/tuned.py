"""Tuned signatures: the shallow layers alone are trained on corrupted images, from the standard model on."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, fx, nn
from torch.nn import functional as F

from rws.edge.common.schema import STRICT
from rws.edge.signatures.signature_set import shallow_sha256
from rws.errors import InputError
from rws.training.data.images import Images
from rws.training.models.fit import Batch, Corrupted, autocast, batches, channels_last, to_input
from rws.training.models.loop import BatchSize, Count, Plan, Precision, Rate, Report, Warmup, identity_of, train
from rws.training.signatures.deltas import Deltas


@dataclass(frozen=True, config=STRICT)
class TuneRecipe:
    """How to tune the shallow layers; Adam under a warm-up and a cosine to zero.

    Args:
        target: `output` matches the clean model's softmax on the clean image; `labels` uses the labels; `shallow`
            matches what the clean model's first deep layer sees on the clean image, and runs no deep layer at all.
    """

    target: Literal["output", "labels", "shallow"] = "output"
    epochs: Count = 2
    batch_size: BatchSize = 128
    learning_rate: Rate = 2e-3
    warmup: Warmup = 0.1
    crop: Annotated[int, Field(ge=0)] = 4
    precision: Precision = "bf16"


def tuned_signature(
    std: nn.Module,
    data: Images,
    corrupted: Corrupted,
    tensors: Sequence[str],
    recipe: TuneRecipe,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    report: Report | None = None,
) -> Deltas:
    """Train `tensors` alone of a folded standard model on corrupted images; their change is the signature.

    `data`: clean; labels are read only if the target is `labels`. `seed`, `checkpoint`, `report`: as in `fit`.
    """
    teacher = channels_last(std, data.pixels.device).eval()
    student = copy.deepcopy(teacher)
    trained = train_only(student, tensors)
    digest = shallow_sha256({name: value.detach().cpu().numpy() for name, value in teacher.named_parameters()})
    identity = identity_of(recipe, corrupted, tuple(tensors), seed, len(data), digest)
    plan = Plan.over(len(data), recipe.epochs, recipe.batch_size, recipe.warmup, identity)
    epochs = partial(batches, data, recipe.batch_size, recipe.crop, corrupted, seed=seed)
    optimiser = torch.optim.Adam(trained.values(), lr=recipe.learning_rate)
    loss_of = _loss(teacher, student, tensors, recipe, data.pixels.device)
    train(student, optimiser, epochs, loss_of, plan, checkpoint=checkpoint, report=report)
    clean = dict(teacher.named_parameters())
    return {name: (trained[name] - clean[name]).detach().contiguous().cpu() for name in tensors}


def train_only(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Freeze all parameters of a model but the named ones; return these."""
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return {name: parameters[name].requires_grad_(True) for name in names}


def match_shallow(seen: Tensor, aim: Tensor) -> Tensor:
    """Return the squared error relative to the target's size, so that one learning rate serves every network."""
    return F.mse_loss(seen, aim) / aim.square().mean()


def _loss(
    teacher: nn.Module, student: nn.Module, tensors: Sequence[str], recipe: TuneRecipe, device: torch.device
) -> Callable[[Batch], Tensor]:
    def by_labels(batch: Batch) -> Tensor:
        with autocast(device, recipe.precision):
            return F.cross_entropy(student(to_input(batch.corrupted)).float(), batch.labels)

    def by_teacher(batch: Batch) -> Tensor:
        with autocast(device, recipe.precision):
            found = student(to_input(batch.corrupted)).float()
            with torch.no_grad():
                aim = teacher(to_input(batch.clean)).float()
        return match_shallow(found, aim) if recipe.target == "shallow" else F.cross_entropy(found, aim.softmax(1))

    if recipe.target == "shallow":
        teacher, student = shallow_part(teacher, tensors), shallow_part(student, tensors)
    return by_labels if recipe.target == "labels" else by_teacher


def shallow_part(folded: nn.Module, tensors: Sequence[str]) -> nn.Module:
    """Return the part of a folded model before its first layer not in `tensors`; it shares the parameters.

    Raises InputError if there is none.
    """
    traced = folded if isinstance(folded, fx.GraphModule) else fx.symbolic_trace(folded)
    modules = dict(traced.named_modules())
    shallow = {name.rpartition(".")[0] for name in tensors}
    part = fx.GraphModule(traced, copy.deepcopy(traced.graph))
    for node in part.graph.nodes:
        if isinstance(modules.get(str(node.target)), (nn.Conv2d, nn.Linear)) and node.target not in shallow:
            output = next(found for found in part.graph.nodes if found.op == "output")
            output.args = (node.args[0],)
            part.graph.eliminate_dead_code()
            part.delete_all_unused_submodules()
            part.recompile()
            return part
    raise InputError(f"the model has no layer beyond {', '.join(sorted(shallow))}; sign fewer layers")
