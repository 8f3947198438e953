from __future__ import annotations

import json

import numpy as np
import pytest

from rws.edge.preprocess import InputSpec, preprocess
from rws.edge.tasks.base import TaskSpec
from rws.edge.tasks.registry import make_task
from rws.edge.tasks.segment import UNSEEN, Segment
from rws.errors import InputError

FRAME = np.zeros((40, 80, 3), np.uint8)


def placed(fit, height=16, width=16, frame=FRAME):
    return preprocess(frame, InputSpec(height, width, "RGB", fit=fit))[1]


def logits(labels, classes):
    return np.float32(np.moveaxis(np.eye(classes)[labels], -1, 0))[None]


@pytest.mark.parametrize("form", ["logits", "labels", "labels of four axes", "float labels", "bytes"])
def test_a_map_is_stretched_back_to_the_frame(form):
    labels = np.array([[0, 1, 2, 0], [1, 1, 0, 2]])
    outputs = {
        "logits": logits(labels, 3),
        "labels": labels[None],
        "labels of four axes": labels[None, None],
        "float labels": labels[None].astype(np.float32),
        "bytes": labels[None].astype(np.uint8),
    }[form]
    task = make_task(TaskSpec("segment"), ("sky", "road", "car"))
    task.check([outputs.shape])
    found = task.read([outputs], placed("stretch"))
    np.testing.assert_array_equal(found.class_map, labels.repeat(20, axis=0).repeat(20, axis=1))


def test_the_padding_of_a_letterbox_is_left_out():
    labels = np.full((16, 16), 2)  # the frame lies in rows 4 to 11
    labels[4:12, :8], labels[4:12, 8:] = 0, 1
    found = Segment(("a", "b", "padding")).read([labels[None]], placed("letterbox"))
    assert found.class_map.shape == (40, 80)
    assert (found.class_map[:, :40] == 0).all()
    assert (found.class_map[:, 40:] == 1).all()


def test_what_the_crop_cuts_off_is_unseen():
    task = Segment(("a", "b"))
    found = task.read([np.ones((1, 8, 8), np.int64)], placed("crop"))
    assert (found.class_map[:, 20:60] == 1).all()
    assert (found.class_map[:, :20] == UNSEEN).all()
    assert (found.class_map[:, 60:] == UNSEEN).all()
    assert found.shares == [(1, 1.0)]


def test_a_real_edge_moves_by_less_than_a_cell():
    frame = np.zeros((90, 160, 3), np.uint8)
    frame[:, 101:] = 255
    spec = InputSpec(64, 64, "RGB", fit="letterbox")
    x, placement = preprocess(frame, spec)
    found = Segment(("dark", "light")).read([(x[:1] > 0.5)[None].astype(np.int64)], placement)
    edges = (found.class_map == 1).argmax(axis=1)
    assert (np.abs(edges - 101) <= placement.frame_size[1] / 64).all()


def test_the_record_is_plain_and_the_summary_names_the_largest():
    labels = np.array([[0, 1, 2, 3, 3, 3, 1, 1]])
    task = Segment(("a", "b", "c", "b", "never"))
    found = task.read([labels[None]], placed("stretch"))
    record = json.loads(json.dumps(task.to_dict(found)))
    assert [(one["label"], one["class_index"], one["share"]) for one in record["classes"]] == [
        ("b", 1, 0.375),
        ("b", 3, 0.375),
        ("a", 0, 0.125),
        ("c", 2, 0.125),
    ]
    assert task.summary(found) == ("38% b, 38% b, 12% a", None)
    assert list(task.seen(found)) == ["b", "a", "c"]


def test_each_class_tints_the_image_in_its_colour():
    task, image = Segment(("a", "b")), np.full((40, 80, 3), 100, np.uint8)
    found = task.read([np.array([[[0, 1]]])], placed("crop"))
    drawn = task.draw(image, found)
    assert (image == 100).all()
    assert drawn.shape == image.shape
    colours = [
        np.unique(drawn[:, part].reshape(-1, 3), axis=0) for part in (slice(0, 20), slice(20, 40), slice(40, 60))
    ]
    assert colours[0].tolist() == [[100, 100, 100]]
    assert len(colours[1]) == len(colours[2]) == 1
    assert np.abs(colours[1].astype(int) - colours[2]).max() > 50


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (2, 3, 8, 8), (3, 8, 8), (1, 3), (1, 2, 1, 8, 8)])
def test_another_shape_is_refused(shape):
    with pytest.raises(InputError, match=r"expected \(1, 3, \*, \*\) or \(1, 1, \*, \*\) or \(1, \*, \*\)"):
        Segment(("a", "b", "c")).check([shape])


def test_several_outputs_or_none_are_refused():
    for shapes in ([], [(1, 8, 8)] * 2):
        with pytest.raises(InputError, match="give the names of all classes"):
            Segment(("a", "b", "c")).check(shapes)


@pytest.mark.parametrize("value", [3, -1, 0.5, 1e30, 255])
def test_labels_without_a_name_are_refused(value):
    with pytest.raises(InputError, match="expected whole numbers 0 to 2"):
        Segment(("a", "b", "c")).read([np.array([[[0, value]]])], placed("stretch"))


@pytest.mark.parametrize("shape", [(1, 3, 0, 8), (1, 0, 0), (1, 3, 8, 0)])
def test_an_empty_map_is_refused(shape):
    with pytest.raises(InputError, match="empty"):
        Segment(("a", "b", "c")).read([np.zeros(shape, np.float32)], placed("stretch"))


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="not finite"):
        Segment(("a", "b")).read([np.full((1, 2, 4, 4), np.nan, np.float32)], placed("stretch"))
