"""Several labels per image: one sigmoid per class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rws.edge.preprocess import Placement
from rws.edge.tasks.base import Outputs
from rws.edge.tasks.classify import LogitPerClass, plain_prediction
from rws.records import Prediction

MOST_NAMED = 3  # labels in a summary


@dataclass(frozen=True, eq=False)
class Labels:
    """The classes that a model finds in an image, none to all of them."""

    found: tuple[Prediction, ...]  # those that are probable enough, with their sigmoids, the most probable first
    logits: NDArray[np.float32]  # shape (K,), in the order of the bundle's classes


class MultiLabel(LogitPerClass):
    """The task that reads each logit alone: a label is found if its sigmoid is at least `threshold`, 0…1."""

    name = "multilabel"

    def __init__(self, classes: Sequence[str], threshold: float) -> None:
        super().__init__(classes)
        self.threshold = threshold

    def read(self, outputs: Outputs, placement: Placement) -> Labels:
        """Read the logits of one image, float32, shape (1, K); an `InputError` if they are not, or not finite."""
        logits = self.logits(outputs)
        probability = 0.5 * (1 + np.tanh(0.5 * logits))  # a sigmoid that does not overflow
        order = [index for index in (-logits).argsort(kind="stable") if probability[index] >= self.threshold]
        found = tuple(Prediction(self.classes[index], int(index), float(probability[index])) for index in order)
        return Labels(found, logits)

    def to_dict(self, output: Labels) -> Mapping[str, object]:
        """Return the labels in plain types, ready for `json.dumps`."""
        return {"labels": [plain_prediction(one) for one in output.found]}

    def summary(self, output: Labels) -> tuple[str, float | None]:
        """Return the most probable labels in a line, and the probability of the first, None without labels."""
        names = [one.label for one in output.found]
        rest = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        return ", ".join(names[:MOST_NAMED]) + rest or "no label", output.found[0].confidence if names else None

    def seen(self, output: Labels) -> tuple[str, ...]:
        """Return the labels."""
        return tuple(one.label for one in output.found)
