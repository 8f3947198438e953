"""What is right: classes by their labels, boxes by label files, text as it was written; what the clean model says."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rws.benchmarks.zoo.text import read_lines
from rws.edge.bundle.bundle import Bundle
from rws.edge.live.base import PatchableModel
from rws.edge.tasks.detect import Detections
from rws.records import Mix
from rws.training.evaluation.evaluator import by_mix, classify, outputs_of
from rws.training.evaluation.frames import Frames
from rws.training.tasks.average_precision import mean_average_precision
from rws.training.tasks.detect import LEAST, DetectObjective


class Scorer(Protocol):
    """Answers of a model to frames, each under its own mix, and how good they are."""

    def answers(self, model: PatchableModel, frames: Frames, mixes: Sequence[Mix]) -> Any:
        """Return an answer per frame."""

    def accuracy(self, answers: Any, frames: Frames) -> float:
        """Return the accuracy of the answers, percent."""

    def agreement(self, answers: Any, clean: Any) -> float:
        """Return how well they agree with the clean model's to the clean images, percent."""

    def changed(self, answers: Any, before: Any) -> int:
        """Return the number of frames whose answer differs."""


class ClassScorer:
    """Top classes, int64 (N,), and the labels of the frames."""

    def answers(self, model: PatchableModel, frames: Frames, mixes: Sequence[Mix]) -> NDArray[np.int64]:
        """Return the classes."""
        return classify(model, frames.pixels, mixes)

    def accuracy(self, answers: NDArray[np.int64], frames: Frames) -> float:
        """Return the share that is right."""
        return 100 * float((answers == frames.labels).mean())

    def agreement(self, answers: NDArray[np.int64], clean: NDArray[np.int64]) -> float:
        """Return the share of equal classes."""
        return 100 * float((answers == clean).mean())

    def changed(self, answers: NDArray[np.int64], before: NDArray[np.int64]) -> int:
        """Return how many classes differ."""
        return int((answers != before).sum())


class BoxScorer:
    """Boxes of a bundle's detector, and `truth`, those of the labels; accuracy and agreement are mAP50."""

    def __init__(self, bundle: Bundle, truth: Sequence[Detections]) -> None:
        manifest = bundle.manifest
        self._input, self._sure, self._truth = manifest.input, manifest.task.confidence, list(truth)
        self._objective = DetectObjective(manifest.task, manifest.classes, (self._input.height, self._input.width))

    def answers(self, model: PatchableModel, frames: Frames, mixes: Sequence[Mix]) -> list[Detections]:
        """Return the boxes of each frame down to a confidence of `LEAST`, in pixels of the model's input."""
        found = dict[int, Detections]()
        for key, members in by_mix(mixes).items():
            model.apply(dict(key))
            outputs = outputs_of(model, frames.pixels[members], self._input)
            found |= zip(members, self._objective.boxes(outputs, LEAST), strict=True)
        return [found[index] for index in range(len(mixes))]

    def accuracy(self, answers: Sequence[Detections], frames: Frames) -> float:
        """Return mAP50 against the labels."""
        return mean_average_precision(answers, [self._truth[image] for image in frames.image])

    def agreement(self, answers: Sequence[Detections], clean: Sequence[Detections]) -> float:
        """Return mAP50 against the boxes that the clean model is sure of."""
        return mean_average_precision(answers, [_surest(boxes, self._sure) for boxes in clean])

    def changed(self, answers: Sequence[Detections], before: Sequence[Detections]) -> int:
        """Return the number of images whose confident boxes differ in number, class or place."""
        pairs = zip(answers, before, strict=True)
        sure = [[_surest(boxes, self._sure) for boxes in pair] for pair in pairs]
        return sum(not np.array_equal(_rounded(now), _rounded(then)) for now, then in sure)


class TextScorer:
    """Lines of text, and `truth`, what is written; accuracy and agreement are shares of lines that are equal."""

    def __init__(self, bundle: Bundle, truth: Sequence[str], characters: Sequence[str]) -> None:
        self._input, self._truth, self._characters = bundle.manifest.input, list(truth), characters

    def answers(self, model: PatchableModel, frames: Frames, mixes: Sequence[Mix]) -> list[str]:
        """Return what is read in each frame."""
        found = dict[int, str]()
        for key, members in by_mix(mixes).items():
            model.apply(dict(key))
            (probabilities,) = outputs_of(model, frames.pixels[members], self._input)
            found |= zip(members, read_lines(probabilities, self._characters), strict=True)
        return [found[index] for index in range(len(mixes))]

    def accuracy(self, answers: Sequence[str], frames: Frames) -> float:
        """Return the share of lines that are read right."""
        return _equal(answers, [self._truth[image] for image in frames.image])

    def agreement(self, answers: Sequence[str], clean: Sequence[str]) -> float:
        """Return the share of lines that are read as the clean model reads them."""
        return _equal(answers, clean)

    def changed(self, answers: Sequence[str], before: Sequence[str]) -> int:
        """Return how many lines are read differently."""
        return sum(map(str.__ne__, answers, before))


def _equal(found: Sequence[str], aim: Sequence[str]) -> float:
    return 100 * float(np.mean([one == other for one, other in zip(found, aim, strict=True)]))


def _surest(found: Detections, least: float) -> Detections:
    kept = found.confidence >= least
    return Detections(found.boxes[kept], found.confidence[kept], found.class_id[kept], found.names)


def _rounded(found: Detections) -> NDArray[Any]:
    return np.column_stack([found.class_id, found.boxes.round()])
