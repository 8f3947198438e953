"""What outdoor cameras meet and ImageNet-C lacks: low light, infrared light at night, rain, a dirty lens.

Images are float32 (N, 3, H, H), range 0…255; `c` is each sample's constants, (N, P); further arguments are draws.
Lengths are parts of the side, so one table serves all sizes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rws.training.corruptions.blur import gaussian_filter
from rws.training.corruptions.rng import Stream

GAMMA = 2.2
DROPS = 40  # at most, on a lens
LAMPS = 3

LEVELS: dict[str, list[list[float]]] = {
    # Light that is left, electrons at full scale⁻¹, read noise (parts of full scale), colour shift.
    "low_light": [
        [0.4, 0.0005, 0.0005, 0.1],
        [0.25, 0.001, 0.001, 0.15],
        [0.15, 0.002, 0.0015, 0.2],
        [0.09, 0.004, 0.002, 0.25],
        [0.05, 0.008, 0.003, 0.3],
    ],
    # Share of grey, falloff of the lamp, weight of the glow, noise.
    "infrared": [
        [1, 0.3, 0.15, 0.01],
        [1, 0.7, 0.25, 0.015],
        [1, 1.3, 0.35, 0.025],
        [1, 2.2, 0.5, 0.03],
        [1, 3.5, 0.7, 0.04],
    ],
    # Streaks per pixel, their length, their opacity, share of the veil.
    "rain": [
        [0.003, 0.04, 0.45, 0.08],
        [0.0045, 0.05, 0.55, 0.15],
        [0.0065, 0.06, 0.65, 0.25],
        [0.009, 0.08, 0.75, 0.35],
        [0.012, 0.1, 0.85, 0.45],
    ],
    # Share of the drops, their size, opacity of dust, share of the smear.
    "lens_dirt": [
        [0.15, 0.6, 0.3, 0.3],
        [0.3, 0.8, 0.45, 0.45],
        [0.5, 1, 0.6, 0.6],
        [0.75, 1.2, 0.75, 0.75],
        [1, 1.5, 0.9, 0.9],
    ],
}
"""Constants of severity 1…5."""


def _columns(c: Tensor) -> tuple[Tensor, ...]:
    return c[:, :, None, None, None].unbind(1)


def low_light(x: Tensor, c: Tensor, z: Tensor, u: Tensor, lamps: Tensor) -> Tensor:
    """Take light away, count electrons, read them with noise, and bring a part of the brightness back.

    The noise is Gaussian, its variance linear in the light (Foi et al. 2008, TIP 17(10), eq. 3), and partly shared by
    neighbours, as demosaicing and denoising leave it. Half of the scenes keep their light around some lamps, half have
    deeper shadows than by day: real scenes are lit unevenly, and often free of noise.

    `z` standard normal like x; `u` uniform in [0, 1), (N, 6): gain, quality of the sensor, grain of the noise, warm or
    cold, lamps, shadows; `lamps` uniform in [0, 1), (N, LAMPS, 3): across, down, size.
    """
    light, full, read, shift = _columns(c)
    gain, quality, grain, warm, lit, deep = _columns(u)
    tint = torch.cat([warm - 0.5, torch.zeros_like(warm), 0.5 - warm], 1) * 2 * shift
    left = light ** (1 - (2 * lit - 1).clamp(min=0) * _near(lamps, x.shape[-1]))
    signal = (x / 255).clamp(0, 1) ** (GAMMA * (1 + (2 * deep - 1).clamp(min=0))) * left * tint.exp()
    coarse = 3 * F.avg_pool2d(F.pad(z, (1, 1, 1, 1), mode="reflect"), 3, 1)
    noise = ((1 - grain) * z + grain * coarse) / ((1 - grain) ** 2 + grain**2 + 2 / 3 * grain * (1 - grain)).sqrt()
    variance = (signal * full + read**2) * 10 ** (-4 * quality)
    seen = (signal + variance.sqrt() * noise).clamp(min=0) * light ** (-0.5 * gain)
    return 255 * seen.clamp(max=1) ** (1 / GAMMA)


def _near(lamps: Tensor, size: int) -> Tensor:
    """Return how near the next lamp is, 0…1, (N, 1, size, size)."""
    place = torch.linspace(0, 1, size, device=lamps.device)
    across, down, extent = (value[:, :, None, None] for value in lamps.unbind(2))
    far = (place - across) ** 2 + (place[:, None] - down) ** 2
    return torch.exp(-far / (0.05 + 0.35 * extent) ** 2).amax(1, keepdim=True)


def infrared(x: Tensor, c: Tensor, z: Tensor, u: Tensor) -> Tensor:
    """See in the light of the camera's own lamp: grey, bright in the middle, with glowing highlights.

    Leaves shine in near infrared, so green counts most. `z` standard normal (N, 1, H, H); `u` uniform in [0, 1),
    (N, 2): where the lamp points.
    """
    share, falloff, weight, sigma = _columns(c)
    size = x.shape[-1]
    grey = (x * x.new_tensor((0.3, 0.8, -0.1))[:, None, None]).sum(1, keepdim=True).clamp(0, 255)
    place = torch.linspace(-1, 1, size, device=x.device)
    across, down = (0.6 * (_columns(u)[k][:, :, 0] - 0.5) for k in (0, 1))
    far = (place - across)[:, :, None, :] ** 2 + (place - down)[:, :, :, None] ** 2
    lit = grey * (1 + 0.4 * falloff).clamp(max=1.6) / (1 + falloff * far / 2) ** 2
    glow = gaussian_filter((lit - 150).clamp(min=0), torch.full((len(x),), 0.05 * size, device=x.device))
    seen = lit + 3 * weight * glow + sigma * 255 * z
    return x.lerp(seen.expand_as(x), share)


def rain(x: Tensor, c: Tensor, u: Tensor, slope: Tensor, kind: Tensor) -> Tensor:
    """Draw bright streaks, near and far ones, and a grey veil over the image (Garg & Nayar 2007, IJCV 75(1)).

    How long they are depends on the exposure as well: short ones are many more and look like grains. `u` uniform in
    [0, 1), (N, 2, H, H), decides where streaks are; `slope` of their fall, columns per row, (N,); `kind` uniform in
    [0, 1), (N, 3): exposure, thickness, which part of the streaks is near.
    """
    density, length, opacity, veil = _columns(c)
    size, (exposure, thickness, near) = x.shape[-1], _columns(kind)
    shorter = 8 ** -(1.5 * exposure - 0.5).clamp(min=0)
    haze = 0.5 * x.mean((1, 2, 3), keepdim=True) + 85
    streaks = torch.zeros_like(x[:, :1])
    for layer, (thick, long) in enumerate(((0.006, 1.0), (0.002, 0.4))):
        number = density * (224 / size) * (0.3 * near, 1.0)[layer] / shorter
        drops = (u[:, layer : layer + 1] < number).float()
        fallen = _sheared(_smeared(drops, (long * length * size * shorter).clamp(min=2).flatten() / 2), slope)
        width = gaussian_filter(fallen, (0.5 + thickness.flatten()) * max(0.4, thick * size / 2))
        streaks = torch.maximum(streaks, width / width.amax((1, 2, 3), keepdim=True).clamp(min=1e-6))
    veiled = x.lerp(haze.expand_as(x), veil)
    return veiled + streaks * opacity * (240 - veiled).clamp(min=0)


def _smeared(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur columns alone: the rows of (N, 1, H, H), by σ pixels, (N,)."""
    at = torch.arange(x.shape[-1], device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * ((at[:, None] - at) / sigma[:, None, None]) ** 2)
    return torch.bmm(weights / weights.sum(2, keepdim=True), x[:, 0])[:, None]


def _sheared(x: Tensor, slope: Tensor) -> Tensor:
    """Shift each row of (N, 1, H, H) along by `slope` times its number; what leaves comes back at the other side."""
    at = torch.arange(x.shape[-1], device=x.device)
    columns = (at + (slope[:, None, None] * at[:, None]).round().long()) % x.shape[-1]
    return x.gather(3, columns[:, None])


def draw_lens(stream: Stream) -> tuple[Tensor, ...]:
    """Draw what lies on a lens: of each drop place, size and rank (N, DROPS, 4), dust, smear, and which prevails."""
    return stream.uniform(DROPS, 4), stream.normal(1, 28, 28), stream.normal(1, 4, 4), stream.uniform(3)


def lens_dirt(x: Tensor, c: Tensor, drops: Tensor, dust: Tensor, smear: Tensor, which: Tensor) -> Tensor:
    """Put drops, in which the scene stands on its head, dark dust and a greasy smear on the lens; see `draw_lens`.

    One of the three prevails. The draws are those of a stream, not of a frame: dirt stays where it is.
    """
    share, scale, opacity, greasy = _columns(c)
    main = (which == which.amax(1, keepdim=True)).float() * 0.7 + 0.3
    size = x.shape[-1]
    soft = gaussian_filter(x, torch.full((len(x),), 0.02 * size, device=x.device))
    mask = _spread(smear, size).sigmoid() * (greasy * main[:, 2, None, None, None])
    seen = x.lerp(0.85 * soft + 30, mask)
    mask = (4 * _spread(dust, size) - 4).sigmoid() * (opacity * main[:, 1, None, None, None])
    seen = seen.lerp(0.3 * seen + 35, mask)
    return _with_drops(seen, soft, drops, share * main[:, 0, None, None, None], scale)


def _spread(z: Tensor, size: int) -> Tensor:
    return F.interpolate(z, (size, size), mode="bicubic", align_corners=False)


def _with_drops(x: Tensor, soft: Tensor, drops: Tensor, share: Tensor, scale: Tensor) -> Tensor:
    size = x.shape[-1]
    place = torch.linspace(-1, 1, size, device=x.device)
    grid = torch.stack([place.expand(size, size), place[:, None].expand(size, size)], 2).expand(len(x), -1, -1, -1)
    nearest = x.new_full((len(x), size, size), 2.0)
    source = grid.clone()
    for drop in drops.unbind(1):
        there = drop[:, 3, None, None] < share[:, 0]
        if not there.any():
            continue
        centre, radius = drop[:, None, None, :2] * 2.2 - 1.1, 0.03 + 0.12 * drop[:, 2, None, None] ** 3
        away = grid - centre
        far = away.square().sum(3).sqrt() / (radius * scale[:, 0])
        closer = (far < nearest) & there
        nearest = torch.where(closer, far, nearest)
        source = torch.where(closer[..., None], centre - 4 * away, source)
    seen = F.grid_sample(soft, source, padding_mode="reflection", align_corners=True)
    seen = seen * (1.1 - 0.5 * nearest[:, None].clamp(max=1) ** 4)  # a dark rim
    return x.lerp(seen, ((1 - nearest) * 8).clamp(0, 1)[:, None])
