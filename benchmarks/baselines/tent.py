"""Entropy minimisation at test time.

Tent: Wang et al. 2021, "Fully test-time adaptation by entropy minimization". The published rate for CIFAR-10-C, 1e-3,
is for batches of 200; `scaled` takes a rate in proportion to the batch. SAR: Niu et al. 2023, "Towards stable test-time
adaptation in dynamic wild world" (arXiv 2302.12400), with the numbers of the authors' code."""

import math

import torch
from torch import Tensor, nn

from rws.benchmarks.baselines.base import bytes_of, classes_of, digest_of, prepared, size_of, to_torch
from rws.benchmarks.baselines.batchnorm import adapt_norms, batch_norms
from rws.benchmarks.streams.protocols import Floats, Ints

TENT_RATE, TENT_BATCH = 1e-3, 200
SAR_RATE, SAR_BATCH, SAR_MOMENTUM = 2.5e-4, 64, 0.9
RADIUS, RELIABLE, REMEMBERED = 0.05, 0.4, 0.9  # ρ, E₀ / ln K, momentum of the moving average that e₀ is for
COLLAPSED = 0.2 / math.log(1000)  # e₀ / ln K: published for 1,000 classes


class Tent:
    """Entropy minimisation over γ and β of every BatchNorm, online; the answers are those before the step.

    Args:
        module: with BatchNorm; taken over.
        scaled: whether the rate is in proportion to the batch; else it is the published one whatever the batch.
    """

    def __init__(self, name: str, module: nn.Module, scaled: bool = False) -> None:
        self.name, self._scaled = name, scaled
        norms = batch_norms(module)
        self._module = adapt_norms(prepared(module), prior=0)
        self._adapted = [parameter for norm in norms for parameter in (norm.weight, norm.bias)]
        for parameter in self._adapted:
            parameter.requires_grad_(True)
        self._initial = [parameter.detach().clone() for parameter in self._adapted]
        # Next to the model: γ and β to go back to, their gradients, and Adam's two moments.
        self.identity = digest_of(self._module)
        self.carried_bytes = size_of(self._module) + 4 * bytes_of(self._adapted)
        self._optimiser: torch.optim.Optimizer = torch.optim.Adam(
            self._adapted, lr=TENT_RATE, betas=(0.9, 0.999), weight_decay=0.0
        )

    @torch.no_grad()
    def reset(self) -> None:
        """Bring the trained γ and β back, bit for bit, and a fresh optimiser."""
        for parameter, initial in zip(self._adapted, self._initial, strict=True):
            parameter.copy_(initial)
        self._optimiser.zero_grad(set_to_none=True)
        self._optimiser.state.clear()

    def classify(self, x: Floats, types: Ints, severities: Floats) -> Ints:
        """See `Method`; the batch is adapted to afterwards."""
        logits = self._module(to_torch(x))
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward([_entropies(logits).mean()])
        self._optimiser.param_groups[0]["lr"] = TENT_RATE * (len(x) / TENT_BATCH if self._scaled else 1)
        self._optimiser.step()
        return classes_of(logits.detach())


class Sar(Tent):
    """Sharpness-aware entropy minimisation over frames with sure answers; starts again when their entropy gets too low.

    The last quarter of the norms stays as it is; the rate is as the authors' code has it for each size of the batch.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__(name, module)
        for parameter in self._adapted[len(self._adapted) - len(self._adapted) // 8 * 2 :]:
            parameter.requires_grad_(False)
        trained = [parameter for parameter in self._adapted if parameter.requires_grad]
        self.carried_bytes = size_of(self._module) + 3 * bytes_of(trained)  # to go back to, gradients, momentum
        self._optimiser = torch.optim.SGD(trained, lr=SAR_RATE, momentum=SAR_MOMENTUM)
        self._mean: float | None = None

    def reset(self) -> None:
        """Bring the trained parameters back, and forget the past."""
        super().reset()
        self._mean = None

    def classify(self, x: Floats, types: Ints, severities: Floats) -> Ints:
        """See `Method`; the batch is adapted to afterwards."""
        images = to_torch(x)
        logits = self._module(images)
        limit = RELIABLE * math.log(logits.shape[1])
        sure = _entropies(logits.detach()) < limit
        if sure.any():
            self._optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward([_entropies(logits)[sure].mean()])
            before_climb = self._climb()
            entropies = _entropies(self._module(images))[sure]
            still = entropies.detach() < limit
            self._optimiser.zero_grad(set_to_none=True)
            if still.any():
                loss = entropies[still].mean()
                torch.autograd.backward([loss])
                now = float(loss.detach())
                self._mean = now if self._mean is None else REMEMBERED * self._mean + (1 - REMEMBERED) * now
            with torch.no_grad():
                for parameter, value in before_climb:
                    parameter.copy_(value)
            self._optimiser.param_groups[0]["lr"] = SAR_RATE * min(1, 2 * len(x) / SAR_BATCH)
            self._optimiser.step()
            if self._mean is not None and self._mean < COLLAPSED * math.log(logits.shape[1]):
                self.reset()
        return classes_of(logits.detach())

    @torch.no_grad()
    def _climb(self) -> list[tuple[Tensor, Tensor]]:
        """Move the parameters by ρ along their gradient; return them with what they were before."""
        found = [(p, p.grad) for group in self._optimiser.param_groups for p in group["params"] if p.grad is not None]
        length = torch.stack([gradient.norm() for _, gradient in found]).norm() + 1e-12
        before = [(parameter, parameter.clone()) for parameter, _ in found]
        for parameter, gradient in found:
            parameter.add_(gradient * (RADIUS / length))
        return before


def _entropies(logits: Tensor) -> Tensor:
    """Return the entropy of each row's shares, float32 (N,)."""
    log_share = logits.log_softmax(1)
    return -(log_share.exp() * log_share).sum(1)
