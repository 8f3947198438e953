"""BatchNorm with other statistics: of the batch, alone or mixed with those of the training images, or of a corruption.

Nado et al. 2020, "Evaluating prediction-time batch normalization for robustness under covariate shift"; Schneider et
al. 2020, "Improving robustness against common corruptions by covariate shift adaptation", eq. 1. Of a corruption that
is named for each frame: Rezaei and Norouzzadeh 2023 (arXiv 2310.20074)."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rws.benchmarks.baselines.base import bytes_of, classes_of, digest_of, prepared, size_of, to_torch
from rws.benchmarks.streams.protocols import Floats, Ints
from rws.benchmarks.streams.scores import named_types
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import ORACLE
from rws.errors import InputError

Statistics = Mapping[str, Tensor]
"""`<norm>.running_mean` and `<norm>.running_var` of every BatchNorm, float32 (C,)."""


class AdaptedNorm(nn.Module):
    """BatchNorm with statistics (N·source + n·batch) / (N + n) for a batch of n images (Schneider et al. 2020, eq. 1).

    Args:
        source: the trained layer; its tensors are shared, not copied.
        prior: N, how many images the source statistics count as; 0 takes the batch's alone (Nado et al. 2020).
    """

    def __init__(self, source: nn.BatchNorm2d, prior: float) -> None:
        super().__init__()
        self.source, self.prior = source, prior

    def forward(self, x: Tensor) -> Tensor:
        """Normalise float32 (n, C, H, W)."""
        own, source_mean, source_variance = self.source, self.source.running_mean, self.source.running_var
        if self.prior == 0 or source_mean is None or source_variance is None:
            if x.numel() == x.shape[1]:
                raise InputError(
                    "bn_batch, tent, tent_scaled and sar take BatchNorm's statistics from the batch; this model has "
                    "a single value a channel of one image; take larger batches (--batch 64), the last one included"
                )
            return F.batch_norm(x, None, None, own.weight, own.bias, training=True, eps=own.eps)
        # Up to 20 times as fast as torch.var_mean over three dimensions, channels last on a CPU.
        flat = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        mean = flat.mean(0)
        variance = (flat.square().mean(0) - mean.square()).clamp_(min=0)
        share = len(x) / (self.prior + len(x))
        mean = source_mean.lerp(mean, share)
        variance = source_variance.lerp(variance, share)
        return F.batch_norm(x, mean, variance, own.weight, own.bias, training=False, eps=own.eps)


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    """Return every BatchNorm of a module; raise InputError if there is none."""
    if found := [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]:
        return found
    raise InputError("the model has no BatchNorm to adapt; see rws.benchmarks.baselines.models.unfold")


def adapt_norms(module: nn.Module, prior: float) -> nn.Module:
    """Replace every BatchNorm by an `AdaptedNorm`, in place; raise InputError if there is none."""
    batch_norms(module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, AdaptedNorm(child, prior))
    return module


class NormsOfTypes:
    """BatchNorm with the statistics of the frame's corruption; the model's own for clean frames.

    Args:
        module: with BatchNorm; taken over.
        statistics: of each of `CORRUPTIONS`.
        bundle: whose oracle names the corruption of each frame; None: the ground truth does.
    """

    def __init__(
        self, name: str, module: nn.Module, statistics: Sequence[Statistics], bundle: Bundle | None = None
    ) -> None:
        batch_norms(module)
        self.name, self._module = name, prepared(module)
        self._oracle = None if bundle is None else bundle.oracle(threads=1)
        own = {key: tensor.clone() for key, tensor in module.state_dict().items() if key in statistics[0]}
        self._statistics = (own, *statistics)
        tensors = [tensor for part in statistics for tensor in part.values()]
        self.carried_bytes = size_of(module) + bytes_of(tensors)
        hasher = hashlib.sha256(digest_of(module).encode() + b"".join(tensor.numpy().tobytes() for tensor in tensors))
        if bundle is not None:
            file = bundle.manifest.files[ORACLE]
            self.carried_bytes += file.bytes
            hasher.update(file.sha256.encode())
        self.identity = hasher.hexdigest()

    def reset(self) -> None:
        """Do nothing: no state is kept."""

    @torch.inference_mode()
    def classify(self, x: Floats, types: Ints, severities: Floats) -> Ints:
        """See `Method`; frames of one type go through the network together."""
        named, classes = types, np.empty(len(x), np.int64)
        if self._oracle is not None:
            named = named_types(self._oracle.observe_batch(x), self._oracle.corruptions)
        for kind in np.unique(named):
            self._module.load_state_dict(self._statistics[kind + 1], strict=False)
            chosen = np.flatnonzero(named == kind)
            classes[chosen] = classes_of(self._module(to_torch(x[chosen])))
        return classes
