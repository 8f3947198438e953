from fractions import Fraction

import numpy as np
import pytest

from rws.benchmarks.demo.camera import CLIP, SHOT
from rws.benchmarks.streams.clips import (
    ARMS,
    OBSERVING,
    Change,
    Step,
    follow,
    found_again,
    measure_clips,
    read_clip,
    score,
    truth,
)
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import DETECTOR_BUNDLE
from rws.edge.sinks.mp4 import VideoFile
from rws.edge.tasks.detect import Detections
from rws.errors import InputError
from rws.oracle.belief import CLEAN, certain
from support.fakes import write_video

FOG = Change("fog", 4, grow=2, stay=1, go=1, clear=1)
LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)


def boxes(*rows):
    """Detections of rows: left, top, right, bottom, confidence, class."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64), ("car", "bus"))


CAR, BUS, FAR = (0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 1), (50, 50, 60, 60, 0.5, 0)


def test_a_corruption_grows_stays_and_goes_between_clear_frames():
    frames = truth([FOG, Change("rain", 2, 0, 1, 0, clear=0.5)], clear=1, fps=4)
    assert [name for name, _ in frames] == ["clean"] * 4 + ["fog"] * 15 + ["clean"] * 4 + ["rain"] * 3 + ["clean"] * 2
    severities = [severity for _, severity in frames]
    assert severities[4:19] == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, *[4] * 5, 3, 2, 1]
    assert all((severity > 0) == (name != CLEAN) for name, severity in frames)


def test_less_than_a_frame_per_second_is_refused():
    with pytest.raises(InputError, match="expected 1 or more"):
        truth([FOG], clear=1, fps=0.5)


def test_a_clip_is_read_at_the_rate_that_is_asked_for(tmp_path):
    with VideoFile(tmp_path / "clip.mp4", (64, 48), Fraction(10), timed=False, endless=False) as video:
        for value in range(20, 220, 10):
            video.write(np.full((48, 64, 3), value, np.uint8))
    assert len(read_clip(tmp_path / "clip.mp4", 10)) == 20
    assert [image.mean() for image in read_clip(tmp_path / "clip.mp4", 2)] == pytest.approx(
        [20, 50, 100, 150, 200], abs=12
    )


def test_each_box_is_found_at_most_once_by_the_surest_of_its_class():
    assert found_again(boxes(CAR, FAR, CAR, BUS), boxes(CAR)).tolist() == [True, False, False, False]
    assert found_again(boxes(CAR), boxes()).tolist() == [False]
    assert found_again(boxes((0, 0, 10, 4, 0.9, 0)), boxes(CAR)).tolist() == [False]
    assert found_again(boxes((0, 0, 10, 6, 0.9, 0)), boxes(CAR)).tolist() == [True]


def step(number, name, severity, believed, mix, found):
    belief, image = certain(("fog",), LEVELS, believed, 3.0), np.zeros((8, 8, 3), np.uint8)
    return Step(
        number,
        image,
        image,
        name,
        severity,
        dict.fromkeys(OBSERVING, belief),
        dict.fromkeys(ARMS, mix),
        dict.fromkeys(ARMS, found) | {"clear": boxes(CAR, FAR)},
    )


def test_stretches_are_scored_by_their_boxes_names_and_switches():
    both, half = boxes(CAR, FAR), boxes(CAR)
    clear, fog, late = score(
        [
            step(0, CLEAN, 0.0, CLEAN, {}, both),
            step(1, CLEAN, 0.0, "fog", {"fog": 1.0}, half),
            step(2, "fog", 0.5, CLEAN, {}, boxes()),
            step(3, "fog", 1.0, CLEAN, {}, half),
            step(4, "fog", 2.0, "fog", {"fog": 0.5}, both),
            step(5, "fog", 2.0, "fog", {"fog": 1.0}, both),
            step(6, CLEAN, 0.0, "fog", {"fog": 1.0}, both),
        ],
        fps=2.0,
    )
    assert clear["f1"] == dict.fromkeys(ARMS, pytest.approx(100 * 2 * 3 / 7))
    assert clear["trained"] == {"named": 50.0, "delay_s": 0.0, "patched": 50.0, "switches": 1, "patches": 1}
    assert (fog["severity"], fog["frames"], fog["f1"]["std"]) == (2.0, 4, pytest.approx(200 * 5 / 13))
    observed = {"named": pytest.approx(200 / 3), "delay_s": 0.5, "patched": 50.0, "switches": 3, "patches": 2}
    assert fog["frame"] == observed
    assert late["trained"] == {"named": 0.0, "delay_s": None, "patched": 100.0, "switches": 0, "patches": 0}


@pytest.fixture(scope="module")
def followed():
    images = read_clip(CLIP, 25.0)[SHOT][:3]
    return images, list(follow(Bundle.load(DETECTOR_BUNDLE), images, [(CLEAN, 0.0)] * 4 + [("fog", 4.0)] * 3, 10.0))


def test_a_clip_is_followed_forwards_and_backwards_in_one_fog(followed):
    images, steps = followed
    for each, place in zip(steps, (0, 1, 2, 1, 0, 1, 2), strict=True):
        np.testing.assert_array_equal(each.clear, images[place])
    assert all((each.image == each.clear).all() for each in steps[:4])
    before, after = (each.image.astype(int) - each.clear for each in steps[4::2])
    assert np.abs(before).mean() > 10
    assert np.abs(before - after).mean() < 0.5 * np.abs(before).mean()


def test_fog_is_named_and_patched_and_clear_frames_are_not(followed):
    clear, foggy = followed[1][:4], followed[1][4:]
    assert all(each.mixes[arm] == {} for each in clear for arm in ARMS)
    assert all(each.mixes["std"] == {} and each.mixes["perfect"] == {"fog": 1.0} for each in foggy)
    rows = score(followed[1], 10.0)
    assert rows[0]["f1"] == dict.fromkeys(ARMS, 100.0)
    assert rows[1]["f1"]["perfect"] > rows[1]["f1"]["std"]
    assert rows[1]["trained"]["named"] > 50


def test_a_classifier_draws_no_boxes(tmp_path):
    with pytest.raises(InputError, match="draws no boxes"):
        measure_clips(Bundle.load("cifar10"), [str(write_video(tmp_path / "clip.mp4", range(90, 99)))], 1.0)
