import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rws.edge.preprocess import InputSpec, preprocess, to_rgb
from rws.errors import InputError

SMALL = InputSpec(4, 4, "RGB")


def test_an_image_of_the_right_size_keeps_its_exact_values():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    x = preprocess(image, InputSpec(5, 7, "RGB"))[0]
    assert x.flags.c_contiguous
    np.testing.assert_array_equal(x, image.transpose(2, 0, 1).astype(np.float32) / np.float32(255))


@given(*[st.integers(1, 40)] * 4)
def test_any_size_fits(height, width, to_height, to_width):
    image = np.full((height, width, 3), (255, 51, 0), np.uint8)
    x = preprocess(image, InputSpec(to_height, to_width, "RGB"))[0]
    assert x.shape == (3, to_height, to_width)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean(axis=(1, 2)), [1, 0.2, 0], atol=1e-6)


def test_the_centre_of_the_longer_side_is_kept():
    image = np.zeros((4, 12, 3), np.uint8)
    image[:, 4:8] = 255
    np.testing.assert_array_equal(preprocess(image, SMALL)[0], np.ones((3, 4, 4), np.float32))
    np.testing.assert_array_equal(preprocess(image.transpose(1, 0, 2), SMALL)[0], np.ones((3, 4, 4), np.float32))


def test_shrinking_averages_areas():
    image = np.zeros((8, 8, 3), np.uint8)
    image[::2, ::2] = 200
    np.testing.assert_allclose(preprocess(image, SMALL)[0], 50 / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "advice"),
    [
        ("cat.jpg", r"the name 'cat\.jpg'.*read the image first"),
        (Path("cat.jpg"), r"the name 'cat\.jpg'.*read the image first"),
        (None, "found None.*cannot read"),
        ([np.zeros((4, 4, 3), np.uint8)], "found list.*one image"),
        (b"jpeg", "found bytes.*NumPy array"),
        (np.zeros((4, 4), np.uint8), "it is grey.*COLOR_GRAY2RGB"),
        (np.zeros((4, 4, 1), np.uint8), "it is grey"),
        (np.zeros((4, 4, 4), np.uint8), "fourth channel"),
        (np.zeros((3, 4, 4, 3), np.uint8), "one image with the channels last"),
        (np.zeros((3, 5, 5), np.uint8), "channels last"),
        (np.array(5, np.uint8), "channels last"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4, 3), np.float32), "0…255.*uint8"),
        (np.zeros((4, 4, 3), np.int64), "uint8"),
    ],
)
def test_anything_but_an_image_is_refused_with_what_to_do(image, advice):
    for refuse in (lambda: preprocess(image, SMALL), lambda: to_rgb(image, "bgr")):
        with pytest.raises(InputError, match=r"expected uint8 of shape \(H, W, 3\); ") as caught:
            refuse()
        assert re.search(advice, str(caught.value))
        assert "\n" not in str(caught.value)
