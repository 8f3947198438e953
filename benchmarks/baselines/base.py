"""What all baselines share: their protocol, conversions, and the model that stays as it is."""

import hashlib
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from rws.benchmarks.streams.protocols import Floats, Ints, Method


class Baseline(Method, Protocol):
    """A baseline: it also says how many bytes of weights and states it carries, and what its answers depend on."""

    carried_bytes: int
    identity: str


def to_torch(x: Floats) -> Tensor:
    """Return a batch (N, 3, H, W) as a channels_last tensor, the faster layout on a CPU."""
    return torch.from_numpy(x).contiguous(memory_format=torch.channels_last)


def prepared(module: nn.Module) -> nn.Module:
    """Return the module in eval mode and channels_last, its parameters fixed."""
    module.eval().requires_grad_(False)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # Torch's stubs lack this signature
    return module


def classes_of(logits: Tensor) -> Ints:
    """Return the most probable classes, int64 (N,), of logits (N, K)."""
    classes: Ints = logits.argmax(1).numpy()
    return classes


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Add the bytes up."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def size_of(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and floating-point buffers."""
    return bytes_of([*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())])


def digest_of(module: nn.Module) -> str:
    """Return a SHA-256 of a module's weights."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        hasher.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return hasher.hexdigest()


class Fixed:
    """A model, float32 (N, 3, H, W) → logits (N, K), that stays as it is."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self._module = name, prepared(module)
        self.carried_bytes, self.identity = size_of(self._module), digest_of(self._module)

    def reset(self) -> None:
        """Do nothing: no state is kept."""

    @torch.inference_mode()
    def classify(self, x: Floats, types: Ints, severities: Floats) -> Ints:
        """See `Method`."""
        return classes_of(self._module(to_torch(x)))
