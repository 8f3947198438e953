"""From a belief to a mix: which signatures, how strong.

The gain table holds, measured on validation images, the accuracy of each action (a signature at an alpha, or no
patch) in each state (clean, or a corruption at a severity level). The default policy takes the action with the best
expected accuracy under the belief: max_a Σ_s P(s)·accuracy[s, a]. Where two corruptions are both probable, it composes
both signatures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from oracle.belief import CLEAN, Belief
from oracle.errors import FormatError, InputError

Mix = dict[str, float]


class Policy(Protocol):
    """Chooses a mix {signature: alpha}; {} means no patch. Pure: no clock, no I/O."""

    def choose(self, belief: Belief) -> Mix:
        """The mix for the next frame."""

    def reset(self) -> None:
        """Forget the past (a cut in the stream)."""


@dataclass(frozen=True)
class GainTable:
    """Accuracy of each action in each state, in percent.

    Args:
        corruptions: the C corruption names; signatures bear the same names.
        levels: the S severity levels.
        signature: int64 (A,), the signature of each action, an index into `corruptions`; −1 is no patch (action 0).
        alpha: float32 (A,), the strength of each action; 0 for no patch.
        accuracy: float32 (1 + C·S, A), percent, states in the order of `Belief.joint`.

    Raises:
        FormatError: if the arrays do not fit together or hold values out of range.
    """

    corruptions: tuple[str, ...]
    levels: tuple[float, ...]
    signature: NDArray[np.int64]
    alpha: NDArray[np.float32]
    accuracy: NDArray[np.float32]

    def __post_init__(self) -> None:
        states, actions = 1 + len(self.corruptions) * len(self.levels), len(self.signature)
        if self.accuracy.shape != (states, actions) or self.alpha.shape != (actions,) or self.signature.ndim != 1:
            raise FormatError(
                f"gain table: accuracy {self.accuracy.shape}, alpha {self.alpha.shape}, expected ({states}, {actions}) "
                f"and ({actions},); rebuild the bundle"
            )
        if not (np.isfinite(self.accuracy).all() and np.isfinite(self.alpha).all()):
            raise FormatError("gain table: holds values that are not finite; rebuild the bundle")
        if actions == 0 or self.signature[0] != -1 or self.signature[1:].min(initial=0) < 0:
            raise FormatError("gain table: action 0 must be no patch (signature -1), and only it; rebuild the bundle")
        if self.signature.max() >= len(self.corruptions):
            found, known = self.signature.max(), len(self.corruptions)
            raise FormatError(f"gain table: signature index {found}, but {known} corruptions; rebuild the bundle")

    def mix(self, action: int) -> Mix:
        """The mix of an action."""
        index = int(self.signature[action])
        return {} if index < 0 else {self.corruptions[index]: float(self.alpha[action])}

    def own(self, name: str) -> NDArray[np.int64]:
        """Actions that use the signature `name`, and no patch."""
        return np.flatnonzero((self.signature == self.corruptions.index(name)) | (self.signature < 0))

    def limited_to(self, signatures: Sequence[str]) -> GainTable:
        """The table without the actions of signatures that are not at hand."""
        kept = np.array([index < 0 or self.corruptions[index] in signatures for index in self.signature])
        return replace(self, signature=self.signature[kept], alpha=self.alpha[kept], accuracy=self.accuracy[:, kept])

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays that `policy.safetensors` holds."""
        return {"gain.signature": self.signature, "gain.alpha": self.alpha, "gain.accuracy": self.accuracy}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[np.generic]], corruptions: Sequence[str], levels: Sequence[float]
    ) -> GainTable:
        """Read the arrays back.

        Raises:
            FormatError: if one is missing or they do not fit together.
        """
        for key in ("gain.signature", "gain.alpha", "gain.accuracy"):
            if key not in arrays:
                raise FormatError(f"policy: tensor {key!r} is missing; rebuild the bundle")
        return cls(
            tuple(corruptions),
            tuple(float(level) for level in levels),
            arrays["gain.signature"].astype(np.int64),
            arrays["gain.alpha"].astype(np.float32),
            arrays["gain.accuracy"].astype(np.float32),
        )


class ExpectedGainPolicy:
    """The action with the best expected accuracy under the belief, with hysteresis; two signatures for two corruptions.

    Args:
        table: the gain table.
        margin: percentage points of expected accuracy by which another action must beat the one in force (and any
            patch must beat no patch) before it is taken; 0 for independent images.
        clean_weight: the odds of clean are multiplied by this first: how much likelier a clean frame is in use than
            in the oracle's training.
        pair_threshold: where the two most probable corruptions both have this probability, the signatures of both are
            composed, each at its calibrated alpha; 0 never composes.
        pair_scale: what both alphas are multiplied by then.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(
        self,
        table: GainTable,
        margin: float = 0.0,
        clean_weight: float = 1.0,
        pair_threshold: float = 0.0,
        pair_scale: float = 1.0,
    ) -> None:
        if margin < 0 or clean_weight <= 0 or not 0 <= pair_threshold <= 0.5 or pair_scale <= 0:
            raise InputError(
                "policy: need margin >= 0, clean_weight > 0, 0 <= pair_threshold <= 0.5 and pair_scale > 0, got "
                f"{margin}, {clean_weight}, {pair_threshold} and {pair_scale}"
            )
        self.table, self.margin, self.clean_weight = table, margin, clean_weight
        self.pair_threshold, self.pair_scale = pair_threshold, pair_scale
        self._current = 0
        told = ToldPolicy(table, own=True)
        self._own = np.array([[told.action(name, level) for level in table.levels] for name in table.corruptions])

    def reset(self) -> None:
        """Back to no patch."""
        self._current = 0

    def expected(self, joint: NDArray[np.float32]) -> NDArray[np.float32]:
        """Expected accuracy of each action, percent, (…, A), for beliefs (…, 1 + C·S)."""
        weighted = joint.copy()
        weighted[..., 0] *= self.clean_weight
        weighted /= weighted.sum(axis=-1, keepdims=True)
        expected: NDArray[np.float32] = weighted @ self.table.accuracy
        return expected

    def choose(self, belief: Belief) -> Mix:
        """The mix for the next frame: two signatures, or else the best one unless the current is not beaten by far."""
        pair = self._pair(belief.joint)
        if pair:
            self._current = 0
            return pair
        expected = self.expected(belief.joint)
        best = int(expected.argmax())
        if expected[best] > expected[self._current] + self.margin:
            self._current = best
        return self.table.mix(self._current)

    def choose_batch(self, joint: NDArray[np.float32]) -> NDArray[np.int64]:
        """The best action of each of N independent frames, int64 (N,), for beliefs float32 (N, 1 + C·S); no pairs."""
        best: NDArray[np.int64] = self.expected(joint).argmax(axis=-1)
        return best

    def mixes(self, joint: NDArray[np.float32]) -> list[Mix]:
        """The mix of each of N independent frames, for beliefs float32 (N, 1 + C·S)."""
        actions = self.choose_batch(joint)
        return [self._pair(row) or self.table.mix(int(action)) for row, action in zip(joint, actions, strict=True)]

    def _pair(self, joint: NDArray[np.float32]) -> Mix:
        if not self.pair_threshold:
            return {}
        per_level = joint[1:].reshape(self._own.shape)
        probability = per_level.sum(axis=1)
        two = np.argsort(probability)[-2:]
        if len(two) < 2 or probability[two[0]] < self.pair_threshold:
            return {}
        levels = np.array(self.table.levels, np.float32)
        mix: Mix = {}
        for index in sorted(int(kind) for kind in two):
            severity = per_level[index] @ levels / probability[index]
            action = int(self._own[index, np.abs(levels - severity).argmin()])
            mix |= {name: self.pair_scale * alpha for name, alpha in self.table.mix(action).items()}
        return mix


class ToldPolicy:
    """The `perfect` and `best` oracles: someone tells the true type and severity.

    Args:
        table: the gain table.
        own: True restricts the choice to the type's own signature at its calibrated alpha (`perfect`: the paper's
            reading, in which clean is never patched and a corruption always is); False takes the best action of the
            whole table (`best`).
    """

    def __init__(self, table: GainTable, own: bool) -> None:
        self.table, self._own = table, own

    def action(self, name: str, severity: float) -> int:
        """The action for a true type at a true severity, 0…5.

        Raises:
            InputError: if the type is unknown.
        """
        if name == CLEAN or severity <= 0:
            return 0
        if name not in self.table.corruptions:
            raise InputError(f"unknown corruption {name!r}; known: {CLEAN}, {', '.join(self.table.corruptions)}")
        level = int(np.abs(np.array(self.table.levels) - severity).argmin())
        row = self.table.accuracy[1 + self.table.corruptions.index(name) * len(self.table.levels) + level]
        if not self._own:
            return int(row.argmax())
        actions = self.table.own(name)
        actions = actions[actions > 0]
        return int(actions[row[actions].argmax()]) if len(actions) else 0

    def choose_told(self, name: str, severity: float) -> Mix:
        """The mix for a true type at a true severity."""
        return self.table.mix(self.action(name, severity))
