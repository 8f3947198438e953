"""The 19 corruptions of ImageNet-C and four of outdoor cameras, in batches, on CPU and CUDA.

The 19 have the constants of the reference for 32, 64 and 224 pixels.

Source: Hendrycks & Dietterich 2019; github hendrycks/robustness, `ImageNet-C/create_c/make_*_c.py`, commit 8190fe3,
Apache-2.0. docs/benchmarks/corruptions.md says how closely each one matches.
"""

import torch
from torch import Tensor

from rws.errors import InputError, check_known
from rws.training.corruptions import blur, camera, constants, digital
from rws.training.corruptions.registry import REGISTRY, WHOLE_SEVERITIES, constants_of
from rws.training.corruptions.rng import Stream, seeds_for

__all__ = ["CORRUPTIONS", "KNOWN", "OF_CAMERAS", "WHOLE_SEVERITIES", "corrupt", "corrupt_mixed", "seeds_for"]

CORRUPTIONS: tuple[str, ...] = constants.NAMES
"""The 19 names: ImageNet-C's 15 in its order, then speckle_noise, gaussian_blur, spatter, saturate."""
OF_CAMERAS: tuple[str, ...] = tuple(camera.LEVELS)
"""Four more, our own: low_light, infrared, rain, lens_dirt. No mean over the 19 counts them."""
KNOWN: tuple[str, ...] = CORRUPTIONS + OF_CAMERAS

# Pixels worked on at once: on a CPU few enough to stay in its cache, elsewhere few enough to fit its memory.
_CHUNK_CPU, _CHUNK = 64 * 32**2, 64 * 224**2


def corrupt(
    images: Tensor,
    name: str,
    severity: float | Tensor,
    seeds: Tensor,
    as_saved: bool = False,
    scene: Tensor | None = None,
) -> Tensor:
    """Corrupt a batch of images; uint8 (N, 3, H, W) as they are, truncated like the reference, not rounded.

    Args:
        images: uint8, shape (N, 3, H, W), RGB. Constants are those of the nearest of 32, 64, 224 pixels by ratio; one
            that is not square is the middle of a square, filled up with its mirror images.
        severity: 0…5, real, one for all or shape (N,). 0 leaves an image as it is; between whole severities the
            constants are interpolated, save for `WHOLE_SEVERITIES`, which round to the nearest whole one.
        seeds: int64, shape (N,); see `seeds_for`. No sample depends on the batch around it.
        as_saved: add the JPEG of quality 85 with which Tiny-ImageNet-C and ImageNet-C are stored; CIFAR-10-C has none.
        scene: int64, shape (N,), equal for frames of one stream: seeds of what does not change between them, such as
            where drops lie on a lens, or the wind; None: `seeds`.
    Raises InputError if the images, name, severities or seeds are not as above.
    """
    check_known("corruption", [name], KNOWN)
    severity, seeds = _check(images, severity, seeds), seeds.to(images.device)
    if len(images) == 0:
        return images.clone()
    height, width = images.shape[2:]
    if height != width:
        rows, columns = (_mirrored(length, max(height, width)) for length in (height, width))
        square = corrupt(images[:, :, rows][:, :, :, columns], name, severity, seeds, as_saved, scene)
        top, left = ((len(places) - length) // 2 for places, length in ((rows, height), (columns, width)))
        return square[:, :, top : top + height, left : left + width].contiguous()
    size = height
    step = max(1, (_CHUNK_CPU if images.device.type == "cpu" else _CHUNK) // size**2)
    made = []
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        stream = Stream(seeds[part], name, None if scene is None else scene[part].to(images.device))
        made.append(_corrupt_chunk(images[part], name, severity[part], stream, as_saved))
    return torch.cat(made)


def _corrupt_chunk(images: Tensor, name: str, severity: Tensor, stream: Stream, as_saved: bool) -> Tensor:
    corruption, size = REGISTRY[name], images.shape[-1]
    if corruption.whole:
        severity = severity.round()
    x = images.float()
    draws = corruption.draw(stream, constants_of(name, size, severity), size)
    low = severity.floor() if corruption.blend else severity
    out = corruption.apply(x, constants_of(name, size, low), *draws)
    share = (severity - low)[:, None, None, None]
    if bool((share > 0).any()):
        out = out.lerp(corruption.apply(x, constants_of(name, size, severity.ceil()), *draws), share)
    saved = blur.truncate(out).to(torch.uint8)
    if as_saved and constants.scale_for(size) != 32:
        saved = digital.jpeg(saved, [85] * len(saved))
    return torch.where((severity > 0)[:, None, None, None], saved, images)


def corrupt_mixed(
    images: Tensor, types: Tensor, severities: float | Tensor, seeds: Tensor, as_saved: bool = False
) -> Tensor:
    """Corrupt each image of a batch in its own way; the same result as `corrupt` sample by sample.

    Args:
        types: int64, shape (N,), index into `KNOWN`, or −1 to leave an image clean.
        images, severities, seeds, as_saved: as in `corrupt`.
    Raises InputError as `corrupt`, and if a type is not −1…22.
    """
    severities = _check(images, severities, seeds)
    types, seeds = types.to(images.device), seeds.to(images.device)
    if types.shape != seeds.shape or (len(types) and not -1 <= int(types.min()) <= int(types.max()) < len(KNOWN)):
        raise InputError(f"expected one type −1…{len(KNOWN) - 1} an image, found {types.tolist()[:8]}…")
    out = images.clone()
    for index in torch.unique(types).tolist():
        if index >= 0:
            where = (types == index).nonzero()[:, 0]
            out[where] = corrupt(images[where], KNOWN[index], severities[where], seeds[where], as_saved)
    return out


def _mirrored(length: int, side: int) -> Tensor:
    # Which row, or column, of an image is at each place of a square that has it in the middle.
    place = (torch.arange(side) - (side - length) // 2) % (2 * length)
    return torch.minimum(place, 2 * length - 1 - place)


def _check(images: Tensor, severity: float | Tensor, seeds: Tensor) -> Tensor:
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < 8:
        raise InputError(f"expected uint8 images (N, 3, H, W) of 8 pixels or more, found {images.dtype} {shape}")
    severity = torch.as_tensor(severity, dtype=torch.float32, device=images.device)
    if tuple(severity.shape) not in ((), shape[:1]):
        raise InputError(f"expected one severity for all or one per image, found shape {tuple(severity.shape)}")
    severity = severity.expand(shape[0])
    if len(severity) and not 0 <= float(severity.min()) <= float(severity.max()) <= constants.LEVELS:
        raise InputError(f"expected severities 0…5, found {float(severity.min())} … {float(severity.max())}")
    if tuple(seeds.shape) != shape[:1] or seeds.dtype != torch.int64:
        raise InputError(f"expected one int64 seed per image ({shape[0]}), found {seeds.dtype} {tuple(seeds.shape)}")
    return severity
