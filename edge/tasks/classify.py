"""Image classification: one logit per class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rws.edge.preprocess import Placement
from rws.edge.tasks.base import Outputs, check_finite
from rws.errors import InputError
from rws.records import Prediction

TOP = 5  # classes that a `Classification` names


@dataclass(frozen=True, eq=False)
class Classification:
    """The classes that a model sees in an image."""

    top: tuple[Prediction, ...]  # the most probable ones with their softmax probabilities, the best first; 1 to `TOP`
    logits: NDArray[np.float32]  # shape (K,), in the order of the bundle's classes

    @property
    def label(self) -> str:
        """The name of the predicted class."""
        return self.top[0].label

    @property
    def class_index(self) -> int:
        """The index of the predicted class in the bundle's classes."""
        return self.top[0].class_index

    @property
    def confidence(self) -> float:
        """The softmax probability of the predicted class, 0…1."""
        return self.top[0].confidence


class LogitPerClass:
    """What the tasks have in common that read a logit per class: K class names, in the order of the logits."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def check(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Raise an `InputError` if there is not one output of shape (1, K)."""
        if list(shapes) != [expected := (1, len(self.classes))]:
            found = ", ".join(map(str, shapes))
            advice = "one number per class; give the names of all classes"
            raise InputError(f"model: gives outputs of shape {found}, expected {expected}, {advice}")

    def logits(self, outputs: Outputs) -> NDArray[np.float32]:
        """Return the logits of one image, float32, shape (K,); an `InputError` if they are not, or not finite."""
        self.check([output.shape for output in outputs])
        check_finite(outputs)
        found: NDArray[np.float32] = outputs[0][0]
        return found

    def draw(self, image: NDArray[np.uint8], output: object) -> NDArray[np.uint8]:
        """Return the image, uint8, (H, W, 3), RGB, as it is: a class has no place in it."""
        return image


class Classify(LogitPerClass):
    """The task that reads the classes of an image, of which one is true."""

    name = "classify"

    def read(self, outputs: Outputs, placement: Placement) -> Classification:
        """Read the logits of one image, float32, shape (1, K); an `InputError` if they are not, or not finite."""
        logits = self.logits(outputs)
        powers = np.exp(logits - logits.max())
        probability = powers / powers.sum()
        order = (-logits).argsort(kind="stable")[:TOP].tolist()
        top = tuple(Prediction(self.classes[index], index, float(probability[index])) for index in order)
        return Classification(top, logits)

    def to_dict(self, output: Classification) -> Mapping[str, object]:
        """Return the best class in plain types, ready for `json.dumps`."""
        return plain_prediction(output.top[0])

    def summary(self, output: Classification) -> tuple[str, float]:
        """Return the best class and its probability."""
        return output.label, output.confidence

    def seen(self, output: Classification) -> tuple[str, ...]:
        """Return the best class alone."""
        return (output.label,)


def plain_prediction(one: Prediction) -> dict[str, object]:
    """Return a class in plain types, ready for `json.dumps`."""
    return {"label": one.label, "class_index": one.class_index, "confidence": round(one.confidence, 4)}
