"""Mean average precision of detections against reference boxes, as COCO defines it, at an overlap of 50 %."""

from collections.abc import Sequence

from rws.edge.common.extras import require
from rws.edge.tasks.detect import Detections
from rws.errors import InputError


def mean_average_precision(predictions: Sequence[Detections], references: Sequence[Detections]) -> float:
    """Return mAP50 in percent, over the classes that occur in the references.

    `predictions` should hold all boxes down to a confidence of about 0.001, because a limit such as 0.25 cuts the curve
    of precision over recall; per image and class, the 100 surest count. The confidence of `references` does not count.

    Raises an `InputError` if the two are not of the same images, or no reference has a box.
    """
    if len(predictions) != len(references):
        raise InputError(
            f"found detections of {len(predictions)} images, expected {len(references)}; give one per image"
        )
    if not any(len(reference.boxes) for reference in references):
        raise InputError("no box in any of the references, expected one at least; give images that show known classes")
    with require("detect"):
        from supervision.metrics import MeanAveragePrecision
    metric = MeanAveragePrecision()
    metric.update([one.to_supervision() for one in predictions], [one.to_supervision() for one in references])
    return 100 * float(metric.compute().map50)
