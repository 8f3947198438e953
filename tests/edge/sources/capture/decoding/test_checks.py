import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rws.edge.faults.frames import scene
from rws.edge.sources.capture.decoding.checks import BLACK, EMPTY, HALF, Checks, FlawCheck, FreezeDetector, image_flaw
from rws.errors import UsageError


def test_a_real_frame_has_no_flaw():
    assert image_flaw(scene(48, 64)) == ""


def test_a_frame_without_pixels_is_empty():
    assert image_flaw(np.empty((0, 4, 3), np.uint8)) == EMPTY


@pytest.mark.parametrize("level", [0, 10])
def test_a_frame_without_light_is_black(level):
    assert image_flaw(np.full((48, 64, 3), level, np.uint8)) == BLACK


def test_one_light_in_the_dark_is_not_a_black_frame():
    night = np.zeros((48, 64, 3), np.uint8)
    night[3, 5] = 200
    assert image_flaw(night) == ""


@pytest.mark.parametrize("fill", [(128, 128, 128), (0, 135, 0), (0, 77, 0)])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_frame_whose_rest_was_filled_in_is_half_decoded(fill, share):
    frame = scene(48, 64)
    frame[round(48 * (1 - share)) :] = fill
    assert image_flaw(frame) == HALF


def test_flat_frames_and_bars_of_other_colours_have_no_flaw():
    letterbox = scene(48, 64)
    letterbox[:8] = letterbox[-8:] = 0
    assert image_flaw(letterbox) == ""
    assert image_flaw(np.full((48, 64, 3), 128, np.uint8)) == ""
    floor = scene(48, 64)
    floor[-12:] = (90, 60, 30)
    assert image_flaw(floor) == ""


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.01, 1.0)), max_size=60))
def test_frozen_means_the_same_for_longer_than_the_patience(steps):
    detector = FreezeDetector(2.0)
    frames = [scene(16, 16, seed) for seed in range(3)]
    at, since, last = 0.0, 0.0, None
    for number, pause in steps:
        at += pause
        if number != last:
            since, last = at, number
        assert detector.frozen(frames[number], at) == (at - since > 2.0)


def test_another_size_is_another_frame():
    detector = FreezeDetector(1.0)
    assert not detector.frozen(np.full((16, 16, 3), 7, np.uint8), 0.0)
    assert not detector.frozen(np.full((32, 16, 3), 7, np.uint8), 5.0)
    assert detector.frozen(np.full((32, 16, 3), 7, np.uint8), 6.5)


def test_what_an_encoder_repeats_is_frozen_only_across_a_key_frame():
    detector, frame = FreezeDetector(2.0), scene(16, 16)
    assert not detector.frozen(frame, 0.0, key=True)
    assert not any(detector.frozen(frame, at, key=False) for at in (1.0, 3.0, 9.0))
    assert detector.frozen(frame, 10.0, key=True)
    assert detector.frozen(frame, 11.0, key=False)
    assert not detector.frozen(scene(16, 16, 1), 12.0, key=True)


BLACK_IMAGE = np.zeros((48, 64, 3), np.uint8)


def test_a_guess_gives_way_if_every_image_is_so_and_says_it():
    check = FlawCheck()
    assert [check.flaw(BLACK_IMAGE) for _ in range(12)] == [BLACK] * 10 + [""] * 2
    assert "every frame looks black" in check.remark


def test_a_guess_holds_once_another_image_has_come():
    check = FlawCheck()
    assert check.flaw(scene(48, 64)) == ""
    assert {check.flaw(BLACK_IMAGE) for _ in range(100)} == {BLACK}
    assert check.remark == ""


def test_what_is_accepted_is_no_flaw_and_emptiness_never_gives_way():
    check = FlawCheck((BLACK,))
    assert check.flaw(BLACK_IMAGE) == ""
    empty = FlawCheck()
    assert {empty.flaw(np.empty((0, 4, 3), np.uint8)) for _ in range(30)} == {EMPTY}


@pytest.mark.parametrize("accept", ["damaged", "undecodable", "dark"])
def test_only_guesses_can_be_accepted(accept):
    with pytest.raises(UsageError, match="known: black, half-decoded, frozen"):
        Checks(accept=(accept,)).check()


def test_an_image_that_never_changes_and_that_reopening_does_not_move_is_a_still():
    detector, still = FreezeDetector(2.0), scene(16, 16)
    assert [detector.frozen(still, at) for at in (0.0, 3.0)] == [False, True]
    detector.reopened()
    assert not detector.frozen(still, 9.0)
    assert not detector.frozen(scene(16, 16, 1), 10.0)
    assert detector.frozen(scene(16, 16, 1), 13.0)
    detector.reopened()
    assert detector.frozen(scene(16, 16, 1), 14.0)
