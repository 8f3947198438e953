"""The objectives by task."""

from collections.abc import Sequence

from rws.edge.tasks.base import TaskSpec
from rws.training.tasks.base import Objective
from rws.training.tasks.classify import ClassifyObjective, MultiLabelObjective
from rws.training.tasks.raw import RawObjective
from rws.training.tasks.segment import SegmentObjective


def make_objective(
    spec: TaskSpec, classes: Sequence[str], size: tuple[int, int], soft: float = 1.0, temperature: float = 3.0
) -> Objective:
    """Return the objective of a task.

    Args:
        classes: names in the order of the outputs.
        size: height and width of the model's input, pixels.
        soft, temperature: of `classify`, see `distil`.
    Raises InputError if the outputs cannot be trained through.
    """
    if spec.name == "classify":
        return ClassifyObjective(soft, temperature)
    if spec.name == "multilabel":
        return MultiLabelObjective(spec.confidence)
    if spec.name == "segment":
        return SegmentObjective()
    if spec.name == "raw":
        return RawObjective()
    # What reads boxes is imported for models that have them.
    from rws.training.tasks.detect import DetectObjective

    return DetectObjective(spec, tuple(classes), size)
