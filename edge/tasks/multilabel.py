"""Several labels per image: one sigmoid per class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from rws.edge.preprocess import Placement
from rws.edge.tasks.base import Outputs, check_finite
from rws.edge.tasks.classify import check_one_per_class
from rws.records import Prediction

MOST_NAMED = 3  # labels in a summary


@dataclass(frozen=True, eq=False)
class Labels:
    """The classes that a model finds in an image, none to all of them."""

    found: tuple[Prediction, ...]  # those that are probable enough, with their sigmoids, the most probable first
    logits: NDArray[np.float32]  # shape (K,), in the order of the bundle's classes


class LabelRecord(TypedDict):
    """A label, in plain types."""

    label: str
    class_index: int
    confidence: float


class LabelsRecord(TypedDict):
    """The labels, in plain types."""

    labels: list[LabelRecord]


class MultiLabel:
    """The task that reads each logit on its own: K class names, in the order of the logits.

    A label is found if its sigmoid is at least `threshold`, 0…1.
    """

    name = "multilabel"

    def __init__(self, classes: Sequence[str], threshold: float) -> None:
        self.classes, self.threshold = tuple(classes), threshold

    def check(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Raise an `InputError` if there is not one output of shape (1, K)."""
        check_one_per_class(shapes, len(self.classes))

    def read(self, outputs: Outputs, placement: Placement) -> Labels:
        """Read the logits of one image, float32, shape (1, K); an `InputError` if they are not, or not finite."""
        self.check([output.shape for output in outputs])
        check_finite(outputs)
        logits = outputs[0][0]
        probability = 0.5 * (1 + np.tanh(0.5 * logits))  # a sigmoid that does not overflow
        order = [index for index in (-logits).argsort(kind="stable") if probability[index] >= self.threshold]
        found = tuple(Prediction(self.classes[index], int(index), float(probability[index])) for index in order)
        return Labels(found, logits)

    def draw(self, image: NDArray[np.uint8], output: Labels) -> NDArray[np.uint8]:
        """Return the image, uint8, (H, W, 3), RGB, as it is: a label has no place in it."""
        return image

    def to_dict(self, output: Labels) -> LabelsRecord:
        """Return the labels in plain types, ready for `json.dumps`."""
        return {
            "labels": [
                {"label": one.label, "class_index": one.class_index, "confidence": round(one.confidence, 4)}
                for one in output.found
            ]
        }

    def summary(self, output: Labels) -> tuple[str, float | None]:
        """Return the most probable labels in a line, and the probability of the first, None without labels."""
        names = [one.label for one in output.found]
        rest = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        return ", ".join(names[:MOST_NAMED]) + rest or "no label", output.found[0].confidence if names else None

    def seen(self, output: Labels) -> tuple[str, ...]:
        """Return the labels."""
        return tuple(one.label for one in output.found)
