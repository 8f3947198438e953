"""Weather: snow, frost, fog, spatter.

Images are float32 (N, 3, H, H), range 0…255; `c` is each sample's constants, (N, P); further arguments are draws.
"""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from rws.errors import RwsError
from rws.training.corruptions.blur import clipped_zoom, gaussian_filter, motion_blur, truncate
from rws.training.corruptions.constants import scale_for

_LUMA = (0.299, 0.587, 0.114)


def snow(x: Tensor, c: Tensor, z: Tensor, angle: Tensor) -> Tensor:
    """Whiten the image and blow flakes over it; `z` standard normal (N, H, H), `angle` of the motion in degrees, (N,).

    `c`: mean, deviation, zoom and threshold of the flakes; radius and σ of their motion blur; weight of the image.
    """
    mean, deviation, zoom, threshold, _, _, weight = c[:, :, None, None, None].unbind(1)
    flakes = clipped_zoom(z[:, None] * deviation + mean, zoom.flatten())
    flakes = torch.where(flakes < threshold, 0.0, flakes) * 255
    flakes = motion_blur(truncate(flakes), c[:, 4:6], angle)
    grey = (x * x.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
    white = weight * x + (1 - weight) * torch.maximum(x, grey * 1.5 + 127.5)
    return white + (flakes + flakes.flip(2, 3))


# The reference never uses the 6th.
_FROST_FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
_FROST_RESIZE = {32: 0.2, 64: 0.3, 224: 1.0}


@lru_cache(maxsize=4)
def frost_overlays(size: int) -> tuple[Tensor, Tensor]:
    """Return all pixels of the five overlays, uint8 (3, P), RGB; and their first pixel, height, width, int64 (5, 3).

    Raises RwsError if the package that carries the overlays is not installed.
    """
    # Found, not imported: importing it compiles for seconds, and breaks with some versions of what it needs.
    spec = find_spec("imagecorruptions")
    if spec is None or not spec.submodule_search_locations:
        raise RwsError("frost needs the overlays of `imagecorruptions`, not found: pip install imagecorruptions-imaug")
    folder = Path(spec.submodule_search_locations[0]) / "frost"
    scale = _FROST_RESIZE[scale_for(size)] * size / scale_for(size)
    pixels, places, start = [], [], 0
    for name in _FROST_FILES:
        overlay = cv2.imread(str(folder / name))
        if overlay is None:
            raise RwsError(f"frost overlay {folder / name} cannot be read: reinstall imagecorruptions-imaug")
        overlay = cv2.resize(overlay, (0, 0), fx=scale, fy=scale)[:, :, ::-1]
        height, width = overlay.shape[:2]
        pixels.append(torch.from_numpy(overlay.reshape(-1, 3).T.copy()))
        places.append((start, height, width))
        start += height * width
    return torch.cat(pixels, 1), torch.tensor(places)


def frost(x: Tensor, c: Tensor, which: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return c[0]·x + c[1]·overlay, cropped from `row` and `column` on; `which` of the five; int64 (N,)."""
    size = x.shape[-1]
    pixels, places = frost_overlays(size)
    start, _, width = places.to(x.device)[which].unbind(1)
    pixel = torch.arange(size, device=x.device)
    rows = start[:, None] + (row[:, None] + pixel) * width[:, None] + column[:, None]
    index = (rows[:, :, None] + pixel).flatten()
    crop = pixels.to(x.device)[:, index].view(3, len(x), size, size).transpose(0, 1)
    image, ice = c[:, :, None, None, None].unbind(1)
    return image * x + ice * crop


def fog(x: Tensor, c: Tensor, u: Tensor) -> Tensor:
    """Add c[0] times a plasma whose roughness decays by c[1]; `u` uniform in [−1, 1), (N, M, M), M = `fog_map(H)`."""
    size = x.shape[-1]
    amount = c[:, 0, None, None, None]
    bright = x.amax((1, 2, 3), keepdim=True) / 255
    mist = plasma(u, c[:, 1])[:, None, :size, :size]
    return (x + amount * 255 * mist) * (bright / (bright + amount).clamp(min=1e-6))


def fog_map(size: int) -> int:
    """Return the side of the plasma from which fog for images of `size` pixels is cut: the next power of two."""
    return 1 << (size - 1).bit_length()


def plasma(u: Tensor, decay: Tensor) -> Tensor:
    """Draw a diamond-square fractal, periodic, scaled to 0…1; the random part of each place is its `u`."""
    size = u.shape[-1]
    field = torch.zeros_like(u)
    step, wobble = size, torch.full_like(decay, 100.0)
    while step >= 2:
        half = step // 2
        amplitude = (wobble**2)[:, None, None]
        corner = field[:, ::step, ::step]
        total = corner + corner.roll(-1, 1)
        total = total + total.roll(-1, 2)
        centre = total / 4 + amplitude * u[:, half::step, half::step]
        field[:, half::step, half::step] = centre
        across = centre + centre.roll(1, 1) + corner + corner.roll(-1, 2)
        field[:, ::step, half::step] = across / 4 + amplitude * u[:, ::step, half::step]
        along = centre + centre.roll(1, 2) + corner + corner.roll(-1, 1)
        field[:, half::step, ::step] = along / 4 + amplitude * u[:, half::step, ::step]
        step, wobble = half, wobble / decay
    field -= field.amin((1, 2), keepdim=True)
    return field / field.amax((1, 2), keepdim=True)


_WATER = (175.0, 238.0, 238.0)
_MUD = (63.0, 42.0, 20.0)


def spatter(x: Tensor, c: Tensor, z: Tensor) -> Tensor:
    """Put drops of water (c[5] = 0) or splashes of mud (1) on the lens; `z` standard normal (N, H, H)."""
    mean, deviation, _, threshold, mix, mud = c[:, :, None, None, None].unbind(1)
    liquid = gaussian_filter(z[:, None] * deviation + mean, c[:, 2])
    liquid = torch.where(liquid < threshold, 0.0, liquid)
    out = torch.empty_like(x)
    wet = mud.flatten() == 0
    dirty = ~wet
    out[wet] = x[wet] + _water_mask(liquid[wet]) * mix[wet] * x.new_tensor(_WATER)[:, None, None]
    mask = gaussian_filter((liquid[dirty] > 0).float(), c[dirty, 4]) if bool(dirty.any()) else liquid[dirty]
    mask = torch.where(mask < 0.8, 0.0, mask)
    out[dirty] = x[dirty] * (1 - mask) + mask * x.new_tensor(_MUD)[:, None, None]
    return out


def _water_mask(liquid: Tensor) -> Tensor:
    """Where light breaks in the drops: 0…1, (N, 1, H, H). OpenCV on the CPU; without any drop the mask is 0."""
    masks = []
    for layer in (liquid[:, 0] * 255).to(torch.uint8).cpu().numpy():
        distance = cv2.distanceTransform(255 - cv2.Canny(layer, 50, 150), cv2.DIST_L2, 5)
        distance = cv2.equalizeHist(cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8))
        distance = cv2.filter2D(distance, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
        mask = layer * cv2.blur(distance, (3, 3)).astype(np.float32)
        masks.append(mask / max(mask.max(), 1))
    return torch.from_numpy(np.array(masks, np.float32)).to(liquid.device).view_as(liquid)
