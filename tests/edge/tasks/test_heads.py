from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from rws.edge.tasks.base import TaskSpec
from rws.edge.tasks.heads import MAX_BOXES, MAX_CANDIDATES, Boxes, check_head, decode, guess_head, suppress
from rws.errors import InputError, UsageError
from support import detectors

SIZE = (96, 128)  # 12 × 16, 6 × 8 and 3 × 4 cells
CELLS = 12 * 16 + 6 * 8 + 3 * 4
WANTED = np.float32([[10, 20, 40, 60], [50, 0, 128, 96], [-6, 70, 20, 110], [64, 64, 96, 95]])
IDS, SURE = [2, 0, 1, 2], [0.9, 0.8, 0.7, 0.3]


def spec(head, confidence=0.25, iou=0.45):
    return TaskSpec("detect", head, confidence, iou)


def centred(boxes):
    return np.hstack([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]])


def places(count, objectness=True):
    """Rows of box, objectness and three classes for `count` places, in which only the wanted boxes are sure."""
    rows = np.zeros((count, 8), np.float32)
    rows[:, :4], rows[:, 4:] = (5, 5, 8, 8), 0.01
    at = np.linspace(3, count - 2, len(WANTED)).astype(int)
    rows[at, :4] = centred(WANTED)
    rows[at, 4] = 0.95
    rows[at, np.add(IDS, 5)] = np.divide(SURE, 0.95 if objectness else 1)
    return rows, at


def check_found(boxes):
    np.testing.assert_allclose(boxes.xyxy, WANTED, atol=1e-3)
    np.testing.assert_allclose(boxes.confidence, SURE, atol=1e-5)
    assert boxes.class_id.tolist() == IDS


def test_yolov5_multiplies_objectness_and_class():
    rows, _ = places(3 * CELLS)
    check_found(decode(spec("yolov5"), [rows[None]], SIZE))
    assert len(decode(spec("yolov5", confidence=0.75), [rows[None]], SIZE).xyxy) == 2


def test_yolov8_has_no_objectness_and_its_channels_first():
    rows, _ = places(CELLS, objectness=False)
    check_found(decode(spec("yolov8"), [np.delete(rows, 4, axis=1).T[None]], SIZE))


@pytest.mark.parametrize("strides", [(8, 16, 32), (8, 16, 32, 64), (16, 32)])
def test_yolox_counts_from_the_cells_of_its_grids(strides):
    size = (128, 192)
    grid = [(x, y, s) for s in strides for y in range(size[0] // s) for x in range(size[1] // s)]
    rows, at = places(len(grid))
    for index in at:
        x, y, stride = grid[index]
        rows[index, :2] = rows[index, :2] / stride - (x, y)
        rows[index, 2:4] = np.log(rows[index, 2:4] / stride)
    check_found(decode(spec("yolox"), [rows[None]], size))


def test_fastestdet_is_read_as_its_authors_do():
    (values,), _ = detectors.outputs()
    wanted = []
    for y in range(22):
        for x in range(22):
            objectness, dx, dy, w, h, *classes = values[0, :, y, x].tolist()
            score = objectness**0.6 * max(classes) ** 0.4
            if score > 0.3:
                centre_x, centre_y = (x + math.tanh(dx)) * 16, (y + math.tanh(dy)) * 16
                half_w, half_h = (176 / (1 + math.exp(-side)) for side in (w, h))
                box = (centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h)
                wanted.append((score, classes.index(max(classes)), box))
    wanted.sort(key=lambda one: -one[0])
    found = decode(spec("fastestdet", 0.3, iou=1), [values], (352, 352))
    assert len(found.xyxy) == len(wanted) > 10
    np.testing.assert_allclose(found.xyxy, [box for *_, box in wanted], atol=1e-3)
    np.testing.assert_allclose(found.confidence, [score for score, *_ in wanted], atol=1e-5)
    assert found.class_id.tolist() == [index for _, index, _ in wanted]
    kept = decode(spec("fastestdet", 0.3), [values], (352, 352))
    assert 0 < len(kept.xyxy) < len(found.xyxy)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_boxes_after_suppression_come_in_three_forms(dtype):
    boxes, scores = WANTED[None].astype(dtype), np.array([SURE], dtype)
    padding = [(0, 0), (0, 2), (0, 0)]
    boxes, scores = np.pad(boxes, padding), np.pad(scores, padding[:2])
    for ids in (np.array([[*IDS, -1, -1]], np.int64), np.array([[*IDS, -1, -1]], dtype)):
        for outputs in (
            [np.concatenate([boxes, scores[..., None], ids[..., None]], axis=2)],
            [np.concatenate([boxes, scores[..., None]], axis=2), ids],
            [boxes, scores, ids],
        ):
            check_head("nms", [output.shape for output in outputs], 3)
            found = decode(spec("nms"), outputs, SIZE)
            np.testing.assert_allclose(found.xyxy, WANTED)
            assert found.class_id.tolist() == IDS


def test_only_boxes_of_one_class_suppress_each_other():
    xyxy = np.float32([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [-30, -30, -20, -20], [-29, -30, -19, -20]])
    boxes = Boxes(xyxy, np.float32([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([0, 0, 79, 3, 3]))
    found = suppress(boxes, 0.5)
    assert found.xyxy.tolist() == xyxy[[0, 2, 3]].tolist()
    assert found.class_id.tolist() == [0, 79, 3]
    assert len(suppress(boxes, 0.9).xyxy) == 5
    assert len(suppress(boxes.take(np.zeros(0, int)), 0.5).xyxy) == 0


HOSTILE = {
    "all sure": np.ones((1, 3 * CELLS, 8)),
    "huge": np.where(np.arange(8) < 4, 3e38, 0.9) * np.ones((1, 3 * CELLS, 8)),
    "negative": np.where(np.arange(8) < 4, -3e38, 0.9) * np.ones((1, 3 * CELLS, 8)),
    "many": np.full((1, 60_000, 8), 0.9),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.filterwarnings("error")
def test_outputs_of_any_size_give_few_finite_boxes(name):
    values = HOSTILE[name].astype(np.float32)
    for head, outputs in {"yolov5": values, "yolov8": values.transpose(0, 2, 1), "yolox": values[:, :CELLS]}.items():
        boxes = decode(spec(head), [outputs], SIZE)
        assert len(boxes.xyxy) <= MAX_BOXES
        assert np.isfinite(boxes.xyxy).all()
        assert ((boxes.confidence >= 0) & (boxes.confidence <= 1)).all()


def test_boxes_that_are_all_sure_are_cut_to_the_surest():
    rows = np.full((1, 3 * CELLS * 10, 8), 0.9, np.float32)
    rows[0, :, 0] = np.arange(rows.shape[1]) * 3
    rows[0, :, 4] = np.linspace(0.5, 1, rows.shape[1])
    found = decode(spec("yolov5"), [rows], SIZE)
    assert len(found.xyxy) == MAX_BOXES < MAX_CANDIDATES < rows.shape[1]
    assert found.confidence.tolist() == sorted(found.confidence.tolist(), reverse=True)
    assert found.confidence[0] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("head", "shape"),
    [("yolov5", (1, 9, 8)), ("yolov8", (1, 7, 9)), ("yolox", (1, CELLS, 8)), ("fastestdet", (1, 8, 6, 8))],
)
@pytest.mark.parametrize("value", [-4.0, 7.0])
def test_logits_are_no_scores(head, shape, value):
    check_head(head, [shape], 3)
    with pytest.raises(InputError, match="expected 0 to 1; name another head with --head"):
        decode(spec(head), [np.full(shape, value, np.float32)], SIZE)


def test_a_grid_of_another_size_is_refused():
    with pytest.raises(InputError, match=r"gives 253 boxes, expected one per cell of the grids of 128×96 px"):
        decode(spec("yolox"), [np.full((1, CELLS + 1, 8), 0.5, np.float32)], SIZE)


def test_classes_after_suppression_are_whole_numbers():
    with pytest.raises(InputError, match=r"gives class 1\.5, expected whole numbers; name another head with --head"):
        decode(spec("nms"), [np.float32([[[0, 0, 9, 9, 0.9, 1.5]]])], SIZE)


@pytest.mark.parametrize(
    ("head", "shapes"),
    [
        ("yolov5", [(1, 9, 9)]),
        ("yolov5", [(2, 9, 8)]),
        ("yolov8", [(1, 9, 7)]),
        ("fastestdet", [(1, 8, 9)]),
        ("nms", [(1, 9, 7)]),
        ("nms", [(1, 9, 4), (1, 9)]),
        ("yolox", []),
    ],
)
def test_other_shapes_are_refused_with_those_that_fit(head, shapes):
    with pytest.raises(InputError, match=rf"expected \(1, .*for the head {head} of 3 classes; name another"):
        check_head(head, shapes, 3)


def test_an_unknown_head_is_refused():
    with pytest.raises(UsageError, match="unknown head 'yolov9'; known: fastestdet, yolov5, yolov8, yolox, nms"):
        check_head("yolov9", [(1, 9, 9)], 4)


GUESSED = {
    "fastestdet": ({"758": (85, 22, 22)}, (352, 352), 80),
    "yolov5": ({"output0": (25200, 85)}, (640, 640), 80),
    "yolov5 of 1280": ({"output": (102_000, 85)}, (1280, 1280), 80),
    "yolov5 with maps": ({"output": (6300, 7), "397": (3, 40, 40, 7), "458": (3, 20, 20, 7)}, (320, 320), 2),
    "yolov8": ({"output0": (22, 2100)}, (320, 320), 18),
    "yolov8 of one class": ({"output0": (5, 6300)}, (480, 640), 1),
    "nms": ({"output0": (300, 6)}, (640, 640), 80),
    "nms of unknown classes": ({"output0": (300, 6)}, (640, 640), None),
    "nms in parts": (
        {"det_scores": (100,), "num_dets": (1,), "det_boxes": (100, 4), "det_classes": (100,)},
        (640, 640),
        9,
    ),
    "nms of MMDetection": ({"dets": (100, 5), "labels": (100,)}, (640, 640), None),
}


@pytest.mark.parametrize("name", GUESSED)
def test_a_head_is_found_where_it_is_sure(name):
    shapes, size, classes = GUESSED[name]
    guess = guess_head(shapes, size, classes)
    assert guess.task == TaskSpec("detect", name.split()[0])
    assert set(guess.outputs) <= set(shapes)
    assert all(output in guess.reason for output in guess.outputs)
    check_head(guess.task.head, [(1, *shapes[output]) for output in guess.outputs], classes or 1)


UNSURE = {
    "one box per cell": ({"output": (8400, 85)}, (640, 640), 80, ("output",), "yolov5 or .* yolox: .*--head"),
    "one box per cell and class": ({"output": (3549, 6)}, (416, 416), 1, ("output",), "--head"),
    "two that could be read": ({"a": (84, 8400), "b": (84, 8400)}, (640, 640), 80, ("a", "b"), "--output"),
    "other classes": ({"output0": (84, 8400)}, (640, 640), 79, (), "no output fits"),
    "unknown classes": ({"output0": (84, 8400)}, (640, 640), None, (), "unknown classes"),
    "keypoints": ({"output0": (56, 8400)}, (640, 640), 1, (), "no output fits"),
    "another size": ({"output0": (84, 8400)}, (320, 320), 80, (), "no output fits"),
    "a classifier": ({"logits": (1000,)}, (224, 224), 1000, (), "no output fits"),
    "a map": ({"map": (80, 22, 22)}, (352, 352), 80, (), "no output fits"),
    "a map of another stride": ({"map": (85, 44, 44)}, (352, 352), 80, (), "no output fits"),
    "landmarks of one grid": ({"kps_16": (400, 10)}, (320, 320), 5, (), "no output fits"),
    "nothing": ({}, (352, 352), 80, (), "no output fits"),
}


@pytest.mark.parametrize("name", UNSURE)
def test_a_head_that_is_not_sure_is_left_to_the_user(name):
    *known, outputs, reason = UNSURE[name]
    guess = guess_head(*known)
    assert guess.task is None
    assert guess.outputs == outputs
    assert re.search(reason, guess.reason)


def test_a_spec_with_another_limit_finds_more():
    (values,), placement = detectors.outputs()
    few, more = (
        decode(replace(detectors.TASK, confidence=least), [values], placement.input_size) for least in (0.5, 0.1)
    )
    assert 0 < len(few.xyxy) < len(more.xyxy)
    np.testing.assert_array_equal(more.xyxy[: len(few.xyxy)], few.xyxy)
