"""Outputs whose meaning is unknown: embeddings, keypoints, logits of text, heads without a decoder here."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rws.training.tasks.base import Arrays, Scores, Tensors, divergence, is_distribution, to_tensors


class RawObjective:
    """The clean model's outputs themselves: each counts alike, and in it channels of each size."""

    metric = "cosine"

    def loss(self, student: Tensors, teacher: Tensors) -> Tensor:
        """Return the mean over the outputs that are no whole numbers; probabilities are compared by divergence."""
        pairs = zip(student, teacher, strict=True)
        each = [_distance(found, aim) for found, aim in pairs if aim.is_floating_point() and found.numel()]
        return torch.stack(each).mean() if each else torch.zeros(())

    def scores(self, outputs: Arrays, reference: Arrays) -> Scores:
        """Return the cosine of the angle between the two, mean over the outputs; 0 if they point apart."""
        pairs = zip(to_tensors(outputs), to_tensors(reference), strict=True)
        each = [_cosine(*(side.flatten(1).double() for side in pair)) for pair in pairs]
        return np.asarray(torch.stack(each).mean(0).clamp(0, 1).numpy(), np.float64)

    def agreement(self, outputs: Arrays, reference: Arrays) -> float:
        """Return the mean cosine."""
        return 100 * float(self.scores(outputs, reference).mean())


def _cosine(found: Tensor, aim: Tensor) -> Tensor:
    both_zero = ~(found.any(1) | aim.any(1))
    return torch.where(both_zero, 1.0, F.cosine_similarity(found, aim))


def _distance(found: Tensor, aim: Tensor) -> Tensor:
    for axis in (1, aim.ndim - 1):
        if aim.ndim > 1 and is_distribution(aim, axis):
            return divergence(found, aim, axis).mean()
    channels = [
        side.reshape(len(side), -1) if side.ndim < 3 else side.transpose(0, 1).flatten(1) for side in (found, aim)
    ]
    if aim.ndim < 3:  # an image is one vector
        return ((channels[0] - channels[1]).square().sum(1) / channels[1].square().sum(1).clamp(min=1e-12)).mean()
    # Channels of one size are a group: alone, a channel that hardly varies would count like one that says something.
    size = channels[1].var(1, correction=0) + 1e-12
    group = size.log2().div(4).round().long()
    group = group - group.min()
    error = (channels[0] - channels[1]).square().mean(1)
    sums = [torch.zeros(int(group.max()) + 1).index_add(0, group, values) for values in (error, size)]
    used = torch.bincount(group, minlength=len(sums[0])) > 0
    return (sums[0] / sums[1].clamp(min=1e-12))[used].mean()
