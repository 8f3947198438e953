"""Tent: entropy minimisation at test time (Wang et al. 2021, "Fully test-time adaptation by entropy minimization").

The published rate for CIFAR-10-C, 1e-3, is for batches of 200; `scaled` takes a rate in proportion to the batch, as
Niu et al. 2023 (SAR) run it on small ones."""

import torch
from torch import nn

from rws.benchmarks.baselines.base import bytes_of, classes_of, digest_of, prepared, size_of, to_torch
from rws.benchmarks.baselines.batchnorm import adapt_norms, batch_norms
from rws.benchmarks.streams.protocols import Floats, Ints

TENT_RATE, TENT_BATCH = 1e-3, 200


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
        self._optimiser = torch.optim.Adam(self._adapted, lr=TENT_RATE, betas=(0.9, 0.999), weight_decay=0.0)

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
        log_share = logits.log_softmax(1)
        entropy = -(log_share.exp() * log_share).sum(1).mean()
        self._optimiser.zero_grad(set_to_none=True)
        entropy.backward()
        self._optimiser.param_groups[0]["lr"] = TENT_RATE * (len(x) / TENT_BATCH if self._scaled else 1)
        self._optimiser.step()
        return classes_of(logits.detach())
