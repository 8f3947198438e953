from __future__ import annotations

import numpy as np
import pytest

from rws.edge.tasks.detect import Detections
from rws.errors import InputError
from rws.training.tasks.average_precision import MOST, mean_average_precision

NAMES = ("a", "b", "c")
NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), NAMES)


def seen(*boxes):
    """Boxes as (left, top, right, bottom, confidence, class)."""
    rows = np.float32(boxes)
    return Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64), NAMES)


TRUTH = [seen((0, 0, 100, 100, 1, 0), (200, 200, 300, 300, 1, 0)), seen((50, 50, 80, 80, 1, 1))]


def test_the_same_boxes_are_a_whole():
    assert mean_average_precision(TRUTH, TRUTH) == pytest.approx(100)


def test_half_of_the_boxes_of_one_of_two_classes_are_three_quarters():
    found = [seen((0, 0, 100, 100, 0.9, 0)), TRUTH[1]]
    # 51 of the 101 points of recall have a precision of 1.
    assert mean_average_precision(found, TRUTH) == pytest.approx(100 * (51 / 101 + 1) / 2)


def test_a_surer_wrong_box_halves_the_precision():
    found = [TRUTH[0], seen((50, 50, 80, 80, 0.5, 1), (0, 0, 9, 9, 0.6, 1))]
    assert mean_average_precision(found, TRUTH) == pytest.approx(100 * (1 + 0.5) / 2)


@pytest.mark.parametrize(("overlap", "score"), [(51, 100), (49, 50)])
def test_boxes_match_from_half_an_overlap_on(overlap, score):
    reference = [seen((0, 0, 100, 100, 1, 0)), seen((0, 0, 100, 100, 1, 1))]
    found = [seen((0, 0, 100, overlap, 0.9, 0)), seen((0, 0, 100, 100, 0.9, 1))]
    assert mean_average_precision(found, reference) == pytest.approx(score)


def test_a_box_counts_in_its_own_image_only():
    assert mean_average_precision([NOTHING, seen((0, 0, 100, 100, 0.9, 0))], [TRUTH[0], NOTHING]) == 0


def test_classes_that_the_references_lack_do_not_count():
    found = [seen((0, 0, 100, 100, 0.9, 0), (200, 200, 300, 300, 0.8, 0), (0, 0, 50, 50, 0.99, 2)), TRUTH[1]]
    assert mean_average_precision(found, TRUTH) == pytest.approx(100)


def test_nothing_found_is_zero():
    assert mean_average_precision([NOTHING, NOTHING], TRUTH) == 0


def test_only_the_surest_boxes_of_an_image_and_class_count():
    wrong = [(index * 4, 500, index * 4 + 3, 503, 0.9, 1) for index in range(MOST)]
    assert mean_average_precision([TRUTH[0], seen((50, 50, 80, 80, 0.1, 1), *wrong)], TRUTH) == pytest.approx(50)
    assert mean_average_precision([TRUTH[0], seen((50, 50, 80, 80, 0.1, 1), *wrong[1:])], TRUTH) > 50


def test_it_agrees_with_supervision():
    metrics = pytest.importorskip("supervision.metrics")
    random = np.random.default_rng(0)

    def some(count):
        corner = random.random((count, 2)) * 60
        boxes = np.hstack([corner, corner + 20 + random.random((count, 2)) * 20])
        return seen(*np.hstack([boxes, random.random((count, 1)), random.integers(3, size=(count, 1))]))

    found, wanted = ([some(count) for count in (9, 12, 7)] for _ in range(2))
    metric = metrics.MeanAveragePrecision()
    metric.update([one.to_supervision() for one in found], [one.to_supervision() for one in wanted])
    score = mean_average_precision(found, wanted)
    assert 0 < score < 100
    assert score == pytest.approx(100 * metric.compute().map50)


def test_other_images_or_no_reference_are_refused():
    with pytest.raises(InputError, match="of 1 images, expected 2"):
        mean_average_precision(TRUTH[:1], TRUTH)
    for none in ([NOTHING], []):
        with pytest.raises(InputError, match="no box in the references"):
            mean_average_precision(none, none)
