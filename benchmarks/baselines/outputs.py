"""Methods that leave the network alone and correct its last features or its answers."""

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rws.benchmarks.baselines.base import Fixed, bytes_of, classes_of, prepared, to_torch
from rws.benchmarks.streams.protocols import Floats, Ints
from rws.errors import InputError

NEIGHBOURS, MOST_STEPS, TOLERANCE = 5, 100, 1e-8  # of LAME, as published


class Split:
    """A model, float32 (N, 3, H, W) → logits (N, K), that also gives the features its last linear layer is fed with.

    Raises InputError if it has no linear layer.
    """

    def __init__(self, module: nn.Module) -> None:
        linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise InputError("the model has no linear layer at its end, whose features could be corrected")
        self.head, self._module = linear[-1], prepared(module)
        self._seen = torch.empty(0)
        self.head.register_forward_pre_hook(self._keep)

    def _keep(self, _layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._seen = given[0]

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features, float32 (N, F), and logits, float32 (N, K)."""
        logits = self._module(x)
        return self._seen, logits


class Recentred(Fixed):
    """NEO (Murphy et al. 2026, arXiv 2510.05635): the mean of the features seen so far is moved to where it should be.

    In the paper that is the origin; features after a ReLU lie far from it, so here it is the mean on training images.

    Args:
        centre: that mean, float32 (F,).
    """

    def __init__(self, name: str, module: nn.Module, centre: Tensor) -> None:
        super().__init__(name, module)
        self._split, self._centre = Split(module), centre
        self.carried_bytes += 2 * bytes_of([centre])
        self.identity = hashlib.sha256(self.identity.encode() + centre.numpy().tobytes()).hexdigest()
        self.reset()

    def reset(self) -> None:
        """Forget the features seen so far."""
        self._sum, self._count = torch.zeros_like(self._centre), 0

    @torch.inference_mode()
    def classify(self, x: Floats, types: Ints, severities: Floats) -> Ints:
        """See `Method`; the batch counts among what was seen."""
        features, _ = self._split(to_torch(x))
        self._sum, self._count = self._sum + features.sum(0), self._count + len(features)
        return classes_of(self._split.head(features - self._sum / self._count + self._centre))


class Lame(Fixed):
    """LAME (Boudiaf et al. 2022, arXiv 2201.05718): answers of a batch are drawn to those of their nearest neighbours.

    A batch of one is answered as without it.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__(name, module)
        self._split = Split(module)

    @torch.inference_mode()
    def classify(self, x: Floats, types: Ints, severities: Floats) -> Ints:
        """See `Method`."""
        features, logits = self._split(to_torch(x))
        return classes_of(laplacian(logits.log_softmax(1), neighbours(features)))


def neighbours(features: Tensor) -> Tensor:
    """Return which rows are among the nearest of each one by angle, 0 or 1, float32 (N, N)."""
    directions = F.normalize(features, dim=1)
    count = min(NEIGHBOURS + 1, len(features))
    nearest = torch.cdist(directions, directions).topk(count, largest=False).indices[:, 1:]
    return torch.zeros(len(features), len(features)).scatter_(1, nearest, 1.0)


def laplacian(log_shares: Tensor, affinity: Tensor) -> Tensor:
    """Return shares, float32 (N, K), that agree with log shares and among neighbours: what LAME minimises."""
    shares, before = log_shares.exp(), float("nan")
    for _ in range(MOST_STEPS):
        pull = affinity @ shares
        shares = (log_shares + pull).softmax(1)
        energy = float((shares * (shares.clamp(min=1e-20).log() - log_shares - pull)).sum())
        if abs(energy - before) <= TOLERANCE * abs(before):
            break
        before = energy
    return shares
