"""Mean average precision of detections, as COCO defines it, at an overlap of 50 %."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rws.edge.common.extras import require
from rws.edge.tasks.detect import Detections
from rws.errors import InputError

MOST = 100  # boxes of an image and class that count, the surest


def mean_average_precision(predictions: Sequence[Detections], references: Sequence[Detections]) -> float:
    """Return mAP50 in percent: the mean over the classes that the references show.

    `predictions` should hold all boxes down to a confidence of about 0.001, since a higher limit cuts the curve of
    precision over recall; the confidence of `references` does not count. Raises an `InputError` if the two are not of
    the same number of images, or the references hold no box.
    """
    if len(predictions) != len(references):
        raise InputError(
            f"found detections of {len(predictions)} images, expected {len(references)}, one of each image"
        )
    found, wanted = _rows(predictions), _rows(references)
    if not len(wanted):
        raise InputError("found no box in the references, expected one or more; give images that show known classes")
    with require("train"):
        from faster_coco_eval import COCO, COCOeval_faster
    names = [{"id": index} for index in range(len(references[0].names))]
    empty = COCO(
        {"images": [{"id": image} for image in range(len(references))], "categories": names, "annotations": []}
    )
    scorer = COCOeval_faster(empty.loadRes(wanted), empty.loadRes(found), "bbox", print_function=lambda *_: None)
    scorer.params.iouThrs, scorer.params.maxDets = np.array([0.5]), [MOST]
    scorer.params.areaRng, scorer.params.areaRngLbl = [[0, np.inf]], ["all"]
    scorer.evaluate()
    scorer.accumulate()
    precision = scorer.eval["precision"]
    return float(100 * precision[precision >= 0].mean())  # −1 stands for classes that the references lack


def _rows(detections: Sequence[Detections]) -> NDArray[np.float64]:
    """Return image, left, top, width, height, confidence and class of each box, (N, 7)."""
    rows = [np.zeros((0, 7))]
    for image, one in enumerate(detections):
        low, high = np.split(one.boxes, 2, axis=1)
        rows.append(np.column_stack([np.full(len(low), image), low, high - low, one.confidence, one.class_id]))
    return np.concatenate(rows)
