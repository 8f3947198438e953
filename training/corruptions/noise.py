"""Noise: gaussian, shot, impulse, speckle.

Images are float32 (N, 3, H, W), range 0…255; `c` is each sample's constants, (N, P); further arguments are draws.
"""

import math

import torch
from torch import Tensor


def gaussian_noise(x: Tensor, c: Tensor, z: Tensor) -> Tensor:
    """Return x + N(0, σ), σ = c[0] of full scale; `z` standard normal like x."""
    return torch.addcmul(x, z, c[:, :1, None, None] * 255)


def speckle_noise(x: Tensor, c: Tensor, z: Tensor) -> Tensor:
    """Return x + x·N(0, c[0]); `z` standard normal like x."""
    return torch.addcmul(x, x * z, c[:, :1, None, None])


def impulse_noise(x: Tensor, c: Tensor, u: Tensor) -> Tensor:
    """Set a fraction c[0] of all channel values to 0 or 255, half each; `u` uniform in [0, 1) like x."""
    amount = c[:, :1, None, None]
    return torch.where(u < amount, (u < amount / 2) * 255.0, x)


def shot_noise(x: Tensor, c: Tensor, z: Tensor) -> Tensor:
    """Draw Poisson counts of the light in x, with 1/c[0] photons at full scale; `z` standard normal like x."""
    photons = 1 / (c[:, :1, None, None] * 255)
    return poisson(x * photons, z) / photons


def poisson(rate: Tensor, z: Tensor) -> Tensor:
    """Return the Poisson(rate) quantile at Φ(z), same shape: below a rate of 4 exact, by the cumulative sum.

    From 4 up: the normal expansion Q_N3 of Giles 2016 (ACM TOMS, Algorithm 955), within 7e-4 in total variation.
    """
    root = rate.sqrt()
    square = z * z
    count = rate + root * z + (square + 2) / 6 - z * (square + 2) / (72 * root)
    count = (count + (square * (square / 270 + 7 / 810) - 8 / 405) / rate).floor_().clamp_(min=0)
    dim = (rate < 4).flatten().nonzero()[:, 0]
    small = rate.take(dim)
    quantile = torch.special.erfc(z.take(dim) * -math.sqrt(0.5)) / 2
    term = (-small).exp()
    cumulative = term.clone()
    exact = torch.zeros_like(small)
    more = torch.empty_like(small)
    for k in range(1, 21):  # P(more than 20 | rate 4) < 1e-9, below what float32 resolves
        exact += torch.gt(quantile, cumulative, out=more)
        term *= small / k
        cumulative += term
    return count.put_(dim, exact)
