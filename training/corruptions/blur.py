"""Blur: defocus, glass, motion, zoom, gaussian; and the linear maps that other families use too.

Images are float32 (N, C, H, H), range 0…255; `c` is each sample's constants, (N, P); further arguments are draws.
"""

import math
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rws.training.corruptions.constants import levels
from rws.training.corruptions.rng import Stream

# Added before a truncation, in grey levels: float32 rounding alone must not cost a whole level.
ROUNDING = 2.0**-13


def truncate(x: Tensor) -> Tensor:
    """Truncate as a cast to uint8 does: floor, clipped to 0…255, still float32."""
    return (x + ROUNDING).floor_().clamp_(0, 255)


def separable(x: Tensor, matrix: Tensor) -> Tensor:
    """Apply each sample's matrix (N, K, H) to the columns and rows of its channels (N, C, H, H) → (N, C, K, K)."""
    n, channels, size, _ = x.shape
    kept = matrix.shape[1]
    transposed = matrix.transpose(1, 2)
    rows = torch.bmm(x.reshape(n, channels * size, size), transposed).view(n, channels, size, kept)
    both = torch.bmm(rows.transpose(2, 3).reshape(n, channels * kept, size), transposed)
    return both.view(n, channels, kept, kept).transpose(2, 3)


def gaussian_filter(x: Tensor, sigma: Tensor, truncate: float = 4.0, reflect: bool = False) -> Tensor:
    """Filter (N, C, H, H) as SciPy's and scikit-image's Gaussian do; sigma in pixels, shape (N,); 0 leaves x unchanged.

    Edges are replicated, or with `reflect` mirrored between pixels; the kernel ends at int(truncate·σ + ½) pixels.
    """
    sigmas, which = torch.unique(sigma, return_inverse=True)
    return separable(x, _gaussian_matrices(tuple(sigmas.tolist()), x.shape[-1], truncate, reflect, x.device)[which])


@lru_cache(maxsize=32)
def _gaussian_matrices(
    sigmas: tuple[float, ...], size: int, truncate: float, reflect: bool, device: torch.device
) -> Tensor:
    sigma = torch.tensor(sigmas, dtype=torch.float64, device=device)
    radius = (truncate * sigma + 0.5).floor()
    reach = int(radius.max())
    source = torch.arange(-reach, size + reach, device=device)
    distance = (source - torch.arange(size, device=device)[:, None]).abs()
    weights = torch.exp(-0.5 * (distance / sigma.clamp(min=1e-3)[:, None, None]) ** 2)
    weights = weights * (distance <= radius[:, None, None])
    folded = source.remainder(2 * size)
    source = torch.minimum(folded, 2 * size - 1 - folded) if reflect else source.clamp(0, size - 1)
    fold = F.one_hot(source, size).double()
    return (weights / weights.sum(2, keepdim=True) @ fold).float()


def defocus_table(rows: list[list[Any]]) -> list[list[float]]:
    """Return the flattened blur kernel per severity 0…5, all of the size of the largest; 0 is the identity."""
    kernels = [np.ones((1, 1), np.float32)] + [_disk(radius, alias) for radius, alias in rows]
    side = max(len(k) for k in kernels)
    return [np.pad(k, (side - len(k)) // 2).ravel().tolist() for k in kernels]


def _disk(radius: float, alias_blur: float) -> Any:
    """Return the reference's antialiased disk, its zero border trimmed; odd side, sum 1."""
    half = 8 if radius <= 8 else int(radius)
    blur = 3 if radius <= 8 else 5
    offset = np.arange(-half, half + 1)
    disk = (offset[:, None] ** 2 + offset**2 <= radius**2).astype(np.float32)
    kernel = cv2.GaussianBlur(disk / disk.sum(), (blur, blur), alias_blur)
    while len(kernel) > 1 and kernel[0].max() < 1e-9:
        kernel = kernel[1:-1, 1:-1]
    return kernel


def defocus_blur(x: Tensor, c: Tensor) -> Tensor:
    """Convolve with a disk, edges mirrored about the outermost pixels; `c` is the flattened kernel."""
    n, channels = x.shape[:2]
    side = math.isqrt(c.shape[1])
    kernels = c.view(n, side, side)
    trim = int((kernels.amax((0, 1)) > 0).int().argmax())
    kernels = kernels[:, trim : side - trim, trim : side - trim].repeat_interleave(channels, 0)[:, None]
    padded = F.pad(x, (side // 2 - trim,) * 4, mode="reflect").flatten(0, 1)
    return F.conv2d(padded, kernels, groups=n * channels).view_as(x)


def gaussian_blur(x: Tensor, c: Tensor) -> Tensor:
    """Blur with a Gaussian of σ = c[0] pixels, edges replicated."""
    return gaussian_filter(x, c[:, 0])


def glass_blur(x: Tensor, c: Tensor, offset: Tensor) -> Tensor:
    """Blur by σ = c[0], copy pixels from nearby (reach c[1], c[2] times), blur again.

    `offset`: displacement (dx, dy) of the pixel that (h, w) is copied from, int64 (N, most passes, 2, H, H).
    """
    n, channels, size, _ = x.shape
    x = truncate(gaussian_filter(x, c[:, 0])).reshape(n, channels, size * size)
    column = torch.arange(size, device=x.device)
    row = column[:, None]
    here = row * size + column
    reach = c[:, 1, None, None]
    for index in range(offset.shape[1]):
        inside = (row > reach) & (column > reach) & (row <= size - reach) & (column <= size - reach)
        moved = inside & (index < c[:, 2, None, None])
        source = here + torch.where(moved, offset[:, index, 1] * size + offset[:, index, 0], 0)
        # The scan goes from the bottom right to the top left, in place: a source further on was itself replaced
        # already, one further back (or never moved) still holds its old value. Old values are numbered from size².
        final = (source > here) & moved.flatten(1).gather(1, source.flatten(1)).view_as(moved)
        pointer = torch.where(final, source, source + size * size).flatten(1)
        olds = torch.arange(size * size, 2 * size * size, device=x.device).expand(n, -1)
        while bool((pointer < size * size).any()):
            pointer = torch.cat([pointer, olds], 1).gather(1, pointer)
        x = x.gather(2, (pointer - size * size)[:, None].expand(-1, channels, -1))
    return gaussian_filter(x.view(n, channels, size, size), c[:, 0])


def draw_glass(stream: Stream, c: Tensor, size: int) -> tuple[Tensor, ...]:
    """Draw offsets for `glass_blur`, uniform in −reach … reach − 1."""
    reach = c[:, 1, None, None, None, None]
    unit = stream.uniform(int(c[:, 2].max()), 2, size, size)
    return (torch.minimum((unit * 2 * reach).floor_() - reach, reach - 1).long(),)


def motion_blur(x: Tensor, c: Tensor, angle: Tensor) -> Tensor:
    """Blur as ImageMagick does for motion: radius c[0], σ = c[1] pixels, `angle` in degrees, (N,); whole grey levels.

    A one-sided half Gaussian at whole-pixel offsets, edges replicated; floored as by the reference's PNG writer.
    """
    n, channels, size, _ = x.shape
    taps = 2 * c[:, 0].double().ceil() + 1
    step = torch.arange(int(taps.max()), device=x.device, dtype=torch.float64)
    weights = torch.exp(-0.5 * (step / c[:, 1, None].double().clamp(min=1e-3)) ** 2) * (step < taps[:, None])
    weights = (weights / weights.sum(1, keepdim=True)).float()
    weights = torch.where(weights < 1e-6, 0.0, weights)
    turn = torch.deg2rad(angle.double())[:, None]
    down = torch.ceil(step * turn.sin() - 0.5).long()
    right = torch.ceil(step * turn.cos() - 0.5).long()
    pixel = torch.arange(size, device=x.device)
    flat = x.reshape(n, channels, size * size)
    total = torch.zeros_like(flat)
    for i in range(int((weights > 0).any(0).sum())):
        row = (pixel + down[:, i, None]).clamp_(0, size - 1) * size
        column = (pixel + right[:, i, None]).clamp_(0, size - 1)
        source = (row[:, :, None] + column[:, None]).view(n, 1, -1).expand(-1, channels, -1)
        total.addcmul_(flat.gather(2, source), weights[:, i, None, None])
    sixteen = (total * 257 + (0.5 + ROUNDING)).floor_()
    return (sixteen / 257).floor_().view_as(x)


def zoom_factors(rows: list[list[Any]]) -> list[float]:
    """Return every zoom factor that some severity uses, ascending, without 1."""
    return sorted({factor for (row,) in rows for factor in row} - {1.0})


def zoom_table(rows: list[list[Any]]) -> list[list[float]]:
    """Return the weight of each factor of `zoom_factors` per severity 0…5; the image itself has the rest to 1."""
    factors = zoom_factors(rows)
    return [[0.0] * len(factors)] + [[(f in row) / (len(row) + 1) for f in factors] for (row,) in rows]


def zoom_blur(x: Tensor, c: Tensor) -> Tensor:
    """Average the image zoomed by `zoom_factors`, weights `c`, and the image itself."""
    size = x.shape[-1]
    total = x * (1 - c.sum(1))[:, None, None, None]
    for k, factor in enumerate(zoom_factors(levels("zoom_blur", size))):
        which = c[:, k].nonzero()[:, 0]
        if len(which) == 0:
            continue
        crop = math.ceil(size / factor)
        top = (size - crop) // 2
        # The reference's factors come from np.arange and lie a little above, which decides ties.
        zoomed = round(crop * factor + 1e-9)
        trim = (zoomed - size) // 2
        part = x[which, :, top : top + crop, top : top + crop]
        part = F.interpolate(part, (zoomed, zoomed), mode="bilinear", align_corners=True)
        part = part[:, :, trim : trim + size, trim : trim + size] * c[which, k, None, None, None]
        total.index_add_(0, which, part)
    return total


def clipped_zoom(x: Tensor, factor: Tensor) -> Tensor:
    """Zoom each sample's centre by its own factor ≥ 1, shape (N,), to the size it had; linear, corners aligned."""
    size = x.shape[-1]
    factor = factor.double()[:, None]
    crop = (size / factor).ceil()
    zoomed = (crop * factor).round()
    pixel = torch.arange(size, device=x.device)
    source = (pixel + ((zoomed - size) / 2).floor()) * (crop - 1) / (zoomed - 1) + ((size - crop) / 2).floor()
    return separable(x, (1 - (source[:, :, None] - pixel).abs()).clamp_(min=0).float())
