"""A class per pixel: one map of K logits or probabilities, or of a single one, yes or no."""

import numpy as np
import torch
from torch import Tensor

from rws.training.tasks.base import Arrays, Scores, Tensors, divergence, is_distribution, to_tensors


class SegmentObjective:
    """The clean model's classes of each pixel, (N, K, h, w), pixel by pixel."""

    metric = "mean IoU"

    def loss(self, student: Tensors, teacher: Tensors) -> Tensor:
        """Return the mean divergence of a pixel."""
        given = _are_probabilities(teacher[0])
        return divergence(_shares(student[0], given), _shares(teacher[0], given), 1).mean()

    def scores(self, outputs: Arrays, reference: Arrays) -> Scores:
        """Return the mean over the pixels of what the two probability distributions share."""
        found, aim = _both(outputs, reference)
        return torch.minimum(found, aim).sum(1).flatten(1).double().mean(1).numpy()

    def agreement(self, outputs: Arrays, reference: Arrays) -> float:
        """Return the intersection over union of a class's pixels in all images, mean over the reference's classes."""
        found, aim = (shares.argmax(1) for shares in _both(outputs, reference))
        each = [
            ((found == label) & (aim == label)).sum() / ((found == label) | (aim == label)).sum()
            for label in torch.unique(aim)
        ]
        return 100 * float(np.mean(each))


def _both(outputs: Arrays, reference: Arrays) -> tuple[Tensor, Tensor]:
    found, aim = to_tensors(outputs)[0], to_tensors(reference)[0]
    given = _are_probabilities(aim)
    return _shares(found, given), _shares(aim, given)


def _are_probabilities(maps: Tensor) -> bool:
    return bool(maps.min() >= 0 and maps.max() <= 1) if maps.shape[1] == 1 else is_distribution(maps, 1)


def _shares(maps: Tensor, given: bool) -> Tensor:
    if maps.shape[1] == 1:
        yes = maps if given else maps.sigmoid()
        return torch.cat([1 - yes, yes], 1)
    return maps if given else maps.softmax(1)
