"""The one training loop of the project: stopped anywhere, it goes on from its checkpoint to the same bytes."""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from rws.edge.common.files import atomic_path, open_regular
from rws.errors import InputError, first_line
from rws.training.models.allocator import keep_freed_memory

Report = Callable[[dict[str, Any]], None]
T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
BatchSize = Annotated[int, Field(ge=2)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Warmup = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["bf16", "fp32"]


class DivergedError(InputError):
    """The loss of a training is no longer finite."""


@dataclass(frozen=True)
class Plan:
    """How long to train, and under which learning rate.

    Args:
        steps_per_epoch: an epoch ends, with a checkpoint, after this many; the last epoch may be shorter.
        warmup: share of the steps over which the rate rises linearly to its peak; then it falls as a cosine to zero.
        identity: what the run depends on; a checkpoint with another one is refused.
    """

    steps: int
    steps_per_epoch: int
    warmup: float
    identity: str

    @classmethod
    def over(cls, images: int, epochs: int, batch_size: int, warmup: float, identity: str) -> "Plan":
        """Return the plan of some epochs over N images, in full batches, at least one per epoch."""
        steps = max(1, images // batch_size)
        return cls(epochs * steps, steps, warmup, identity)

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return -(-self.steps // self.steps_per_epoch)

    def steps_of(self, epoch: int) -> tuple[int, int]:
        """Return the first step of an epoch and the one after its last, both counted from 0."""
        return epoch * self.steps_per_epoch, min(self.steps, (epoch + 1) * self.steps_per_epoch)


def identity_of(recipe: Any, *made_by: object) -> str:
    """Return the identity of a run from its recipe, a dataclass, and the `repr` of what else it depends on."""
    return repr((sorted(asdict(recipe).items()), *made_by))


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Return the learning rate of a step, counted from 0, as a share of the peak."""
    progress = (step + 1) / steps
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1e-9, 1 - warmup)))


def train(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Callable[[int], Iterable[T]],
    loss_of: Callable[[T], Tensor],
    plan: Plan,
    *,
    checkpoint: Path | None = None,
    report: Report | None = None,
) -> nn.Module:
    """Train a model in place; it is returned in eval mode.

    Args:
        optimiser: its rate is the peak.
        batches: of an epoch, counted from 0; the same ones at each call.
        checkpoint: written after every epoch; if it exists, the run goes on from it.
        report: called after each epoch, from 1 on, with {epoch, steps, steps_left, loss}; the loss is its mean.
    Raises DivergedError, InputError if the loss is no longer finite, or the checkpoint belongs to another run.
    """
    keep_freed_memory()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_factor(step, plan.steps, plan.warmup))
    parts: dict[str, Any] = {"model": model, "optimiser": optimiser, "schedule": schedule}
    for epoch in range(_resumed_epochs(checkpoint, plan.identity, parts), plan.epochs):
        model.train()
        # Dropout draws from the global generator: seeded here, a run that was stopped goes on with the same draws.
        torch.manual_seed(zlib.crc32(f"{plan.identity} {epoch}".encode()))
        losses: list[Tensor] = []
        for batch in batches(epoch):
            loss = loss_of(batch)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward([loss])
            optimiser.step()
            schedule.step()
            losses.append(loss.detach())
        mean = torch.stack(losses).mean().item()
        if not math.isfinite(mean):
            raise DivergedError(f"epoch {epoch + 1}: loss is {mean}; lower the learning rate or lengthen the warm-up")
        if checkpoint is not None:
            states = {name: part.state_dict() for name, part in parts.items()}
            with atomic_path(checkpoint) as temporary:
                torch.save({"identity": plan.identity, "epoch": epoch + 1, **states}, temporary)
        if report is not None:
            left = plan.steps - plan.steps_of(epoch)[1]
            report({"epoch": epoch + 1, "steps": len(losses), "steps_left": left, "loss": round(mean, 4)})
    return model.eval()


def _resumed_epochs(checkpoint: Path | None, identity: str, parts: dict[str, Any]) -> int:
    if checkpoint is None or not checkpoint.exists():
        return 0
    try:
        with open_regular(checkpoint) as file:
            # torch does not look at the checksums that it writes.
            if damaged := zipfile.ZipFile(file).testzip():
                raise zipfile.BadZipFile(f"{damaged} has another checksum")  # noqa: TRY301
            file.seek(0)
            state = torch.load(file, weights_only=True, map_location="cpu")
        if state["identity"] == identity:
            for name, part in parts.items():
                part.load_state_dict(state[name])
            return int(state["epoch"])
    except Exception as error:  # what a damaged file makes torch and its unpickler raise has no base in common
        raise InputError(f"{checkpoint}: is damaged ({first_line(error)}); remove it to start again") from error
    raise InputError(f"{checkpoint} was made with another recipe, seed or data; remove it to start again")
