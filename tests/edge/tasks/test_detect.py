from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from rws.edge.preprocess import InputSpec, preprocess
from rws.edge.tasks.base import TaskSpec
from rws.edge.tasks.detect import Detect, Detections
from rws.edge.tasks.registry import make_task
from rws.errors import InputError
from support import detectors

FRAME = np.zeros((60, 120, 3), np.uint8)
LETTERBOX = preprocess(FRAME, InputSpec(100, 100, "RGB", fit="letterbox"))[1]
CROP = preprocess(FRAME, InputSpec(30, 30, "RGB"))[1]
NMS = TaskSpec("detect", "nms")


def rows(*boxes):
    return [np.float32([boxes])]


def seen() -> Detections:
    outputs, placement = detectors.outputs()
    return make_task(detectors.TASK, detectors.CLASSES).read(outputs, placement)


def test_a_real_detector_sees_a_rider_a_horse_and_a_dog():
    found = seen()
    assert found.labels[:2] == ["horse", "person"]
    assert "dog" in found.labels
    horse, person = found.boxes[:2]
    height, width = detectors.photo().shape[:2]
    assert (found.boxes >= 0).all()
    assert (found.boxes <= (width, height, width, height)).all()
    assert horse[2] - horse[0] > person[2] - person[0]
    assert person[1] < horse[1]  # who rides is above
    assert found.boxes.dtype == found.confidence.dtype == np.float32


def test_boxes_are_in_the_pixels_of_the_frame():
    task = Detect(NMS, ("a", "b"))  # 120 × 60 is scaled by 5/6 and lies between 25 and 75
    found = task.read(rows((0, 25, 50, 50, 0.9, 1), (50, 0, 100, 75, 0.8, 0), (0, 80, 100, 100, 0.7, 0)), LETTERBOX)
    np.testing.assert_allclose(found.boxes, [[0, 0, 60, 30], [60, 0, 120, 60]], atol=1e-4)  # one was in the padding
    assert found.labels == ["b", "a"]
    np.testing.assert_allclose(task.read(rows((0, 0, 15, 30, 0.9, 1)), CROP).boxes, [[30, 0, 60, 60]])


def test_nothing_is_an_answer():
    task = Detect(NMS, ("a",))
    for outputs in (rows((0, 0, 9, 9, 0.1, 0)), [np.zeros((1, 0, 6), np.float32)]):
        found = task.read(outputs, LETTERBOX)
        assert found.boxes.shape == (0, 4)
        assert task.summary(found) == ("nothing", None)
        assert task.to_dict(found) == {"detections": []}
        assert list(task.seen(found)) == []


def test_the_record_is_plain_and_the_summary_counts():
    task = Detect(NMS, ("dog", "cat", "dog"))  # two classes of one name
    found = task.read(rows((0, 25, 50, 50, 0.91234, 1), (10, 30, 30, 60, 0.5, 2), (10, 30, 40, 60, 0.4, 0)), LETTERBOX)
    assert task.summary(found) == ("2 dog, 1 cat", pytest.approx(0.91234))
    assert list(task.seen(found)) == ["cat", "dog"]
    record = json.loads(json.dumps(task.to_dict(found)))
    assert record["detections"][0] == {"label": "cat", "class_index": 1, "confidence": 0.9123, "box": [0, 0, 60, 30]}
    assert [one["class_index"] for one in record["detections"]] == [1, 2, 0]


def test_a_summary_of_many_classes_is_short():
    task = Detect(NMS, [f"class {index}" for index in range(9)])
    found = task.read(rows(*((0, 30, 50, 50, 0.9, index) for index in range(9))), LETTERBOX)
    assert task.summary(found)[0] == "1 class 0, 1 class 1, 1 class 2, 1 class 3 and 5 more"


@pytest.mark.parametrize("index", [-1, 2, 0.5, 1e9, 3e38])
def test_a_class_without_a_name_is_refused(index):
    expected = "0 to 1; give the names of all classes" if abs(index) in (1, 2) else "whole numbers; name another head"
    with pytest.raises(InputError, match=rf"gives class [\d.e+-]+, expected {expected}"):
        Detect(NMS, ("a", "b")).read(rows((0, 25, 50, 50, 0.9, index)), LETTERBOX)


def test_boxes_in_shares_of_the_input_are_refused():
    with pytest.raises(InputError, match="boxes within 0…1, expected pixels of its input"):
        Detect(NMS, ("a",)).read(rows((0.1, 0.2, 0.6, 0.9, 0.9, 0), (0, 0, 1, 1, 0.8, 0)), LETTERBOX)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(InputError, match="1 of 6 numbers are not finite"):
        Detect(NMS, ("a",)).read(rows((0, value, 50, 50, 0.9, 0)), LETTERBOX)


def test_outputs_of_another_head_are_refused():
    (values,), placement = detectors.outputs()
    task = Detect(replace(detectors.TASK, head="yolov8"), detectors.CLASSES)
    with pytest.raises(InputError, match=r"expected \(1, 84, \*\), for the head yolov8 of 80 classes"):
        task.read([values], placement)
    with pytest.raises(InputError, match="name another with --head"):
        Detect(detectors.TASK, detectors.CLASSES[:79]).check([values.shape])


def test_boxes_go_to_supervision_and_back():
    pytest.importorskip("supervision")
    found = seen()
    theirs = found.to_supervision()
    np.testing.assert_array_equal(theirs.xyxy, found.boxes)
    np.testing.assert_array_equal(theirs.confidence, found.confidence)
    np.testing.assert_array_equal(theirs.class_id, found.class_id)
    assert theirs.data["class_name"].tolist() == found.labels
    theirs.xyxy[:] = 0
    assert found.boxes.any()


def test_boxes_are_drawn_where_they_are():
    task, photo = Detect(detectors.TASK, detectors.CLASSES), detectors.photo()
    found, before = seen(), photo.copy()
    boxes = found.boxes.copy()
    drawn = task.draw(photo, found)
    np.testing.assert_array_equal(photo, before)
    np.testing.assert_array_equal(found.boxes, boxes)
    assert drawn.shape == photo.shape
    assert drawn.dtype == np.uint8
    changed = (drawn != photo).any(axis=2)
    for left, top, right, bottom in found.boxes.round().astype(int).clip(0, (319, 239, 319, 239)):
        assert changed[(top + bottom) // 2, max(left, 0)] or changed[(top + bottom) // 2, right]
        assert changed[max(top - 2, 0) : top + 3, (left + right) // 2].any()
    assert not changed[180:, :60].any()  # no box reaches there


def test_names_that_opencv_cannot_write_are_drawn():
    names = ("犬", "a\x1b[31m" * 1000, "\ud800")
    task = Detect(NMS, names)
    found = task.read(rows(*((0, 25, 50, 50, 0.9, index) for index in range(3))), LETTERBOX)
    for shape in ((60, 120, 3), (1, 1, 3), (2000, 30, 3)):
        frame = np.zeros(shape, np.uint8)
        assert task.draw(frame, found).shape == shape


def test_without_boxes_the_image_stays_as_it_is():
    task = Detect(NMS, ("a",))
    drawn = task.draw(detectors.photo(), task.read([np.zeros((1, 0, 6), np.float32)], LETTERBOX))
    np.testing.assert_array_equal(drawn, detectors.photo())


def test_surer_keeps_boxes_from_a_confidence_on():
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = Detections(boxes, np.float32([0.9, 0.5, 0.25]), np.array([1, 0, 1]), ("a", "b")).surer(0.5)
    np.testing.assert_array_equal(found.boxes, boxes[:2])
    assert (found.confidence.tolist(), found.labels) == ([np.float32(0.9), 0.5], ["b", "a"])
