"""A stateless random generator: every draw is a hash of (seed, corruption, number of the draw, position).

SplitMix64 (Steele, Lea & Flood 2014) in wrapping 64-bit arithmetic: CPU and CUDA draw the same bits in any batch.
"""

import math
import zlib

import torch
from torch import Tensor

_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(word: int) -> int:
    return (word + 2**63) % 2**64 - 2**63


def _mix(state: Tensor) -> Tensor:
    """SplitMix64's output function, in place on int64; the masks turn arithmetic shifts into logical ones."""
    state ^= (state >> 30) & (2**34 - 1)
    state *= _signed(_MIX1)
    state ^= (state >> 27) & (2**37 - 1)
    state *= _signed(_MIX2)
    state ^= (state >> 31) & (2**33 - 1)
    return state


def seeds_for(base_seed: int, indices: int | Tensor) -> Tensor:
    """Return one seed per sample of a data set, int64 (N,); entry i depends on `base_seed` and on index i alone.

    `indices`: the number of samples (meaning 0 … n−1), or the samples' own numbers, int64, shape (N,).
    """
    index = torch.arange(indices) if isinstance(indices, int) else indices.to(torch.int64)
    base = _mix(torch.tensor([_signed(base_seed)], device=index.device))
    return _mix(base + (index + 1) * _signed(_GOLDEN))


class Stream:
    """The draws of N samples with seeds, int64 (N,), on their device, for one corruption; each call draws afresh.

    `scene` draws what stays from frame to frame: from seeds that frames share, or else as this stream does.
    """

    def __init__(self, seeds: Tensor, name: str, scene: Tensor | None = None) -> None:
        self.scene = self if scene is None else Stream(scene, name)
        self._keys = _mix(seeds.to(torch.int64) ^ _signed(zlib.crc32(name.encode()) * _GOLDEN))
        self._calls = 0

    def _bits(self, count: int) -> Tensor:
        """Random int32, shape (N, count), from half as many hashes."""
        self._calls += 1
        keys = _mix(self._keys + _signed(self._calls * _MIX1))
        counter = torch.arange(1, (count + 1) // 2 + 1, device=keys.device) * _signed(_GOLDEN)
        return _mix(keys[:, None] + counter).view(torch.int32)[:, :count]

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw float32 in [low, high), shape (N, *shape), in steps of 2^-24 of the range."""
        unit = (self._bits(math.prod(shape)) >> 8).to(torch.float32)
        unit = unit.mul_((high - low) * 2.0**-24).add_((high + low) / 2)
        return unit.view(len(unit), *shape)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Draw int64 in low … high − 1, shape (N, *shape)."""
        return self.uniform(*shape, low=low, high=high).floor_().to(torch.int64).clamp_(low, high - 1)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal float32, shape (N, *shape), by Box and Muller 1958."""
        count = math.prod(shape)
        half = (count + 1) // 2
        unit = self.uniform(2 * half)
        radius = unit[:, :half].neg().add_(1).log_().mul_(-2).sqrt_()
        turn = unit[:, half:] * (2 * math.pi)
        values = torch.cat([radius * turn.cos(), radius * turn.sin()], 1)
        return values[:, :count].reshape(len(unit), *shape)
