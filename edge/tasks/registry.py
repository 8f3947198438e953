"""The tasks by name."""

from collections.abc import Sequence
from typing import Any

from rws.edge.tasks.base import Task, TaskSpec
from rws.edge.tasks.classify import Classify
from rws.edge.tasks.detect import Detect
from rws.edge.tasks.multilabel import MultiLabel
from rws.edge.tasks.raw import Raw
from rws.edge.tasks.segment import Segment


def make_task(spec: TaskSpec, classes: Sequence[str]) -> Task[Any]:
    """Return the task for a model with these classes, in the order of its outputs."""
    if spec.name == "classify":
        return Classify(classes)
    if spec.name == "multilabel":
        return MultiLabel(classes, spec.confidence)
    if spec.name == "raw":
        return Raw()
    return Detect(spec, classes) if spec.name == "detect" else Segment(classes)
