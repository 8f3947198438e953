from __future__ import annotations

import math
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rws.edge.monitoring.health import PROBLEMS
from rws.errors import InputError, RwsError
from rws.training.corruptions import (
    CORRUPTIONS,
    OF_CAMERAS,
    WHOLE_SEVERITIES,
    corrupt,
    corrupt_mixed,
    digital,
    seeds_for,
    weather,
)
from rws.training.corruptions.blur import gaussian_filter, glass_blur
from rws.training.corruptions.constants import levels, scale_for
from rws.training.corruptions.noise import poisson
from rws.training.corruptions.registry import constants_of
from rws.training.corruptions.rng import Stream, _mix

torch.set_num_threads(1)

RANDOM = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
    "speckle_noise",
    "spatter",
    *OF_CAMERAS,
)
KNOWN = CORRUPTIONS + OF_CAMERAS
# Stronger with every bit of severity; the others are not at 32 px, neither here nor in the reference.
SMOOTH = tuple(
    name for name in KNOWN if name not in ("elastic_transform", "glass_blur", "frost", "spatter", "saturate")
)


def random_images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Smooth coloured blobs with some texture."""
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=draws)
    image = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=True) * 200 + 25
    return (image + 12 * torch.randn(image.shape, generator=draws)).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("size", [32, 40, 64, 224])
def test_shape_dtype_and_a_visible_change(name, size):
    images = random_images(2, size)
    out = corrupt(images, name, 5, seeds_for(0, 2))
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    assert (out != images).float().mean() > 0.01


def test_people_have_a_word_for_each():
    assert set(PROBLEMS) == set(KNOWN)


@pytest.mark.parametrize("name", KNOWN)
def test_severity_0_changes_nothing(name):
    images = random_images(3, 32)
    severity = torch.tensor([0.0, 4.0, 0.0])
    out = corrupt(images, name, severity, seeds_for(0, 3), as_saved=True)
    assert torch.equal(out[[0, 2]], images[[0, 2]])
    assert not torch.equal(out[1], images[1])
    assert torch.equal(corrupt(images, name, 0, seeds_for(0, 3)), images)


@pytest.mark.parametrize("name", KNOWN)
@given(data=st.data())
@settings(max_examples=5)
def test_a_sample_does_not_depend_on_its_batch(name, data):
    count = data.draw(st.integers(2, 80))
    images, seeds = random_images(count, 32, seed=count), seeds_for(count, count)
    severity = torch.tensor(data.draw(st.lists(st.floats(0, 5, width=32), min_size=count, max_size=count)))
    whole = corrupt(images, name, severity, seeds)
    some = data.draw(st.permutations(range(count)))[: count // 2]
    assert torch.equal(corrupt(images[some], name, severity[some], seeds[some]), whole[some])


@pytest.mark.parametrize("name", KNOWN)
def test_the_seed_decides_the_draw_and_nothing_else_does(name):
    image = random_images(1, 64)
    images, seeds = image.expand(3, -1, -1, -1), torch.tensor([7, 8, 7])
    torch.manual_seed(1)
    np.random.seed(1)
    first = corrupt(images, name, 5, seeds)
    second = corrupt(images, name, 5, seeds)
    assert torch.equal(first, second)
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[0], first[1]) == (name not in RANDOM)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("size", [32, 64])
def test_a_real_severity_lies_between_its_neighbours(name, size):
    images = random_images(12, size)
    errors = [
        float((corrupt(images, name, severity, seeds_for(3, 12)).int() - images.int()).abs().float().mean())
        for severity in (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5)
    ]
    for below, between, above in zip(errors[::2], errors[1::2], errors[2::2], strict=False):
        assert below - 0.02 <= between <= above + 0.02


@pytest.mark.parametrize("name", sorted(WHOLE_SEVERITIES))
def test_some_severities_are_rounded(name):
    images, seeds = random_images(2, 32), seeds_for(0, 2)
    assert torch.equal(corrupt(images, name, 2.6, seeds), corrupt(images, name, 3, seeds))
    assert torch.equal(corrupt(images, name, 0.4, seeds), images)


def test_mixed_equals_one_by_one():
    types = torch.arange(-1, 19).repeat(2)
    count = len(types)
    images, seeds = random_images(count, 32), seeds_for(5, count)
    severities = torch.linspace(0.3, 5, count)
    out = corrupt_mixed(images, types, severities, seeds)
    for i, kind in enumerate(types.tolist()):
        alone = (
            images[i] if kind < 0 else corrupt(images[i, None], CORRUPTIONS[kind], severities[i, None], seeds[i, None])
        )
        assert torch.equal(out[i], alone.view_as(images[i]))
    assert corrupt_mixed(images[:0], types[:0], 3, seeds[:0]).shape == (0, 3, 32, 32)


def test_saved_like_the_published_sets():
    images, seeds = random_images(2, 64), seeds_for(0, 2)
    plain = corrupt(images, "gaussian_noise", 3, seeds)
    assert torch.equal(corrupt(images, "gaussian_noise", 3, seeds, as_saved=True), digital.jpeg(plain, [85, 85]))
    small = random_images(2, 32)
    assert torch.equal(
        corrupt(small, "gaussian_noise", 3, seeds, as_saved=True), corrupt(small, "gaussian_noise", 3, seeds)
    )


def test_the_nearest_scale_by_ratio():
    assert [scale_for(size) for size in (8, 32, 45, 46, 64, 119, 120, 224, 500)] == [
        32,
        32,
        32,
        64,
        64,
        64,
        224,
        224,
        224,
    ]
    assert levels("gaussian_noise", 40) == [[0.04], [0.06], [0.08], [0.09], [0.1]]
    assert constants_of("frost", 64, torch.tensor([0.0, 1.0, 1.5])).tolist() == [
        [1.0, 0.0],
        [1.0, pytest.approx(0.3)],
        [pytest.approx(0.95), pytest.approx(0.35)],
    ]


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_glass_copies_in_scan_order(reach):
    size, passes = 20, 2
    offset = torch.randint(-reach, reach, (3, passes, 2, size, size), generator=torch.Generator().manual_seed(reach))
    images = random_images(3, size)
    ours = glass_blur(images.float(), torch.tensor([[0.0, reach, passes]]).expand(3, 3), offset)
    for image, moves, out in zip(images.numpy(), offset.numpy(), ours.numpy(), strict=True):
        x = image.copy()
        for dx, dy in moves:
            for h in range(size - reach, reach, -1):
                for w in range(size - reach, reach, -1):
                    x[:, h, w] = x[:, h + dy[h, w], w + dx[h, w]]
        assert np.array_equal(x, out)


def test_gaussian_filter_keeps_a_flat_image_and_a_sigma_of_zero():
    flat = torch.full((2, 1, 32, 32), 93.0)
    for reflect in (False, True):
        out = gaussian_filter(flat, torch.tensor([6.4, 20.0]), reflect=reflect)
        assert torch.allclose(out, flat, atol=1e-3)
    image = random_images(1, 32).float()
    assert torch.equal(gaussian_filter(image, torch.zeros(1)), image)


@pytest.mark.parametrize("rate", [0.0, 0.3, 2.0, 3.9, 4.1, 9.0, 40.0, 500.0])
def test_poisson_counts_have_the_right_distribution(rate):
    count = 200_000
    z = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count).float()
    drawn = poisson(torch.full_like(z, rate), z).long().bincount(minlength=2) / count
    k = torch.arange(len(drawn), dtype=torch.float64)
    expected = torch.exp(k * math.log(rate) - rate - torch.lgamma(k + 1)) if rate else (k == 0).double()
    assert (drawn - expected).abs().sum() / 2 < 1e-3


def test_splitmix64():
    golden = 0x9E3779B97F4A7C15 - 2**64
    first_of_seed_0 = 0xE220A8397B1DCDAF - 2**64
    assert _mix(torch.tensor([golden])).tolist() == [first_of_seed_0]


def test_draws_are_uniform_normal_and_whole():
    stream = Stream(seeds_for(0, 4), "test")
    unit, bell, whole = stream.uniform(100_000), stream.normal(100_001), stream.integers(-2, 2, 100_000)
    assert unit.min() >= 0
    assert unit.max() < 1
    assert torch.allclose(unit.histc(10, 0, 1) / unit.numel(), torch.full((10,), 0.1), atol=2e-3)
    assert bell.shape == (4, 100_001)
    assert abs(float(bell.mean())) < 0.01
    assert abs(float(bell.std()) - 1) < 0.01
    assert abs(float((bell.abs() > 2).float().mean()) - 0.0455) < 0.002
    assert whole.unique().tolist() == [-2, -1, 0, 1]
    correlation = torch.corrcoef(torch.stack([*unit, *bell[:, :100_000]]))
    assert (correlation - torch.eye(8)).abs().max() < 0.02


def test_seeds_are_each_sample_s_own():
    assert torch.equal(seeds_for(3, torch.tensor([5, 2])), seeds_for(3, 6)[[5, 2]])
    assert len(torch.cat([seeds_for(base, 1000) for base in range(5)]).unique()) == 5000


IMAGES, SEEDS = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGES, "hail", 1, SEEDS), "unknown corruption 'hail'"),
        ((IMAGES.float(), "fog", 1, SEEDS), "found torch.float32"),
        ((IMAGES[:, :, :7], "fog", 1, SEEDS), "expected uint8 images"),
        ((IMAGES[0], "fog", 1, SEEDS), "expected uint8 images"),
        ((IMAGES, "fog", 5.1, SEEDS), "severities 0…5"),
        ((IMAGES, "fog", torch.tensor([1.0, math.nan]), SEEDS), "severities 0…5"),
        ((IMAGES, "fog", 1, SEEDS[:1]), "one int64 seed"),
        ((IMAGES, "fog", 1, SEEDS.float()), "one int64 seed"),
        ((IMAGES, "fog", torch.ones(3), SEEDS), "one severity"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        corrupt(*arguments)


def test_types_out_of_range_are_refused():
    with pytest.raises(InputError, match="one type"):
        corrupt_mixed(IMAGES, torch.tensor([0, 23]), 1, SEEDS)


@pytest.mark.parametrize("spec", [None, ModuleSpec("imagecorruptions", None)])
def test_frost_says_which_package_it_needs(monkeypatch, spec):
    weather.frost_overlays.cache_clear()
    monkeypatch.setattr(weather, "find_spec", lambda name: spec)
    with pytest.raises(RwsError, match="pip install imagecorruptions-imaug"):
        corrupt(IMAGES, "frost", 1, SEEDS)


def test_an_image_that_is_not_square_is_the_middle_of_one_that_is():
    wide = IMAGES[:, :, 10:22]
    filled = torch.cat([wide.flip(2)[:, :, 2:], wide, wide.flip(2)[:, :, :10]], 2)
    assert torch.equal(corrupt(wide, "fog", 3, SEEDS), corrupt(filled, "fog", 3, SEEDS)[:, :, 10:22])
    tall = corrupt(wide.transpose(2, 3), "contrast", 3, SEEDS)
    assert tall.shape == (len(IMAGES), 3, 32, 12)


def test_frames_of_one_scene_share_the_light_but_not_the_noise():
    grey = torch.full((6, 3, 32, 32), 128, dtype=torch.uint8)
    alone, scene = seeds_for(0, 6), seeds_for(1, 1).expand(6)
    apart = corrupt(grey, "low_light", 3, alone).float().mean((1, 2, 3))
    made = corrupt(grey, "low_light", 3, alone, scene=scene).float()
    assert made.mean((1, 2, 3)).std() < 0.2 * apart.std()
    assert (made[0] != made[1]).any()
