"""Each corruption's three parts: its constants by severity, its draws, and what it makes of an image with both."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rws.training.corruptions import blur, camera, constants, digital, noise, weather
from rws.training.corruptions.rng import Stream

Rows = list[list[Any]]
Draws = tuple[Tensor, ...]


@dataclass(frozen=True)
class Corruption:
    """One corruption: `apply(x, c, *draws)`, where `table` gives `c` for severity 0…5 and `draw` the randomness.

    Between whole severities `c` is interpolated, unless it is `whole`, or the two images are to `blend`, same draws.
    """

    apply: Callable[..., Tensor]
    table: Callable[[Rows], Rows]
    draw: Callable[[Stream, Tensor, int], Draws] = lambda stream, c, size: ()
    whole: bool = False
    blend: bool = False


def _from(*zero: float) -> Callable[[Rows], Rows]:
    return lambda rows: [list(zero), *rows]


def _draw_frost(stream: Stream, c: Tensor, size: int) -> Draws:
    which = stream.scene.integers(0, 5)
    room = weather.frost_overlays(size)[1].to(which.device)[which, 1:] - size
    row, column = (stream.scene.uniform(2) * room).long().unbind(1)
    return which, row, column


def _image_normal(stream: Stream, c: Tensor, size: int) -> Draws:
    return (stream.normal(3, size, size),)


REGISTRY: dict[str, Corruption] = {
    "gaussian_noise": Corruption(noise.gaussian_noise, _from(0), _image_normal),
    # Photons are infinite at severity 0, so interpolate their reciprocal.
    "shot_noise": Corruption(noise.shot_noise, lambda rows: [[0]] + [[1 / c] for (c,) in rows], _image_normal),
    "impulse_noise": Corruption(noise.impulse_noise, _from(0), lambda s, c, n: (s.uniform(3, n, n),)),
    "defocus_blur": Corruption(blur.defocus_blur, blur.defocus_table),
    "glass_blur": Corruption(blur.glass_blur, _from(0, 1, 0), blur.draw_glass, whole=True),
    "motion_blur": Corruption(
        blur.motion_blur, lambda rows: [[rows[0][0], 0], *rows], lambda s, c, n: (s.scene.uniform(low=-45, high=45),)
    ),
    "zoom_blur": Corruption(blur.zoom_blur, blur.zoom_table),
    "snow": Corruption(
        weather.snow,
        _from(0, 0, 1, 1, 1, 1, 1),
        lambda s, c, n: (s.normal(n, n), s.scene.uniform(low=-135, high=-45)),
        blend=True,  # zooming white noise a little, on the way to a larger zoom, would soften the flakes away
    ),
    "frost": Corruption(weather.frost, _from(1, 0), _draw_frost),
    "fog": Corruption(
        weather.fog,
        lambda rows: [[0, rows[0][1]], *rows],
        lambda s, c, n: (s.scene.uniform(weather.fog_map(n), weather.fog_map(n), low=-1, high=1),),
    ),
    "brightness": Corruption(digital.brightness, _from(0)),
    "contrast": Corruption(digital.contrast, _from(1)),
    "elastic_transform": Corruption(
        digital.elastic_transform,
        lambda rows: [[0, rows[0][1], 0], *rows],
        lambda s, c, n: (s.uniform(3, 2, low=-1, high=1), s.uniform(2, n, n, low=-1, high=1)),
    ),
    "pixelate": Corruption(digital.pixelate, _from(1)),
    "jpeg_compression": Corruption(digital.jpeg_compression, _from(100)),
    "speckle_noise": Corruption(noise.speckle_noise, _from(0), _image_normal),
    "gaussian_blur": Corruption(blur.gaussian_blur, _from(0)),
    "spatter": Corruption(
        weather.spatter, lambda rows: [rows[0], *rows], lambda s, c, n: (s.scene.normal(n, n),), whole=True
    ),
    "saturate": Corruption(digital.saturate, _from(1, 0), whole=True),
    "low_light": Corruption(
        camera.low_light,
        _from(1, 0, 0, 0),
        lambda s, c, n: (s.normal(3, n, n), s.scene.uniform(6), s.scene.uniform(camera.LAMPS, 3)),
    ),
    "infrared": Corruption(camera.infrared, _from(0, 0, 0, 0), lambda s, c, n: (s.normal(1, n, n), s.scene.uniform(2))),
    "rain": Corruption(
        camera.rain,
        _from(0, 0.04, 0, 0),
        lambda s, c, n: (s.uniform(2, n, n), s.scene.uniform(low=-0.5, high=0.5), s.scene.uniform(3)),
    ),
    "lens_dirt": Corruption(camera.lens_dirt, _from(0, 0.6, 0, 0), lambda s, c, n: camera.draw_lens(s.scene)),
}

WHOLE_SEVERITIES: frozenset[str] = frozenset(name for name, corruption in REGISTRY.items() if corruption.whole)


@lru_cache(maxsize=256)
def _table(name: str, size: int) -> Tensor:
    rows = camera.LEVELS[name] if name in camera.LEVELS else constants.levels(name, size)
    return torch.tensor(REGISTRY[name].table(rows), dtype=torch.float64)


def constants_of(name: str, size: int, severity: Tensor) -> Tensor:
    """Return the constants for severities (N,) of 0…5, float32 (N, P), linear between whole severities."""
    table = _table(name, size).to(severity.device)
    low = severity.floor().long().clamp(max=constants.LEVELS - 1)
    return torch.lerp(table[low], table[low + 1], (severity.double() - low)[:, None]).float()
