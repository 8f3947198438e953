import pytest
from pydantic import ValidationError

from rws.edge.tasks.base import TaskSpec
from rws.edge.tasks.multilabel import MultiLabel
from rws.edge.tasks.registry import make_task


@pytest.mark.parametrize("name", ["classify", "multilabel", "raw"])
def test_each_task_is_made_by_its_name(name):
    task = make_task(TaskSpec(name), ("a", "b"))
    assert task.name == name
    assert callable(task.read)


def test_a_multilabel_task_takes_its_threshold_from_the_spec():
    task = make_task(TaskSpec("multilabel", confidence=0.75), ("a", "b"))
    assert isinstance(task, MultiLabel)
    assert task.threshold == 0.75


@pytest.mark.parametrize(
    "settings",
    [{"name": "guess"}, {"head": "yolo"}, {"confidence": 1.5}, {"iou": -0.1}, {"iou": "0.5"}, {"confidence": True}],
)
def test_a_spec_is_strict(settings):
    with pytest.raises(ValidationError):
        TaskSpec(**{"name": "detect", **settings})
