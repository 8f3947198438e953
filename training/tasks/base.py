"""What the objectives of all tasks do, and what they share."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tensors = tuple[Tensor, ...]
Arrays = Sequence[NDArray[Any]]
Scores = NDArray[np.float64]

_SURE = 1e-6  # the logarithm of a probability that is 0 has no gradient


class Objective(Protocol):
    """How far a model's outputs are from a reference, one array per output, batch first: the clean model's own.

    `metric` names what `agreement` counts.
    """

    metric: str

    def loss(self, student: Tensors, teacher: Tensors) -> Tensor:
        """Return the loss to minimise, a scalar, 0 if both are equal."""

    def scores(self, outputs: Arrays, reference: Arrays) -> Scores:
        """Return how well each image's outputs agree, float64 (N,), 0…1; it changes with the outputs smoothly."""

    def agreement(self, outputs: Arrays, reference: Arrays) -> float:
        """Return the metric over all images, percent."""


def binary_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of each pair of probabilities of yes or no, in their shape."""
    return divergence(torch.stack([student, 1 - student]), torch.stack([teacher, 1 - teacher]), 0)


def divergence(student: Tensor, teacher: Tensor, axis: int) -> Tensor:
    """Return the Kullback-Leibler divergence of probabilities along an axis, which the result does not have."""
    found, aim = student.clamp(min=_SURE), teacher.clamp(min=_SURE)
    return (aim * (aim.log() - found.log())).sum(axis)


def is_distribution(values: Tensor, axis: int) -> bool:
    """Return whether values are probabilities that sum to 1 along an axis."""
    sums = values.sum(axis)
    return values.shape[axis] > 1 and bool(values.min() >= 0) and bool((sums - 1).abs().max() < 1e-3)


def to_tensors(arrays: Arrays) -> Tensors:
    """Return arrays as tensors that share their memory."""
    return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)


def overlap(found: Tensor, aim: Tensor) -> Tensor:
    """Return what two sets of weights of each image share, of all that either has: 0…1, (N,); 1 if both are empty."""
    both, either = (pick(found, aim).flatten(1).double().sum(1) for pick in (torch.minimum, torch.maximum))
    return torch.where(either > 0, both / either.clamp(min=_SURE), 1.0)
