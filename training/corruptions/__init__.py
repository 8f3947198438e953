"""The 19 corruptions of ImageNet-C, in batches, on CPU and CUDA, with the constants for 32, 64 and 224 pixels.

Source: Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations";
github hendrycks/robustness, commit 8190fe3, Apache-2.0. See README.md here for how close each one comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from oracle.errors import InputError
from training.corruptions import blur, constants, digital, noise, weather
from training.corruptions.rng import Stream, seeds_for

__all__ = ["CORRUPTIONS", "WHOLE_SEVERITIES", "corrupt", "corrupt_mixed", "seeds_for"]

CORRUPTIONS: tuple[str, ...] = constants.NAMES
"""The 19 names: ImageNet-C's 15 in its order, then speckle_noise, gaussian_blur, spatter, saturate."""

# Pixels worked on at once: on a CPU few enough to stay in its cache, elsewhere few enough to fit its memory.
_CHUNK_CPU, _CHUNK = 64 * 32**2, 64 * 224**2

Rows = list[list[Any]]
Draws = tuple[Tensor, ...]


@dataclass(frozen=True)
class _Corruption:
    """One corruption: `apply(x, c, *draws)`, where `table` gives `c` for severity 0…5 and `draw` the randomness."""

    apply: Callable[..., Tensor]
    table: Callable[[Rows], Rows]
    draw: Callable[[Stream, Tensor, int], Draws] = lambda stream, c, size: ()
    whole: bool = False


def _from(*zero: float) -> Callable[[Rows], Rows]:
    """The constants as they are, and at severity 0 these."""
    return lambda rows: [list(zero), *rows]


def _draw_frost(stream: Stream, c: Tensor, size: int) -> Draws:
    _, places = weather.frost_overlays(size)
    which = stream.integers(0, 5)
    room = places.to(which.device)[which, 1:] - size
    row, column = (stream.uniform(2) * room).long().unbind(1)
    return which, row, column


def _image_normal(stream: Stream, c: Tensor, size: int) -> Draws:
    return (stream.normal(3, size, size),)


_ALL: dict[str, _Corruption] = {
    "gaussian_noise": _Corruption(noise.gaussian_noise, _from(0), _image_normal),
    # Photons are infinite at severity 0, so interpolate their reciprocal.
    "shot_noise": _Corruption(noise.shot_noise, lambda rows: [[0]] + [[1 / c] for (c,) in rows], _image_normal),
    "impulse_noise": _Corruption(noise.impulse_noise, _from(0), lambda s, c, n: (s.uniform(3, n, n),)),
    "defocus_blur": _Corruption(blur.defocus_blur, blur.defocus_table),
    "glass_blur": _Corruption(blur.glass_blur, _from(0, 1, 0), blur.draw_glass, whole=True),
    "motion_blur": _Corruption(
        blur.motion_blur, lambda rows: [[rows[0][0], 0], *rows], lambda s, c, n: (s.uniform(low=-45, high=45),)
    ),
    "zoom_blur": _Corruption(blur.zoom_blur, blur.zoom_table),
    "snow": _Corruption(
        weather.snow,
        lambda rows: [[*rows[0][:6], 1, 0]] + [[*row, 1] for row in rows],
        lambda s, c, n: (s.normal(n, n), s.uniform(low=-135, high=-45)),
    ),
    "frost": _Corruption(weather.frost, _from(1, 0), _draw_frost),
    "fog": _Corruption(
        weather.fog,
        lambda rows: [[0, rows[0][1]], *rows],
        lambda s, c, n: (s.uniform(weather.fog_map(n), weather.fog_map(n), low=-1, high=1),),
    ),
    "brightness": _Corruption(digital.brightness, _from(0)),
    "contrast": _Corruption(digital.contrast, _from(1)),
    "elastic_transform": _Corruption(
        digital.elastic_transform,
        lambda rows: [[0, rows[0][1], 0], *rows],
        lambda s, c, n: (s.uniform(3, 2, low=-1, high=1), s.uniform(2, n, n, low=-1, high=1)),
    ),
    "pixelate": _Corruption(digital.pixelate, _from(1)),
    "jpeg_compression": _Corruption(digital.jpeg_compression, _from(100)),
    "speckle_noise": _Corruption(noise.speckle_noise, _from(0), _image_normal),
    "gaussian_blur": _Corruption(blur.gaussian_blur, _from(0)),
    "spatter": _Corruption(
        weather.spatter, lambda rows: [rows[0], *rows], lambda s, c, n: (s.normal(n, n),), whole=True
    ),
    "saturate": _Corruption(digital.saturate, _from(1, 0), whole=True),
}

WHOLE_SEVERITIES: frozenset[str] = frozenset(name for name, corruption in _ALL.items() if corruption.whole)
"""Those that exist at whole severities only: between them no constant could be interpolated."""


@lru_cache(maxsize=256)
def _table(name: str, size: int) -> Tensor:
    return torch.tensor(_ALL[name].table(constants.levels(name, size)), dtype=torch.float64)


def _constants(name: str, size: int, severity: Tensor) -> Tensor:
    """Constants of each sample, float32 (N, P), linear between whole severities."""
    table = _table(name, size).to(severity.device)
    low = severity.floor().long().clamp(max=constants.LEVELS - 1)
    return torch.lerp(table[low], table[low + 1], (severity.double() - low)[:, None]).float()


def corrupt(images: Tensor, name: str, severity: float | Tensor, seeds: Tensor, as_saved: bool = False) -> Tensor:
    """Corrupt a batch of images.

    Args:
        images: uint8, shape (N, 3, H, H), RGB. Constants are those of the nearest of 32, 64, 224 pixels by ratio.
        name: one of `CORRUPTIONS`.
        severity: 0…5, real, one for all or shape (N,). 0 leaves an image as it is; between whole severities the
            constants are interpolated, save for glass_blur, spatter and saturate, which round to the nearest whole one.
        seeds: int64, shape (N,), on the device of `images`; see `seeds_for`. Sample i depends on
            (images[i], name, severity[i], seeds[i]) alone, not on the batch around it.
        as_saved: add the JPEG of quality 85 with which Tiny-ImageNet-C and ImageNet-C are stored. No effect where the
            32-pixel constants apply, since CIFAR-10-C is stored as it is, nor on images of severity 0.
    Returns:
        uint8, shape (N, 3, H, H), truncated like the reference, not rounded.
    Raises:
        InputError: if the images, name, severities or seeds are not as above.
    """
    if name not in _ALL:
        raise InputError(f"unknown corruption {name!r}; expected one of {', '.join(CORRUPTIONS)}")
    severity = _check(images, severity, seeds)
    if len(images) == 0:
        return images.clone()
    size = images.shape[-1]
    step = max(1, (_CHUNK_CPU if images.device.type == "cpu" else _CHUNK) // size**2)
    parts = [
        _corrupt_chunk(images[i : i + step], name, severity[i : i + step], seeds[i : i + step], as_saved)
        for i in range(0, len(images), step)
    ]
    return torch.cat(parts)


def _corrupt_chunk(images: Tensor, name: str, severity: Tensor, seeds: Tensor, as_saved: bool) -> Tensor:
    corruption, size = _ALL[name], images.shape[-1]
    if corruption.whole:
        severity = severity.round()
    c = _constants(name, size, severity)
    out = corruption.apply(images.float(), c, *corruption.draw(Stream(seeds, name), c, size))
    saved = blur.truncate(out).to(torch.uint8)
    if as_saved and constants.scale_for(size) != 32:
        saved = digital.jpeg(saved, [85] * len(saved))
    return torch.where((severity > 0)[:, None, None, None], saved, images)


def corrupt_mixed(
    images: Tensor, types: Tensor, severities: float | Tensor, seeds: Tensor, as_saved: bool = False
) -> Tensor:
    """Corrupt each image of a batch in its own way; the same result as `corrupt` sample by sample.

    Args:
        images: uint8, shape (N, 3, H, H), RGB.
        types: int64, shape (N,), index into `CORRUPTIONS`, or −1 to leave an image clean.
        severities: 0…5, one for all or shape (N,).
        seeds: int64, shape (N,).
        as_saved: as in `corrupt`.
    Returns:
        uint8, shape (N, 3, H, H).
    Raises:
        InputError: as `corrupt`, and if a type is not −1…18.
    """
    severities = _check(images, severities, seeds)
    if types.shape != seeds.shape or (len(types) and not -1 <= int(types.min()) <= int(types.max()) < len(CORRUPTIONS)):
        raise InputError(f"expected one type −1…{len(CORRUPTIONS) - 1} an image, found {types.tolist()[:8]}…")
    out = images.clone()
    for index in torch.unique(types).tolist():
        if index >= 0:
            where = (types == index).nonzero()[:, 0]
            out[where] = corrupt(images[where], CORRUPTIONS[index], severities[where], seeds[where], as_saved)
    return out


def _check(images: Tensor, severity: float | Tensor, seeds: Tensor) -> Tensor:
    """Severities as a tensor of one an image, after everything was found to fit."""
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or shape[2] < 8:
        raise InputError(f"expected square uint8 images (N, 3, H, H) of 8 pixels or more, found {images.dtype} {shape}")
    severity = torch.as_tensor(severity, dtype=torch.float32, device=images.device).expand(shape[0])
    if len(severity) and not 0 <= float(severity.min()) <= float(severity.max()) <= constants.LEVELS:
        raise InputError(f"expected severities 0…5, found {float(severity.min())} … {float(severity.max())}")
    if tuple(seeds.shape) != shape[:1] or seeds.dtype != torch.int64:
        raise InputError(f"expected one int64 seed an image ({shape[0]}), found {seeds.dtype} {tuple(seeds.shape)}")
    return severity
