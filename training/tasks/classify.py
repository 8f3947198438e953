"""Classes of an image: one of them, by a softmax of logits, or any number, by a sigmoid of each."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rws.training.tasks.base import Arrays, Scores, Tensors, overlap, to_tensors


class ClassifyObjective:
    """The clean model's softmax on one output of logits (N, K), as it is and softened; see `distil`."""

    metric = "top class"

    def __init__(self, soft: float, temperature: float) -> None:
        self._soft, self._temperature = soft, temperature

    def loss(self, student: Tensors, teacher: Tensors) -> Tensor:
        """Return the divergence of the two softmax outputs."""
        return distil(student[0], teacher[0], self._soft, self._temperature)

    def scores(self, outputs: Arrays, reference: Arrays) -> Scores:
        """Return the probability of the reference's class."""
        logits = outputs[0].astype(np.float64)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        chosen = odds[np.arange(len(odds)), reference[0].argmax(1)]
        return np.asarray(chosen / odds.sum(1), np.float64)

    def agreement(self, outputs: Arrays, reference: Arrays) -> float:
        """Return how often the top classes are equal."""
        return 100 * float((outputs[0].argmax(1) == reference[0].argmax(1)).mean())


class MultiLabelObjective:
    """The clean model's sigmoids on one output of logits (N, K); a label counts from a probability `least` on."""

    metric = "F1"

    def __init__(self, least: float) -> None:
        self._least = least

    def loss(self, student: Tensors, teacher: Tensors) -> Tensor:
        """Return the binary cross-entropy, less that of the teacher with itself."""
        aim = teacher[0].sigmoid()
        found, best = (F.binary_cross_entropy_with_logits(logits, aim) for logits in (student[0], teacher[0]))
        return found - best

    def scores(self, outputs: Arrays, reference: Arrays) -> Scores:
        """Return the overlap of the probabilities of all labels; of a single one, also of its absence."""
        found, aim = (to_tensors(arrays)[0].flatten(1).sigmoid() for arrays in (outputs, reference))
        if found.shape[1] == 1:
            found, aim = (torch.cat([yes, 1 - yes], 1) for yes in (found, aim))
        return overlap(found, aim).numpy()

    def agreement(self, outputs: Arrays, reference: Arrays) -> float:
        """Return F1 over all labels of all images; 100 if neither has any."""
        found, aim = (to_tensors(arrays)[0].sigmoid() >= self._least for arrays in (outputs, reference))
        of_both = int(found.sum() + aim.sum())
        return 200 * int((found & aim).sum()) / of_both if of_both else 100.0


def distil(student: Tensor, teacher: Tensor, soft: float, temperature: float) -> Tensor:
    """Return the Kullback-Leibler divergence of two networks' answers, plus `soft` times that of both softened.

    Both are float32 (N, C) logits. The temperature's square keeps the gradient's size (Hinton et al. 2015, Sec. 2).
    """
    softened = _divergence(student / temperature, teacher / temperature)
    return _divergence(student, teacher) + soft * temperature**2 * softened


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean")
