"""What every task does, whatever it reads from a model's outputs."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from rws.edge.common.schema import STRICT
from rws.edge.preprocess import Placement
from rws.errors import InputError

Output = TypeVar("Output")  # what a task reads, e.g. `Classification`
Outputs = Sequence[NDArray[Any]]  # of a model, for one image: each has a batch axis of 1 where it has one

TaskName = Literal["classify", "multilabel", "detect", "segment", "raw"]
Head = Literal["", "fastestdet", "yolov5", "yolov8", "yolox", "nms"]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class TaskSpec:
    """What a model's outputs mean: the task's name, and settings of those tasks that have them.

    A detector has a `head`, which says how its boxes are coded, `confidence`, the least that a box (or a label of
    `multilabel`) needs, and `iou`, above which the weaker of two boxes of one class is dropped.
    """

    name: TaskName
    head: Head = ""
    confidence: Share = 0.25
    iou: Share = 0.45


class Task(Protocol[Output]):
    """What a model's outputs mean; `rws.edge.tasks.classify.Classify` is one."""

    name: str  # as in `TaskSpec`
    classes: tuple[str, ...]  # the names of those that the model knows

    def check(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Raise an `InputError` if the task cannot read outputs of these shapes, of one image."""

    def read(self, outputs: Outputs, placement: Placement) -> Output:
        """Read the model's outputs for one image that was fitted as `placement` says.

        Raises an `InputError` as `check` does, and if they are not finite.
        """

    def draw(self, image: NDArray[np.uint8], output: Output) -> NDArray[np.uint8]:
        """Return the image, uint8, (H, W, 3), RGB, with the output drawn into a copy if it has a place in it."""

    def to_dict(self, output: Output) -> Mapping[str, object]:
        """Return the output in plain types, ready for `json.dumps`."""

    def summary(self, output: Output) -> tuple[str, float | None]:
        """Return the output in a few words, and how sure the model is of it, 0…1, if it says so."""

    def seen(self, output: Output) -> Sequence[str]:
        """Return the names of the classes that are in the image, each once; they are counted over a run."""


def check_finite(outputs: Outputs) -> None:
    """Raise an `InputError` if a number of a model's outputs is not finite."""
    for place, output in enumerate(outputs):
        if output.dtype.kind == "f" and not (finite := np.isfinite(output)).all():
            where = f"of output {place + 1} " if len(outputs) > 1 else ""
            raise InputError(f"model: {(~finite).sum()} of {output.size} numbers {where}are not finite")
