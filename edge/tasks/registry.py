"""The tasks by name."""

from collections.abc import Sequence
from typing import Any

from rws.edge.tasks.base import Task, TaskSpec
from rws.edge.tasks.classify import Classify
from rws.edge.tasks.multilabel import MultiLabel
from rws.edge.tasks.raw import Raw


def make_task(spec: TaskSpec, classes: Sequence[str]) -> Task[Any]:
    """Return the task for a model with these classes, in the order of its outputs."""
    if spec.name == "classify":
        return Classify(classes)
    if spec.name == "multilabel":
        return MultiLabel(classes, spec.confidence)
    if spec.name == "raw":
        return Raw()
    # What draws boxes and masks is imported for models that have them.
    if spec.name == "detect":
        from rws.edge.tasks.detect import Detect

        return Detect(spec, classes)
    from rws.edge.tasks.segment import Segment

    return Segment(classes)
