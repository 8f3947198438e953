"""What is right: classes by their labels, boxes by label files, text as it was written; what the clean model says."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rws.benchmarks.zoo.text import read_lines
from rws.edge.bundle.bundle import Bundle
from rws.edge.live.base import PatchableModel
from rws.edge.tasks.detect import Detections
from rws.records import Mix
from rws.training.evaluation.evaluator import by_mix, outputs_of
from rws.training.evaluation.frames import Frames
from rws.training.tasks.average_precision import mean_average_precision
from rws.training.tasks.base import Arrays
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


class _Answers(ABC):
    # A bundle's model answers to frames, each under its own mix; `_read` reads the outputs for some of them.

    def __init__(self, bundle: Bundle) -> None:
        self._input = bundle.manifest.input

    @abstractmethod
    def _read(self, outputs: Arrays) -> Sequence[Any]:
        """Return an answer per image."""

    def answers(self, model: PatchableModel, frames: Frames, mixes: Sequence[Mix]) -> list[Any]:
        """Return an answer per frame."""
        found = dict[int, Any]()
        for key, members in by_mix(mixes).items():
            model.apply(dict(key))
            found |= zip(members, self._read(outputs_of(model, frames.pixels[members], self._input)), strict=True)
        return [found[index] for index in range(len(mixes))]


class ClassScorer(_Answers):
    """Top classes and the labels of the frames; accuracy and agreement are shares of equal ones."""

    def _read(self, outputs: Arrays) -> list[int]:
        return [int(top) for top in outputs[0].argmax(1)]

    def accuracy(self, answers: Sequence[int], frames: Frames) -> float:
        """Return the share that is right."""
        return _equal(answers, frames.labels.tolist())

    def agreement(self, answers: Sequence[int], clean: Sequence[int]) -> float:
        """Return the share of equal classes."""
        return _equal(answers, clean)

    def changed(self, answers: Sequence[int], before: Sequence[int]) -> int:
        """Return how many classes differ."""
        return _differing(answers, before)


class BoxScorer(_Answers):
    """Boxes of a bundle's detector, and `truth`, those of the labels; accuracy and agreement are mAP50."""

    def __init__(self, bundle: Bundle, truth: Sequence[Detections]) -> None:
        super().__init__(bundle)
        manifest = bundle.manifest
        self._sure, self._truth = manifest.task.confidence, list(truth)
        self._objective = DetectObjective(manifest.task, manifest.classes, (self._input.height, self._input.width))

    def _read(self, outputs: Arrays) -> list[Detections]:
        return self._objective.boxes(outputs, LEAST)

    def accuracy(self, answers: Sequence[Detections], frames: Frames) -> float:
        """Return mAP50 against the labels."""
        return mean_average_precision(answers, [self._truth[image] for image in frames.image])

    def agreement(self, answers: Sequence[Detections], clean: Sequence[Detections]) -> float:
        """Return mAP50 against the boxes that the clean model is sure of."""
        return mean_average_precision(answers, [boxes.surer(self._sure) for boxes in clean])

    def changed(self, answers: Sequence[Detections], before: Sequence[Detections]) -> int:
        """Return the number of images whose confident boxes differ in number, class or place."""
        pairs = zip(answers, before, strict=True)
        sure = [[boxes.surer(self._sure) for boxes in pair] for pair in pairs]
        return sum(not np.array_equal(_rounded(now), _rounded(then)) for now, then in sure)


class TextScorer(_Answers):
    """Lines of text, and `truth`, what is written; accuracy and agreement are shares of lines that are equal."""

    def __init__(self, bundle: Bundle, truth: Sequence[str], characters: Sequence[str]) -> None:
        super().__init__(bundle)
        self._truth, self._characters = list(truth), characters

    def _read(self, outputs: Arrays) -> list[str]:
        return read_lines(outputs[0], self._characters)

    def accuracy(self, answers: Sequence[str], frames: Frames) -> float:
        """Return the share of lines that are read right."""
        return _equal(answers, [self._truth[image] for image in frames.image])

    def agreement(self, answers: Sequence[str], clean: Sequence[str]) -> float:
        """Return the share of lines that are read as the clean model reads them."""
        return _equal(answers, clean)

    def changed(self, answers: Sequence[str], before: Sequence[str]) -> int:
        """Return how many lines are read differently."""
        return _differing(answers, before)


def _differing(found: Sequence[object], aim: Sequence[object]) -> int:
    return sum(one != other for one, other in zip(found, aim, strict=True))


def _equal(found: Sequence[object], aim: Sequence[object]) -> float:
    return 100 * (1 - _differing(found, aim) / len(found))


def _rounded(found: Detections) -> NDArray[Any]:
    return np.column_stack([found.class_id, found.boxes.round()])
