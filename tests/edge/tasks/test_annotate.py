from dataclasses import replace

import cv2
import numpy as np
import pytest

from rws.edge.preprocess import InputSpec, preprocess
from rws.edge.tasks.annotate import GREEN, ORANGE, TEXT, annotate, draw
from rws.oracle.belief import certain
from support.fakes import CORRUPTIONS, LEVELS, make_result, spread_belief


def count(drawn, colour):
    return int((drawn == np.uint8(colour)).all(axis=-1).sum())


def bluish(drawn):
    # Text is drawn with soft edges: few of its pixels, or none, have the full colour.
    return int((drawn[..., 2].astype(int) - drawn[..., 0] > 50).sum())


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(32, 32, 10), (64, 64, 5), (48, 65, 7), (240, 320, 2), (360, 640, 1)]
)
def test_small_frames_grow_by_whole_pixels(height, width, factor):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    drawn = annotate(image, make_result())
    np.testing.assert_array_equal(drawn[: height * factor : factor, : width * factor : factor], image)
    assert 320 <= len(drawn) <= 720
    assert drawn.shape[0] % 2 == drawn.shape[1] % 2 == 0
    assert drawn.dtype == np.uint8


@pytest.mark.parametrize(("height", "width"), [(1080, 1920), (1, 3000), (3000, 1), (719, 333), (1, 1)])
def test_extreme_frames_stay_within_bounds(height, width):
    drawn = annotate(np.full((height, width, 3), 90, np.uint8), make_result())
    assert 320 <= drawn.shape[0] <= 720
    assert drawn.shape[1] <= 1280 + 526
    assert drawn.shape[0] % 2 == drawn.shape[1] % 2 == 0
    assert count(drawn, (90, 90, 90)) > 0


def test_clean_is_green_and_a_corruption_orange_and_a_mix_blue():
    image = np.zeros((32, 32, 3), np.uint8)
    clean = annotate(image, make_result(belief=certain(CORRUPTIONS, LEVELS, "clean")))
    foggy = annotate(image, make_result(mix={"fog": 0.8}))
    assert count(clean, GREEN) > 800
    assert count(clean, ORANGE) == bluish(clean) == 0
    assert count(foggy, ORANGE) > 800
    assert count(foggy, GREEN) == 0
    assert bluish(foggy) > 50


def test_the_size_does_not_depend_on_the_result():
    image = np.zeros((48, 64, 3), np.uint8)
    long = make_result(label="a class with a very long name, longer than any panel", mix={"fog": 1, "snow": -1, "c": 2})
    sizes = {annotate(image, result).shape for result in (make_result(), long, make_result(belief=spread_belief()))}
    assert len(sizes) == 1


def test_long_names_are_cut_before_the_percentage():
    image = np.zeros((32, 32, 3), np.uint8)
    short = annotate(image, make_result(label=""))[:60, 320:]
    long = annotate(image, make_result(label="W" * 60))[:60, 320:]
    np.testing.assert_array_equal(long[:, 224:], short[:, 224:])
    assert not np.array_equal(long[:, :224], short[:, :224])


def test_of_a_long_path_the_end_is_shown():
    image = np.zeros((32, 32, 3), np.uint8)
    names = ("a" * 99 + "/1.png", "a" * 120 + "/1.png", "a" * 99 + "/2.png")
    one, longer, two = (annotate(image, replace(make_result(), name=name)) for name in names)
    np.testing.assert_array_equal(one, longer)
    assert not np.array_equal(one, two)


@pytest.mark.parametrize(("height", "width"), [(400, 600), (700, 400), (1080, 1920), (48, 64)])
def test_what_the_model_does_not_see_is_dark_and_a_line_surrounds_the_rest(height, width):
    image = np.full((height, width, 3), 100, np.uint8)
    placement = preprocess(image, InputSpec(32, 32, "RGB"))[1]
    drawn = draw(image, replace(make_result(), seen=placement.seen))
    rows, columns = drawn.shape[:2]
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    seen = drawn[top : top + side, left : left + side]
    assert (seen[2:-2, 2:-2] == 100).all()
    assert count(drawn, (40, 40, 40)) == pytest.approx(rows * columns - side * side, abs=6 * side)
    assert count(drawn, TEXT) == pytest.approx(2 * side, abs=8)
    np.testing.assert_array_equal(annotate(image, replace(make_result(), seen=placement.seen))[:rows, :columns], drawn)


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_a_frame_that_the_model_sees_as_a_whole_stays_as_it_is(fit):
    image = np.random.default_rng(0).integers(0, 256, (333, 481, 3), dtype=np.uint8)
    placement = preprocess(image, InputSpec(64, 96, "RGB", fit=fit))[1]
    assert placement.seen is None
    np.testing.assert_array_equal(draw(image, replace(make_result(), seen=placement.seen)), image)


def test_the_frame_itself_is_left_alone():
    image = np.full((400, 400, 3), 9, np.uint8)
    annotate(image, make_result())
    assert (image == 9).all()
    assert cv2.countNonZero(image[..., 0]) == 400 * 400
