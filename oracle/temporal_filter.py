"""Smoothing the belief over the frames of one stream: the forward pass of a hidden Markov model (Rabiner 1989, III.A).

The hidden states are those of `Belief.joint`. From one frame to the next the state stays, drifts to a neighbouring
level of the same corruption (clean is level 0 of each), or jumps to a new one. Likelihood: the belief over its prior.
"""

from collections import deque
from collections.abc import Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from rws.errors import InputError
from rws.oracle.belief import Belief

_LEAST = 1e-6
_LEAST_PRIOR = 1e-12  # a likelihood is divided by it: a smaller one could make it infinite
_MOST_RATES = 64
_GAP = 3.0  # of a usual step in time; a shorter one is jitter
_MOST_STEPS = 500  # that a gap stands for


class BeliefFilter:
    """Combines the beliefs of consecutive frames; call `reset` at a cut. InputError if a parameter is out of range.

    Several filters run side by side, one per rate of jumps, weighted by how well each has predicted the frames so far;
    at each frame a share of the weights is spread evenly, so that none vanishes (Herbster & Warmuth 1998, the
    fixed-share algorithm). With a rate of 1 among them, unrelated frames soon keep the oracle's own belief.

    The parameters count frames. If the times of the frames are known, a gap of three usual steps or more counts as the
    frames that it would have held, so that the past is forgotten as it would be without the gap.

    Args:
        jump: probability of a jump from one frame to the next; one or several rates.
        drift: probability, without a jump, that the severity moves one level up or down.
        evidence: exponent on each frame's likelihood, 0…1; below 1 since errors on frames of one scene are dependent.
        prior: (1 + C·S,), sums to 1: the prior that the oracle was trained with, including its weight for clean; a
            jump draws from it. None: clean and each type are equally probable, and so are the levels of a type.
        share: part of the rates' weights that is spread evenly at each frame.
    """

    def __init__(
        self,
        corruptions: Sequence[str],
        levels: Sequence[float],
        jump: float | Sequence[float] = (0.02, 1.0),
        drift: float = 0.1,
        evidence: float = 1.0,
        prior: Sequence[float] | None = None,
        share: float = 0.02,
    ) -> None:
        rates = np.atleast_1d(np.array(jump, np.float64))
        within = rates.ndim == 1 and 0 < len(rates) <= _MOST_RATES and bool(((rates > 0) & (rates <= 1)).all())
        if not (within and 0 <= drift < 1 and 0 < evidence <= 1 and 0 < share < 1):
            needed = "0 < jump <= 1, 0 <= drift < 1, 0 < evidence <= 1, 0 < share < 1"
            raise InputError(f"filter: need {needed}; got {jump}, {drift}, {evidence}, {share}")
        self.corruptions, self.levels = tuple(corruptions), tuple(float(level) for level in levels)
        self.jump, self.drift, self.evidence, self.share = tuple(rates.tolist()), drift, evidence, share
        count, steps = len(self.corruptions), len(self.levels)
        if prior is None:
            self._prior = np.full(1 + count * steps, 1 / ((1 + count) * steps))
            self._prior[0] = 1 / (1 + count)
        else:
            self._prior = np.array(prior, np.float64)
        fits = self._prior.shape == (1 + count * steps,) and bool((self._prior >= _LEAST_PRIOR).all())
        if not fits or abs(self._prior.sum() - 1) > 1e-3:
            raise InputError(f"filter: prior must be {1 + count * steps} numbers, 1e-12 or more, that sum to 1")
        self._rates = rates[:, None]
        self.reset()

    def reset(self) -> None:
        """Forget the past."""
        self._states: NDArray[np.float64] | None = None
        self._at: float | None = None
        self._steps: deque[float] = deque(maxlen=15)
        self._weights = np.full_like(self._rates, 1 / len(self._rates))

    def update(self, belief: Belief, at: float | None = None) -> Belief:
        """Return the belief after this frame, given all frames since the last reset; raises as `Belief.check` does.

        `at`: when the frame is shown, seconds of its source's time line; None: as long after the last as usual.
        """
        belief.check(self.corruptions, self.levels)
        steps = self._steps_to(at)
        joint = np.maximum(belief.joint.astype(np.float64), _LEAST)
        if self._states is None:
            # A single frame keeps the oracle's own belief: the filter never changes independent images.
            self._states = np.repeat(joint[None] / joint.sum(), len(self._weights), axis=0)
            return belief
        likelihood = joint / self._prior
        if self.evidence != 1:
            likelihood **= self.evidence
        for _ in range(steps):
            self._states = self._predict(self._states)
        posterior = self._states * likelihood
        explained = posterior.sum(axis=1, keepdims=True)
        self._states = posterior / explained
        self._weights = self._weights * explained
        self._weights /= self._weights.sum()
        averaged = (self._weights * self._states).sum(axis=0)
        self._weights = (1 - self.share) * self._weights + self.share / len(self._weights)
        return Belief(belief.corruptions, belief.levels, averaged.astype(np.float32))

    def _steps_to(self, at: float | None) -> int:
        """Return for how many frames the next one stands."""
        before, self._at = self._at, at
        if before is None or at is None or not at > before:
            return 1
        usual = median(self._steps) if self._steps else at - before
        self._steps.append(at - before)
        gap = (at - before) / usual
        return 1 if gap < _GAP else round(min(gap, _MOST_STEPS))

    def _predict(self, states: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predict the next frame's states, for each rate: float64 (R, 1 + C·S) in and out."""
        count, steps = len(self.corruptions), len(self.levels)
        # A ladder per corruption: level 0 is clean, shared by all of them.
        ladder = np.empty((len(states), count, steps + 1))
        ladder[:, :, 0] = states[:, :1] / count
        ladder[:, :, 1:] = states[:, 1:].reshape(-1, count, steps)
        moved = (1 - self.drift) * ladder
        moving = self.drift / 2 * ladder
        moved[:, :, 1:] += moving[:, :, :-1]
        moved[:, :, :-1] += moving[:, :, 1:]
        moved[:, :, [0, -1]] += moving[:, :, [0, -1]]
        clean, corrupted = moved[:, :, 0].sum(axis=1, keepdims=True), moved[:, :, 1:].reshape(len(states), -1)
        stayed = np.concatenate([clean, corrupted], 1)
        return np.asarray((1 - self._rates) * stayed + self._rates * self._prior)
