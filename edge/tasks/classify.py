"""Image classification: one logit per class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from rws.errors import InputError
from rws.records import Prediction

TOP = 5  # classes that a `Classification` names


@dataclass(frozen=True, eq=False)
class Classification:
    """The classes that a model sees in an image."""

    top: tuple[Prediction, ...]  # the most probable ones with their softmax probabilities, the best first; 1 to `TOP`
    logits: NDArray[np.float32]  # shape (K,), in the order of the bundle's classes


class ClassificationRecord(TypedDict):
    """The best class, in plain types."""

    label: str
    class_index: int
    confidence: float


class Classify:
    """The task that reads logits as classes: K class names, in the order of the logits."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise an `InputError` if the shape is not (1, K)."""
        if shape != (expected := (1, len(self.classes))):
            advice = "one per class; give the names of all classes"
            raise InputError(f"model: gives logits of shape {shape}, expected {expected}, {advice}")

    def read(self, outputs: NDArray[np.float32]) -> Classification:
        """Read the logits of one image, float32, shape (1, K); an `InputError` if they are not, or not finite."""
        self.check(outputs.shape)
        if not (finite := np.isfinite(outputs)).all():
            raise InputError(f"model: {(~finite).sum()} of {outputs.size} logits are not finite")
        logits = outputs[0]
        powers = np.exp(logits - logits.max())
        probability = powers / powers.sum()
        order = (-logits).argsort(kind="stable")[:TOP].tolist()
        top = tuple(Prediction(self.classes[index], index, float(probability[index])) for index in order)
        return Classification(top, logits)

    def draw(self, image: NDArray[np.uint8], output: Classification) -> NDArray[np.uint8]:
        """Return the image, uint8, (H, W, 3), RGB, as it is: a class has no place in it."""
        return image

    def to_dict(self, output: Classification) -> ClassificationRecord:
        """Return the best class in plain types, ready for `json.dumps`."""
        best = output.top[0]
        return {"label": best.label, "class_index": best.class_index, "confidence": round(best.confidence, 4)}
