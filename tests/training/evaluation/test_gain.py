import numpy as np
import pytest
import torch

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.tasks.base import TaskSpec
from rws.oracle.belief import CLEAN, certain
from rws.oracle.policy import ExpectedGainPolicy
from rws.training.data.images import Images
from rws.training.evaluation.evaluator import outputs_of, percent_right
from rws.training.evaluation.gain import CalibrationRecipe, measure_gain
from rws.training.oracle.sampling import LEVELS
from rws.training.tasks.registry import make_objective


class Fixed:
    """A model that gives the same logits whatever it sees."""

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = np.asarray(logits, np.float32)

    def predict(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (self._logits[: len(x)],)


def test_accuracy_is_the_share_that_is_right_and_its_soft_score_the_mean_probability_of_what_is():
    logits = np.log([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]) + 500
    pixels, labels = torch.zeros(3, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 0, 1])
    assert percent_right(Fixed(logits), pixels, labels) == pytest.approx(200 / 3)
    scores = make_objective(TaskSpec("classify"), "ab", (4, 4)).scores([logits], [np.eye(2)[labels]])
    np.testing.assert_allclose(scores, [0.9, 0.4, 0.8])


class Lucky:
    """A model that every patch makes better by its strength, on clear images too."""

    def __init__(self) -> None:
        self.mix = {}

    def apply(self, mix: dict[str, float]) -> None:
        self.mix = mix

    def reset(self) -> None:
        self.mix = {}


def test_what_seems_to_gain_on_clear_images_is_not_counted():
    recipe = CalibrationRecipe(severities=(5,), alphas=(0.5, 1.0), neighbours=0, neighbour_alphas=())
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    table = measure_gain(Lucky(), ("fog",), pixels, recipe, lambda model, _: 50 + 10 * sum(model.mix.values()))
    assert (table.accuracy[0] == 50).all()
    assert ExpectedGainPolicy(table).choose(certain(table.corruptions, LEVELS, CLEAN)) == {}
    assert ExpectedGainPolicy(table).choose(certain(table.corruptions, LEVELS, "fog", 5)) == {"fog": 1.0}


@pytest.mark.slow
def test_with_few_images_mean_probabilities_come_closer_to_what_many_images_say(clear):
    bundle = Bundle.load("cifar10")
    images = torch.from_numpy(clear[0].transpose(0, 3, 1, 2).copy())
    data = Images(images, torch.tensor(clear[1].astype(np.int64)), bundle.manifest.classes)
    recipe = CalibrationRecipe(
        coarse_images=4, severities=(5,), alphas=(0.5, 1.0), neighbours=1, neighbour_alphas=(1.0,)
    )
    names = ("contrast", "gaussian_noise")
    objective = make_objective(TaskSpec("classify"), bundle.manifest.classes, (32, 32))
    aim = np.eye(len(bundle.manifest.classes), dtype=np.float32)[data.labels]

    def won(part: slice, soft: bool) -> np.ndarray:
        def score(model, pixels):
            shown = slice(part.start, part.start + len(pixels))
            if soft:
                return 100 * objective.scores(outputs_of(model, pixels), [aim[shown]]).mean()
            return percent_right(model, pixels, data.labels[shown])

        model = bundle.model(ModelOptions(threads=1))
        table = measure_gain(model, names, data.pixels[part], recipe, score, corruptions=names)
        worst = [1 + table.corruptions.index(name) * len(LEVELS) + len(LEVELS) - 1 for name in names]
        return np.stack(
            [
                table.accuracy[row][table.own(name)] - table.accuracy[row, 0]
                for row, name in zip(worst, names, strict=True)
            ]
        )

    many, dozens = slice(0, len(data)), [slice(first, first + 12) for first in range(0, len(data) - 11, 12)]
    errors = {soft: np.mean([np.abs(won(part, soft) - won(many, soft)) for part in dozens]) for soft in (False, True)}
    assert errors[True] < errors[False]
