import numpy as np
import pytest

from rws.edge.preprocess import Placement
from rws.edge.tasks.classify import TOP, Classify
from rws.errors import InputError

WHOLE = Placement((8, 8), (8, 8), 1.0, 1.0, 0.0, 0.0)
CLASSES = tuple(f"class {index}" for index in range(9))


def test_the_best_classes_come_first_with_softmax_probabilities():
    logits = np.float32([[0, 3, 1, 3, -2, 5, 0, 0, 0]])
    output = Classify(CLASSES).read([logits], WHOLE)
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert [prediction.class_index for prediction in output.top] == [5, 1, 3, 2, 0]  # of equals the first
    assert len(output.top) == TOP
    for prediction in output.top:
        assert prediction.label == CLASSES[prediction.class_index]
        assert prediction.confidence == pytest.approx(expected[prediction.class_index])
    np.testing.assert_array_equal(output.logits, logits[0])


def test_large_logits_do_not_overflow():
    assert Classify(("a", "b")).read([np.float32([[500, -500]])], WHOLE).top[0].confidence == 1


def test_few_classes_are_all_named():
    assert [p.label for p in Classify(("a", "b")).read([np.float32([[0, 1]])], WHOLE).top] == ["b", "a"]


@pytest.mark.parametrize("shape", [(1, 8), (2, 9), (9,), (1, 9, 1)])
def test_another_number_of_classes_is_refused(shape):
    with pytest.raises(InputError, match=r"expected \(1, 9\), one number per class"):
        Classify(CLASSES).check([shape])
    with pytest.raises(InputError, match=r"expected \(1, 9\), one number per class"):
        Classify(CLASSES).read([np.zeros(shape, np.float32)], WHOLE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_name_no_class(value):
    with pytest.raises(InputError, match="1 of 3 numbers are not finite"):
        Classify(("a", "b", "c")).read([np.float32([[1, value, 2]])], WHOLE)


def test_the_record_is_plain_and_the_image_is_left_as_it_is():
    task, image = Classify(("a", "b")), np.zeros((4, 4, 3), np.uint8)
    output = task.read([np.float32([[0, 1]])], WHOLE)
    assert task.to_dict(output) == {"label": "b", "class_index": 1, "confidence": 0.7311}
    assert task.draw(image, output) is image
