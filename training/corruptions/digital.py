"""Digital: brightness, contrast, saturate, pixelate, JPEG, elastic transform.

Images are float32 (N, 3, H, H), range 0…255; `c` is each sample's constants, (N, P); further arguments are draws.
"""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rws.training.corruptions.blur import gaussian_filter


def brightness(x: Tensor, c: Tensor) -> Tensor:
    """Raise HSV's value by c[0]: x·V′/V."""
    value = x.amax(1, keepdim=True)
    raised = (value + c[:, 0, None, None, None] * 255).clamp(max=255)
    return torch.where(value > 0, x * (raised / value.clamp(min=1)), raised)


def contrast(x: Tensor, c: Tensor) -> Tensor:
    """Pull every value towards its channel's mean by the factor c[0]."""
    mean = x.sum((2, 3), dtype=torch.float64, keepdim=True).div_(x.shape[2] * x.shape[3]).float()
    return torch.lerp(mean, x, c[:, 0, None, None, None])


def saturate(x: Tensor, c: Tensor) -> Tensor:
    """Set HSV's saturation to c[0]·S + c[1], clipped to 0…1: V − (V − x)·S′/S; grey is red, as in scikit-image."""
    factor, offset = c[:, :, None, None, None].unbind(1)
    value = x.amax(1, keepdim=True)
    spread = value - x.amin(1, keepdim=True)
    saturation = spread / value.clamp(min=1)
    wanted = (saturation * factor + offset).clamp_(0, 1)
    out = value - (value - x) * (wanted * value / spread.clamp(min=1e-3))
    red = value * torch.cat([torch.ones_like(wanted), 1 - wanted, 1 - wanted], 1)
    return torch.where(spread > 0, out, red)


def pixelate(x: Tensor, c: Tensor) -> Tensor:
    """Shrink to int(c[0]·H) pixels by Pillow's box filter, then repeat pixels; whole grey levels."""
    size = x.shape[-1]
    sides = (c[:, 0].double() * size + 1e-4).long()
    out = torch.empty_like(x)
    for side in torch.unique(sides).tolist():
        which = (sides == side).nonzero()[:, 0]
        box = _box_matrix(size, side).to(x.device)
        # Pillow goes along the rows, rounds, and only then down the columns.
        rows = (x[which] @ box).add_(0.5 + 1e-3).floor_()
        both = (rows.transpose(2, 3).contiguous() @ box).add_(0.5 + 1e-3).floor_()
        back = ((torch.arange(size, device=x.device) + 0.5) * (side / size)).long()
        out[which] = both[:, :, back][:, :, :, back].transpose(2, 3)
    return out


@lru_cache(maxsize=512)
def _box_matrix(size: int, side: int) -> Tensor:
    """Pillow's BOX from `size` to `side` pixels as a matrix (size, side): whole pixels enter or do not."""
    scale = size / side
    matrix = torch.zeros(size, side)
    for i in range(side):
        centre = (i + 0.5) * scale
        first, last = max(int(centre - scale / 2 + 0.5), 0), min(int(centre + scale / 2 + 0.5), size)
        inside = [j for j in range(first, last) if -0.5 < (j - centre + 0.5) / scale <= 0.5]
        matrix[inside, i] = 1 / len(inside)
    return matrix


def jpeg_compression(x: Tensor, c: Tensor) -> Tensor:
    """Save as JPEG of quality c[0], rounded, chroma 4:2:0, and read back; libjpeg-turbo through OpenCV, on the CPU."""
    return jpeg(x.to(torch.uint8), c[:, 0].round().int().tolist()).to(x)


def jpeg(images: Tensor, quality: Sequence[int]) -> Tensor:
    """Save each image, uint8 (N, 3, H, W), RGB, as JPEG of its quality, and read it back."""
    arrays = images.permute(0, 2, 3, 1).flip(3).cpu().numpy()
    saved = np.empty_like(arrays)
    for array, q, out in zip(arrays, quality, saved, strict=True):
        _, blob = cv2.imencode(".jpg", array, [cv2.IMWRITE_JPEG_QUALITY, q])
        out[...] = cv2.imdecode(blob, cv2.IMREAD_COLOR)
    return torch.from_numpy(saved).to(images.device).flip(3).permute(0, 3, 1, 2)


def elastic_transform(x: Tensor, c: Tensor, jitter: Tensor, field: Tensor) -> Tensor:
    """Apply a random affine map, then a smooth random displacement.

    `c`: strength of the displacement, σ of its smoothing, reach of the affine anchors, in pixels; `jitter` of the
    three anchors' (x, y), (N, 3, 2), and `field` (dx, dy) before smoothing, (N, 2, H, H), uniform in [−1, 1).
    """
    size = x.shape[-1]
    grid = torch.arange(size, device=x.device, dtype=torch.float64)
    low, high = float(size // 2 - size // 3), float(size // 2 + size // 3)
    anchors = grid.new_tensor([[high, high, 1], [high, low, 1], [low, low, 1]])
    moved = anchors[:, :2] + jitter.double() * c[:, 2, None, None]
    forward = (torch.linalg.inv(anchors) @ moved).transpose(1, 2)
    a, b, e, d, f, g = forward.reshape(-1, 6, 1, 1).unbind(1)
    det = a * f - b * d
    column, row = grid, grid[:, None]
    # OpenCV steps in 1/1024 pixel and interpolates in 1/32.
    source_x = (f / det * column * 1024).round() + ((-b / det * row + (b * g - f * e) / det) * 1024).round()
    source_y = (-d / det * column * 1024).round() + ((a / det * row + (d * e - a * g) / det) * 1024).round()
    x = _sample(x, torch.floor((source_x + 16) / 32) / 32, torch.floor((source_y + 16) / 32) / 32, between=False)
    shift = gaussian_filter(field, c[:, 1], truncate=3.0, reflect=True) * c[:, 0, None, None, None]
    return _sample(x, column.float() + shift[:, 0], row.float() + shift[:, 1], between=True)


def _sample(x: Tensor, column: Tensor, row: Tensor, between: bool) -> Tensor:
    """Bilinear values of x at (row, column), each (N, H, H), mirrored about the edge, or `between` pixels about it."""
    size = x.shape[-1]
    place = torch.stack([column, row], 3)
    place = (2 * place + 1) / size - 1 if between else 2 * place / (size - 1) - 1
    return F.grid_sample(x, place.float(), mode="bilinear", padding_mode="reflection", align_corners=not between)
