import numpy as np
import pytest
import torch

from rws.edge.faults.frames import scene
from rws.errors import InputError
from rws.training.corruptions import KNOWN, corrupt, seeds_for
from rws.training.corruptions.frames import corrupter
from rws.training.jobs.seeds import derive_seed

IMAGE = scene(32, 32)


def test_a_frame_is_corrupted_as_the_training_images_are():
    made = corrupter("rain:3", seed=5)(IMAGE, 7)
    pixels = torch.from_numpy(IMAGE.transpose(2, 0, 1).copy())[None]
    seeds = seeds_for(derive_seed(5, "frames", "rain", 3), torch.tensor([7, -1]))
    expected = corrupt(pixels, "rain", 3.0, seeds[:1], scene=seeds[1:])
    np.testing.assert_array_equal(made, expected[0].numpy().transpose(1, 2, 0))
    assert (made.shape, made.dtype) == (IMAGE.shape, np.uint8)


def test_each_frame_has_its_own_noise_and_the_same_frame_the_same():
    apply = corrupter("gaussian_noise:3")
    np.testing.assert_array_equal(apply(IMAGE, 1), apply(IMAGE, 1))
    assert (apply(IMAGE, 1) != apply(IMAGE, 2)).any()


@pytest.mark.parametrize("name", ["lens_dirt", "fog", "frost", "spatter", "motion_blur"])
def test_what_belongs_to_the_scene_stays_where_it_is(name):
    apply = corrupter(f"{name}:5")
    np.testing.assert_array_equal(apply(IMAGE, 1), apply(IMAGE, 2))
    assert (apply(IMAGE, 1) != corrupter(f"{name}:5", seed=1)(IMAGE, 1)).any()


@pytest.mark.parametrize("name", ["low_light", "infrared"])
def test_light_falls_as_in_the_frame_before_and_noise_does_not(name):
    flat = np.full((64, 64, 3), 140, np.uint8)
    one, next_one, another = (
        corrupter(f"{name}:5", seed)(flat, number).astype(float) for seed, number in ((0, 1), (0, 2), (3, 1))
    )
    assert (one != next_one).any()
    light, same, other = (image.reshape(8, 8, 8, 8, 3).mean((1, 3)) for image in (one, next_one, another))
    assert 3 * np.abs(light - same).mean() < np.abs(light - other).mean()


def test_layers_are_laid_over_one_another_and_severity_0_changes_nothing():
    both, fog = corrupter("fog:3+gaussian_noise:2")(IMAGE, 0), corrupter("fog:3")(IMAGE, 0)
    assert (both != fog).any()
    np.testing.assert_array_equal(corrupter("fog:0")(IMAGE, 0), IMAGE)


@pytest.mark.parametrize("spec", ["fog", "fog:6", "hail:3", "fog:3+", "fog:-1", ""])
def test_an_unknown_corruption_is_refused(spec):
    with pytest.raises(InputError, match="expected TYPE:SEVERITY"):
        corrupter(spec)


@pytest.mark.parametrize("name", KNOWN)
def test_frames_need_not_be_square(name):
    image = scene(48, 64)
    made = corrupter(f"{name}:5")(image, 0)
    assert made.shape == image.shape
    assert (made != image).mean() > 0.1


def test_in_large_frames_grain_and_blur_grow_with_the_side():
    image = scene(961, 1000)
    noisy = corrupter("gaussian_noise:3")(image, 0)
    assert noisy.shape == image.shape
    np.testing.assert_array_equal(noisy[::2, 1::2], corrupter("gaussian_noise:3")(image[::2, 1::2], 0))
    grain = noisy[:960].astype(int) - image[:960]
    assert np.corrcoef(grain[::2].ravel(), grain[1::2].ravel())[0, 1] > 0.5
