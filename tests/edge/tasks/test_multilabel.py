import numpy as np
import pytest

from rws.edge.preprocess import Placement
from rws.edge.tasks.multilabel import MultiLabel
from rws.errors import InputError

WHOLE = Placement((4, 4), (4, 4), 1.0, 1.0, 0.0, 0.0)
CLASSES = ("cat", "dog", "car", "tree", "bird")


def read(*logits, threshold=0.5):
    task = MultiLabel(CLASSES, threshold)
    return task, task.read([np.float32([logits])], WHOLE)


def test_each_label_is_found_by_its_own_sigmoid():
    task, output = read(2, -1, 0, 3, -9)
    assert [(one.label, one.class_index) for one in output.found] == [("tree", 3), ("cat", 0), ("car", 2)]
    np.testing.assert_allclose([one.confidence for one in output.found], 1 / (1 + np.exp([-3.0, -2.0, 0.0])), rtol=1e-5)
    assert task.seen(output) == ("tree", "cat", "car")
    assert task.to_dict(output)["labels"][1] == {"label": "cat", "class_index": 0, "confidence": 0.8808}


def test_the_summary_names_a_few_and_counts_the_rest():
    task, output = read(1, 2, 3, 4, 5)
    text, confidence = task.summary(output)
    assert text == "bird, tree, car and 2 more"
    assert confidence == output.found[0].confidence
    assert task.summary(read(-1, -2, -3, -4, -5)[1]) == ("no label", None)


def test_the_threshold_decides_and_large_logits_do_not_overflow():
    with np.errstate(all="raise"):
        assert len(read(1e4, -1e4, 0, 1, -1, threshold=0.25)[1].found) == 4
    assert len(read(*[-100] * 5, threshold=0.0)[1].found) == 5


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([np.zeros((1, 4), np.float32)], r"shape \(1, 4\), expected \(1, 5\)"),
        ([np.zeros((1, 5), np.float32)] * 2, r"shape \(1, 5\), \(1, 5\), expected \(1, 5\)"),
        ([np.float32([[0, np.nan, 0, np.inf, 0]])], "2 of 5 numbers are not finite"),
    ],
)
def test_other_outputs_are_refused(outputs, message):
    with pytest.raises(InputError, match=message):
        MultiLabel(CLASSES, 0.5).read(outputs, WHOLE)
