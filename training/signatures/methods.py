"""Making signatures: {tensor: change of the shallow weights}, in BatchNorm-folded weight space.

Two ways, interchangeable for everything after them:

- `residual` (Cai, Zhang, Wang, ICML 2023, Sec. 3.2): what of a robust model's direction is orthogonal to the
  standard one's, from three trained models.
- `tuned`: the shallow layers alone are trained on corrupted images, starting from the standard model, while the deep
  layers stay frozen; the target is the clean model's own output for the clean image (no labels needed), or labels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, fx, nn
from torch.nn import functional as F

from rws.edge.signatures.signature_set import shallow_sha256
from rws.errors import InputError
from rws.training.data.images import Images
from rws.training.jobs.store import Codec
from rws.training.models.fit import (
    Batch,
    Corrupted,
    Report,
    autocast,
    batches,
    check_schedule,
    steps_per_epoch,
    to_input,
    train,
)

Deltas = dict[str, Tensor]

DELTAS: Codec[Deltas] = Codec(
    lambda deltas: save({name: delta.float().contiguous() for name, delta in deltas.items()}), load
)
"""Deltas as float32 `.safetensors`."""

RESIDUALS = ("per_tensor", "whole", "plain")
TARGETS = ("output", "labels", "shallow")


def residual_signature(
    init: Mapping[str, Tensor],
    std: Mapping[str, Tensor],
    robust: Mapping[str, Tensor],
    tensors: Sequence[str],
    projection: str = "per_tensor",
) -> Deltas:
    """R = v_c − v_base·⟨v_c, v_base⟩/⟨v_base, v_base⟩, with v_c = θ_r − θ_init and v_base = θ_std − θ_init.

    Cai et al. 2023, Sec. 3.2, Eq. 3, with the projection per flattened tensor, as in the authors' code. Where θ_std is
    the init, v_base is 0 and R = θ_r − θ_std.

    Args:
        init, std, robust: folded weights by tensor name.
        tensors: the shallow tensors to sign.
        projection: `per_tensor`; `whole` projects the concatenation of all `tensors` at once; `plain` is θ_r − θ_std.

    Raises:
        InputError: if a tensor is missing, the shapes differ, or the projection is unknown.
    """
    if projection not in RESIDUALS:
        raise InputError(f"projection {projection!r} is not one of {', '.join(RESIDUALS)}")
    for name in tensors:
        for role, weights in (("init", init), ("std", std), ("robust", robust)):
            if name not in weights:
                raise InputError(f"the {role} model has no tensor {name!r}; are all three of one architecture, folded?")
            if weights[name].shape != std[name].shape:
                raise InputError(f"{name}: {role} has shape {tuple(weights[name].shape)}, std {tuple(std[name].shape)}")
    if projection == "plain":
        return {name: (robust[name] - std[name]).detach() for name in tensors}
    corrupted = {name: (robust[name] - init[name]).detach().double() for name in tensors}
    base = {name: (std[name] - init[name]).detach().double() for name in tensors}
    groups = [list(tensors)] if projection == "whole" else [[name] for name in tensors]
    deltas: Deltas = {}
    for group in groups:
        norm = sum((base[name].square().sum() for name in group), torch.zeros((), dtype=torch.float64))
        inner = sum(((base[name] * corrupted[name]).sum() for name in group), torch.zeros((), dtype=torch.float64))
        along = inner / norm if norm > 0 else torch.zeros_like(norm)
        deltas |= {name: (corrupted[name] - along * base[name]).float() for name in group}
    return deltas


@dataclass(frozen=True)
class TuneRecipe:
    """How to tune the shallow layers; Adam under a warm-up and a cosine to zero.

    Args:
        target: `output` matches the clean model's softmax on the clean image; `labels` uses the labels; `shallow`
            matches what the clean model's first deep layer sees on the clean image (squared error), and runs no deep
            layer at all.
        epochs, batch_size, learning_rate, warmup, crop, precision: as in `FitRecipe`.
    """

    target: str = "output"
    epochs: int = 2
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup: float = 0.1
    crop: int = 4
    precision: str = "bf16"

    def __post_init__(self) -> None:
        check_schedule(self)
        if self.target not in TARGETS:
            raise InputError(f"target {self.target!r} is not one of {', '.join(TARGETS)}")


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
    """Train the shallow tensors of a folded standard model on corrupted images; the change is the signature.

    Args:
        std: the folded standard model; left as it is.
        data: clean training images; labels are read only where the target is `labels`.
        corrupted: the corruption to become robust to.
        tensors: names of the parameters to train; all others stay frozen.
        recipe: how to train.
        seed: of order, augmentation and corruption.
        checkpoint, report: as in `fit`.
    """
    device = data.pixels.device
    teacher = std.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    student = copy.deepcopy(teacher)
    chosen = dict(student.named_parameters())
    for parameter in chosen.values():
        parameter.requires_grad_(False)
    trained = {name: chosen[name].requires_grad_(True) for name in tensors}
    if recipe.target == "shallow":
        teacher_part, student_part = shallow_part(teacher, tensors), shallow_part(student, tensors)

    def loss_of(batch: Batch) -> Tensor:
        if recipe.target == "shallow":
            with autocast(device, recipe.precision):
                seen = student_part(to_input(batch.corrupted)).float()
                with torch.no_grad():
                    aim = teacher_part(to_input(batch.clean)).float()
            # Relative to its size, so that one learning rate serves every network.
            return F.mse_loss(seen, aim) / aim.square().mean()
        with autocast(device, recipe.precision):
            logits = student(to_input(batch.corrupted)).float()
            if recipe.target == "labels":
                return F.cross_entropy(logits, batch.labels)
            with torch.no_grad():
                target = teacher(to_input(batch.clean)).float().softmax(1)
        return F.cross_entropy(logits, target)

    train(
        student,
        torch.optim.Adam(trained.values(), lr=recipe.learning_rate),
        recipe,
        lambda epoch: batches(data, recipe.batch_size, recipe.crop, corrupted, epoch, seed),
        loss_of,
        steps_per_epoch=steps_per_epoch(data, recipe),
        identity=repr((sorted(asdict(recipe).items()), corrupted, tuple(tensors), seed, len(data), _digest(teacher))),
        checkpoint=checkpoint,
        report=report,
    )
    clean_weights = dict(teacher.named_parameters())
    return {name: (trained[name] - clean_weights[name]).detach().contiguous().cpu() for name in tensors}


def shallow_part(folded: nn.Module, tensors: Sequence[str]) -> nn.Module:
    """The part of a folded model up to what its first deep layer sees; shares the model's parameters.

    Args:
        folded: the model; its graph is read by `torch.fx`.
        tensors: names of the shallow tensors; every other convolution or linear layer is deep.

    Raises:
        InputError: if no layer is deep.
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


def _digest(model: nn.Module) -> str:
    return shallow_sha256({name: parameter.detach().cpu().numpy() for name, parameter in model.named_parameters()})


def composed(deltas: Sequence[tuple[Deltas, float]]) -> Deltas:
    """Σ α_c·R_c of several signatures over the same tensors."""
    return {name: sum((alpha * delta[name] for delta, alpha in deltas), torch.zeros(())) for name in deltas[0][0]}


def patched(std: nn.Module, deltas: Deltas) -> nn.Module:
    """A copy of the folded standard model with W = W_std + R."""
    model = copy.deepcopy(std)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, delta in deltas.items():
            parameters[name] += delta.to(parameters[name])
    return model
