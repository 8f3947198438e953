"""Mean average precision of detections, as COCO defines it, at an overlap of 50 %."""

from collections.abc import Sequence

import numpy as np

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
        raise InputError(f"found detections of {len(predictions)} images, expected {len(references)}, one of each image")
    if not any(len(one.boxes) for one in references):
        raise InputError("found no box in the references, expected one or more; give images that show known classes")
    with require("train"):
        from faster_coco_eval import COCO, COCOeval_faster

    def annotations(detections: Sequence[Detections]) -> COCO:
        rows = [
            {"image_id": image, "category_id": index, "score": sure, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for image, one in enumerate(detections, 1)
            for index, sure, box in zip(
                one.class_id.tolist(),
                one.confidence.tolist(),
                np.hstack([one.boxes[:, :2], one.boxes[:, 2:] - one.boxes[:, :2]]).tolist(),
                strict=True,
            )
        ]
        images = [{"id": image} for image in range(1, len(detections) + 1)]
        classes = [{"id": index} for index in range(len(references[0].names))]
        numbered = [{"id": number, **row} for number, row in enumerate(rows, 1)]
        return COCO({"images": images, "categories": classes, "annotations": numbered})

    scorer = COCOeval_faster(annotations(references), annotations(predictions), "bbox", print_function=lambda *_: None)
    scorer.params.iouThrs, scorer.params.maxDets = np.array([0.5]), [MOST]
    scorer.params.areaRng, scorer.params.areaRngLbl = [[0, np.inf]], ["all"]
    scorer.evaluate()
    scorer.accumulate()
    precision = scorer.eval["precision"]
    return float(100 * precision[precision >= 0].mean())  # −1 stands for classes that the references lack
