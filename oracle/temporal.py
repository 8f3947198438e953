"""Smoothing the belief over the frames of one stream: the forward pass of a hidden Markov model.

The hidden states are those of `Belief.joint`. From one frame to the next the state stays, drifts to a
neighbouring level of the same corruption (clean counts as level 0 of each), or jumps anywhere. The oracle's
posterior divided by its training prior is the likelihood of the frame. Source: Rabiner 1989, Sec. III.A.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from oracle.belief import Belief
from oracle.errors import InputError


class BeliefFilter:
    """Combines the beliefs of consecutive frames; call `reset` at a cut.

    Args:
        corruptions: corruption names, without `clean`.
        levels: severity levels of the joint states.
        jump: probability that the state is drawn anew from one frame to the next.
        drift: probability that the severity moves one level up or down.
        prior: how often each joint state occurred in the oracle's training, (1 + C·S,), sums to 1; None: clean and each
            type equally often, each level of a type equally often.
        evidence: exponent on each frame's likelihood, 0…1; below 1 because the oracle's errors on consecutive frames
            of one scene are not independent.

    Raises:
        InputError: if a parameter lies outside its range.
    """

    def __init__(
        self,
        corruptions: Sequence[str],
        levels: Sequence[float],
        jump: float = 0.15,
        drift: float = 0.3,
        evidence: float = 1.0,
        prior: Sequence[float] | None = None,
    ) -> None:
        if not (0 < jump < 1 and 0 <= drift < 1 and jump + drift < 1 and 0 < evidence <= 1):
            raise InputError(
                "filter: need 0 < jump, 0 <= drift, jump + drift < 1, 0 < evidence <= 1; "
                f"got {jump}, {drift}, {evidence}"
            )
        self.corruptions, self.levels = tuple(corruptions), tuple(float(level) for level in levels)
        self.jump, self.drift, self.evidence = jump, drift, evidence
        count, steps = len(self.corruptions), len(self.levels)
        # A frame is drawn clean or from one of the types with equal odds: the distribution that a jump draws from.
        self._fresh = np.full(1 + count * steps, 1 / ((1 + count) * steps))
        self._fresh[0] = 1 / (1 + count)
        self._prior = self._fresh if prior is None else np.array(prior, np.float64)
        if self._prior.shape != self._fresh.shape or not (self._prior > 0).all() or abs(self._prior.sum() - 1) > 1e-3:
            raise InputError(f"filter: prior must be {len(self._fresh)} positive numbers that sum to 1")
        self._state: NDArray[np.float64] | None = None

    def reset(self) -> None:
        """Forget the past."""
        self._state = None

    def update(self, belief: Belief) -> Belief:
        """The belief after this frame, given all frames since the last reset."""
        likelihood = (np.maximum(belief.joint.astype(np.float64), 1e-6) / self._prior) ** self.evidence
        if self._state is None:
            # Alone, a frame keeps the oracle's own verdict: the filter never changes independent images.
            self._state = belief.joint.astype(np.float64)
            return belief
        posterior = self._predict(self._state) * likelihood
        self._state = posterior / posterior.sum()
        return Belief(belief.corruptions, belief.levels, self._state.astype(np.float32))

    def _predict(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        count, steps = len(self.corruptions), len(self.levels)
        # A ladder per corruption: level 0 is clean, shared by all of them.
        ladder = np.concatenate([np.full((count, 1), state[0] / count), state[1:].reshape(count, steps)], axis=1)
        moved = (1 - self.drift) * ladder
        moved[:, 1:] += self.drift / 2 * ladder[:, :-1]
        moved[:, :-1] += self.drift / 2 * ladder[:, 1:]
        moved[:, 0] += self.drift / 2 * ladder[:, 0]
        moved[:, -1] += self.drift / 2 * ladder[:, -1]
        stayed = np.concatenate([[moved[:, 0].sum()], moved[:, 1:].ravel()])
        return (1 - self.jump) * stayed + self.jump * self._fresh
