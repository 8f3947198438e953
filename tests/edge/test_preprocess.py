import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rws.edge.preprocess import InputSpec, TileView, preprocess, to_rgb
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


SPECS = st.builds(
    InputSpec,
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from(["RGB", "BGR", "GREY", "RGBA"]),
    st.sampled_from(["NCHW", "NHWC"]),
    st.sampled_from(["float32", "float16", "uint8"]),
    st.just(255),
    st.sampled_from(["crop", "stretch", "letterbox"]),
)


def formula(image: np.ndarray, spec: InputSpec) -> np.ndarray:
    """What a model is to get for an image of the right size, in plain NumPy."""
    if spec.colour == "GREY":
        image = np.rint(image @ np.array([0.299, 0.587, 0.114]))[..., None]
    elif spec.colour == "BGR":
        image = image[..., ::-1]
    elif spec.colour == "RGBA":
        image = np.concatenate([image, np.full_like(image[..., :1], 255)], axis=2)
    values = image.astype(np.float64) * (spec.high / 255)
    return values.transpose(2, 0, 1) if spec.layout == "NCHW" else values


def pictures(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@given(SPECS, st.sampled_from([1, 255]), st.integers(1, 3), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_every_layout_type_colour_and_fit_is_the_plain_formula(spec, high, factor, more, seed):
    spec = spec if spec.dtype == "uint8" else replace(spec, high=high)
    # An image whose pixels are blocks: shrinking gives one value of each.
    inner = pictures(seed, spec.height, spec.width)
    frame, expected = inner, inner
    if spec.fit == "letterbox":
        # It fills the width and leaves rows free.
        rows = max(1, spec.height - more)
        frame = inner[:rows]
        expected = np.full_like(inner, 114)
        top = (spec.height - rows) // 2
        expected[top : top + rows] = frame
    frame = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    if spec.fit == "crop":
        frame = np.pad(frame, ((0, 0), (factor * more, factor * more), (0, 0)))
    x, _ = preprocess(frame, spec)
    assert x.shape == spec.shape
    assert x.dtype == spec.dtype
    assert x.flags.c_contiguous
    step = spec.high / 255 if spec.colour == "GREY" else 0  # OpenCV rounds a mean of channels by itself
    tolerance = 1e-3 * spec.high if spec.dtype == "float16" else 1e-6
    np.testing.assert_allclose(x.astype(np.float64), formula(expected, spec), rtol=0, atol=step + tolerance)


@given(
    SPECS.map(lambda spec: replace(spec, height=8 * spec.height, width=8 * spec.width)),
    st.integers(1, 400),
    st.integers(1, 400),
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=4),
)
def test_a_box_comes_back_to_where_it_was_in_the_frame(spec, height, width, corners):
    _, placed = preprocess(np.zeros((height, width, 3), np.uint8), spec)
    scale = np.array([placed.scale_x, placed.scale_y] * 2)
    shift = np.array([placed.left, placed.top] * 2)
    boxes = np.array(corners, np.float64).reshape(-1, 4) * [width, height, width, height]
    again = placed.to_frame((boxes * scale + shift).astype(np.float32))
    assert again.dtype == np.float32
    np.testing.assert_allclose(again, boxes, atol=0.1)
    # The whole input lies over the whole frame, or over the part of it that was cropped out.
    whole = placed.to_frame(np.float32([[0, 0, spec.width, spec.height]]))[0]
    assert (whole[:2] >= 0).all()
    assert (whole[2:] <= (width, height)).all()
    if spec.fit != "crop":
        np.testing.assert_allclose(whole, [0, 0, width, height], atol=1e-3)


@pytest.mark.parametrize(
    ("fit", "size"),
    [
        ("letterbox", (60, 120)),
        ("letterbox", (70, 60)),
        ("stretch", (120, 60)),
        ("crop", (60, 120)),
        ("crop", (90, 120)),
    ],
)
def test_a_mark_is_where_the_placement_says(fit, size):
    frame = np.zeros((*size, 3), np.uint8)
    rows, columns = size[0] // 2, size[1] // 2
    frame[rows - 6 : rows + 6, columns - 6 : columns + 6] = 255
    spec = InputSpec(48, 96, "RGB", high=255, fit=fit)
    x, placed = preprocess(frame, spec)
    bright = np.argwhere(x[0] > 127 if fit != "letterbox" else x[0] == 255)
    (top, left), (bottom, right) = bright.min(0), bright.max(0) + 1
    found = placed.to_frame(np.float32([[left, top, right, bottom]]))
    np.testing.assert_allclose(found, [[columns - 6, rows - 6, columns + 6, rows + 6]], atol=1)


@given(*[st.integers(1, 200)] * 2, *[st.integers(1, 60)] * 2, st.sampled_from(["crop", "stretch", "letterbox"]))
def test_what_the_model_sees_is_what_reaches_it(height, width, to_height, to_width, fit):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    spec = InputSpec(to_height, to_width, "RGB", fit=fit)
    x, placed = preprocess(image, spec)
    assert fit == "crop" or placed.seen is None
    left, top, right, bottom = placed.seen or (0, 0, width, height)
    seen = np.ascontiguousarray(image[top:bottom, left:right])
    np.testing.assert_array_equal(preprocess(seen, replace(spec, fit="stretch" if fit == "crop" else fit))[0], x)


def test_boxes_end_at_the_edges_of_the_frame():
    _, placed = preprocess(np.zeros((50, 100, 3), np.uint8), InputSpec(64, 64, "RGB", fit="letterbox"))
    assert placed.to_frame(np.float32([[-9, -9, 99, 99]])).tolist() == [[0, 0, 100, 50]]
    assert placed.to_frame(np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_letterboxing_fills_with_grey_and_centres_as_detectors_are_trained():
    x, placed = preprocess(np.full((2, 4, 3), 200, np.uint8), InputSpec(7, 8, "RGB", high=255, fit="letterbox"))
    assert x[0, :, 0].tolist() == [114, 200, 200, 200, 200, 114, 114]
    assert (placed.scale_x, placed.scale_y, placed.left, placed.top) == (2, 2, 0, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0},
        {"width": 5000},
        {"colour": "rgb"},
        {"layout": "CHW"},
        {"dtype": "int8"},
        {"high": 128},
        {"high": True},
        {"fit": "pad"},
        {"dtype": "uint8", "high": 1},
    ],
    ids=str,
)
def test_an_input_spec_is_strict(change):
    with pytest.raises(ValueError, match="validation error"):
        InputSpec(**{"height": 8, "width": 8, "colour": "RGB", **change})


def test_tiles_are_cut_out_of_the_frame_at_its_own_resolution():
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    found = TileView(48, 2).take(image)
    assert found.shape == TileView(48, 2).shape == (5, 3, 48, 48)
    assert found.dtype == np.uint8
    for tile, (top, left) in zip(found[1:], ((51, 76), (51, 276), (201, 76), (201, 276)), strict=True):
        np.testing.assert_array_equal(tile.transpose(1, 2, 0), image[top : top + 48, left : left + 48])
    corners = TileView(48, 2).take(image, np.zeros((2, 2, 2)))
    np.testing.assert_array_equal(corners[1].transpose(1, 2, 0), image[:48, :48])


def test_tiles_of_a_large_frame_are_means_of_its_pixels():
    image = np.random.default_rng(0).integers(0, 256, (960, 1280, 3), np.uint8)
    means = image.reshape(480, 2, 640, 2, 3).mean((1, 3))
    tile = TileView(48, 1).take(image)[1].transpose(1, 2, 0)
    np.testing.assert_allclose(tile, means[216:264, 296:344], atol=0.51)


@pytest.mark.parametrize("size", [(1, 1), (20, 300), (48, 48), (2000, 60)])
def test_any_frame_has_tiles(size):
    image = np.full((*size, 3), 77, np.uint8)
    found = TileView(48, 2).take(image)
    assert found.shape == (5, 3, 48, 48)
    assert (found == 77).all()


def test_tiles_need_an_image():
    with pytest.raises(InputError, match="expected uint8"):
        TileView().take(np.zeros((10, 10), np.uint8))
