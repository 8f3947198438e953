"""Policies that choose a mix for each frame on its own: the most probable type, expected accuracy, composition."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rws.errors import InputError
from rws.oracle.belief import Belief
from rws.oracle.policy import ExpectedGainPolicy, GainTable, ReferencePolicy, WeightedPolicy
from rws.records import Mix


class FramePolicy(Protocol):
    """Chooses a mix for a frame on its own."""

    def choose(self, belief: Belief) -> Mix:
        """Return the mix, {signature: alpha}; {} is no patch."""


def own_alphas(table: GainTable) -> NDArray[np.float32]:
    """Return the calibrated alpha of each own signature at each level, float32 (C, S); 0 if there is none."""
    truth = ReferencePolicy(table, "perfect")
    return np.array(
        [[table.alpha[truth.action(name, level)] for level in table.levels] for name in table.corruptions], np.float32
    )


class HardPolicy:
    """The most probable type's own signature, at its calibrated alpha for the type's expected severity.

    There is no patch if that type's probability is below `threshold`, 0…1. The odds of clean are multiplied by
    `clean_weight`, above 0, first.
    """

    def __init__(self, table: GainTable, threshold: float = 0.0, clean_weight: float = 1.0) -> None:
        if not 0 <= threshold <= 1 or clean_weight <= 0:
            raise InputError(
                f"policy: need 0 <= threshold <= 1 and clean_weight > 0, got {threshold} and {clean_weight}"
            )
        self.threshold, self.clean_weight = threshold, clean_weight
        self._alphas, self._levels = own_alphas(table), np.array(table.levels, np.float32)

    def choose(self, belief: Belief) -> Mix:
        """Return the mix for one frame."""
        probability = belief.probability.copy()
        probability[0] *= self.clean_weight
        probability /= probability.sum()
        index = int(probability.argmax())
        if index == 0 or probability[index] < self.threshold:
            return {}
        level = int(np.abs(self._levels - belief.severity[index]).argmin())
        alpha = float(self._alphas[index - 1, level])
        return {belief.names[index]: alpha} if alpha else {}


class ExpectedPolicy(ExpectedGainPolicy):
    """The gain table's action with the best expected accuracy, each frame on its own."""

    def choose(self, belief: Belief) -> Mix:
        """Return the mix for one frame."""
        self.reset()
        return super().choose(belief)


class ComposingPolicy:
    """Both signatures of the two most probable corruptions if both are probable enough; else another policy.

    Args:
        base: decides if at most one corruption is probable enough.
        threshold: least probability of either, above 0, at most 0.5.
        scale: what both calibrated alphas are multiplied by; above 0.
    """

    def __init__(self, table: GainTable, base: FramePolicy, threshold: float, scale: float = 1.0) -> None:
        if not 0 < threshold <= 0.5 or scale <= 0:
            raise InputError(f"policy: need 0 < threshold <= 0.5 and scale > 0, got {threshold} and {scale}")
        self.base, self.threshold, self.scale = base, threshold, scale
        self._alphas, self._levels = own_alphas(table), np.array(table.levels, np.float32)

    def choose(self, belief: Belief) -> Mix:
        """Return the mix for one frame."""
        probability = belief.probability[1:]
        first, second = np.argsort(-probability, kind="stable")[:2]
        if probability[second] < self.threshold:
            return self.base.choose(belief)
        severity = belief.severity[1:]
        mix: Mix = {}
        for index in (first, second):
            level = int(np.abs(self._levels - severity[index]).argmin())
            if alpha := float(self._alphas[index, level]):
                mix[belief.corruptions[index]] = self.scale * alpha
        return mix


FAMILIES: dict[str, Callable[[GainTable, float, float], FramePolicy]] = {
    "hard": HardPolicy,
    "weighted": WeightedPolicy,
    "expected": ExpectedPolicy,
}
