from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rws.benchmarks.zoo.scorers import BoxScorer, ClassScorer, TextScorer
from rws.edge.preprocess import InputSpec
from rws.edge.tasks.base import TaskSpec
from rws.edge.tasks.detect import Detections

CLASSES = ("cat", "dog")
FRAMES = SimpleNamespace(pixels=torch.zeros(3, 3, 64, 64, dtype=torch.uint8), image=np.arange(3))


class Reading:
    """A network that reads "ab"; under a patch "aa"."""

    def apply(self, mix: dict[str, float]) -> bool:
        self.steps = [1, 0, 1] if mix else [1, 2, 2]
        return True

    def predict(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.tile(np.eye(3, dtype=np.float32)[self.steps], (len(x), 1, 1)),)


class Shifting:
    """A detector that sees one dog per image, and shifts it under a patch."""

    def __init__(self) -> None:
        self.mix: dict[str, float] = {}

    def apply(self, mix: dict[str, float]) -> bool:
        self.mix = mix
        return True

    def predict(self, x: np.ndarray) -> tuple[np.ndarray]:
        box = np.array([32 + 20 * len(self.mix), 32, 16, 16, 0.9, 0.0, 1.0], np.float32)
        return (np.tile(box, (len(x), 1, 1)),)


@pytest.fixture
def scorer() -> BoxScorer:
    manifest = SimpleNamespace(input=InputSpec(64, 64, "RGB"), task=TaskSpec("detect", "yolov5"), classes=CLASSES)
    box = np.array([[24, 24, 40, 40]], np.float32)
    truth = [Detections(box, np.ones(1, np.float32), np.array([1]), CLASSES)] * 3
    return BoxScorer(SimpleNamespace(manifest=manifest), truth)


def test_each_frame_is_seen_under_its_own_mix_and_scored_by_its_boxes(scorer):
    clean = scorer.answers(Shifting(), FRAMES, [{}, {}, {}])
    moved = scorer.answers(Shifting(), FRAMES, [{}, {"fog": 1.0}, {}])
    assert [found.boxes[0, 0] for found in moved] == [24, 44, 24]
    assert scorer.accuracy(clean, FRAMES) == pytest.approx(100)
    assert scorer.accuracy(moved, FRAMES) < 70
    assert scorer.agreement(clean, clean) == pytest.approx(100)
    assert scorer.changed(moved, clean) == 1
    assert scorer.changed(clean, clean) == 0


def test_lines_count_if_they_are_read_right():
    manifest = SimpleNamespace(input=InputSpec(64, 64, "RGB"))
    scorer = TextScorer(SimpleNamespace(manifest=manifest), ["ab", "ab", "aa"], ["", "a", "b"])
    clean = scorer.answers(Reading(), FRAMES, [{}, {}, {}])
    patched = scorer.answers(Reading(), FRAMES, [{}, {"fog": 1.0}, {"fog": 1.0}])
    assert (clean, patched) == (["ab", "ab", "ab"], ["ab", "aa", "aa"])
    assert scorer.accuracy(clean, FRAMES) == scorer.accuracy(patched, FRAMES) == pytest.approx(200 / 3)
    assert scorer.agreement(patched, clean) == pytest.approx(100 / 3)
    assert scorer.changed(patched, clean) == 2


class Bright:
    """A classifier of values to 255: class 1 if the image is brighter than 100."""

    def apply(self, mix: dict[str, float]) -> bool:
        return True

    def predict(self, x: np.ndarray) -> tuple[np.ndarray]:
        bright = x.mean((1, 2, 3)) > 100
        return (np.stack([~bright, bright], 1).astype(np.float32),)


def test_a_classifier_gets_the_range_that_it_takes():
    manifest = SimpleNamespace(input=InputSpec(64, 64, "RGB", high=255))
    pixels = torch.full((3, 3, 64, 64), 200, dtype=torch.uint8)
    frames = SimpleNamespace(pixels=pixels, image=np.arange(3), labels=np.array([1, 1, 0]))
    scorer = ClassScorer(SimpleNamespace(manifest=manifest))
    answers = scorer.answers(Bright(), frames, [{}] * 3)
    assert answers == [1, 1, 1]
    assert scorer.accuracy(answers, frames) == pytest.approx(200 / 3)
    assert (scorer.changed(answers, [1, 0, 1]), scorer.agreement(answers, answers)) == (1, 100)
