"""From a belief to a mix: which signatures, how strong.

The gain table holds the accuracy of each action (a signature at an alpha, or none) in each state, as measured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rws.errors import FormatError, InputError
from rws.oracle.belief import CLEAN, Belief
from rws.records import Mix

MAX_ALPHA = 16  # the extraction is for 1; calibrations try up to 2
MAX_GAIN = 1000  # percent: what is estimated, not measured, can leave 0…100
MAX_WEIGHT = 1e6
STEP = 1 / 16  # grid of the alphas of `WeightedPolicy`: smaller changes are not worth a patch


class Policy(Protocol):
    """Chooses a mix {signature: alpha}; {} means no patch. It may depend on the beliefs before; no clock, no I/O."""

    def choose(self, belief: Belief) -> Mix:
        """Return the mix for the next frame; raise InputError if the belief is about another table's states."""

    def mixes(self, joint: NDArray[np.float32]) -> list[Mix]:
        """Return the mix of each of N independent frames, for beliefs float32 (N, 1 + C·S); raises as `choose` does."""

    def reset(self) -> None:
        """Forget the past (a cut in the stream)."""


@dataclass(frozen=True)
class PatchLimits:
    """What a person allows a policy, whatever the oracle says; InputError if the severity is not in 0…5."""

    leave_clean: bool = False  # never patch
    min_severity: float = 0.0  # patch only if the most probable type has this severity or more

    def __post_init__(self) -> None:
        if not 0 <= self.min_severity <= 5:
            raise InputError(f"the least severity for a patch is {self.min_severity}, expected 0 to 5")

    def allow(self, belief: Belief) -> bool:
        """Return whether the policy may choose a patch for this belief."""
        return not self.leave_clean and belief.type_severity >= self.min_severity


NO_LIMITS = PatchLimits()


@dataclass(frozen=True)
class GainTable:
    """Accuracy of each action in each state; FormatError if the arrays do not fit together or are out of range."""

    corruptions: tuple[str, ...]
    levels: tuple[float, ...]
    signature: NDArray[np.int64]  # (A,), of each action, an index into `corruptions`; −1 is no patch (action 0)
    alpha: NDArray[np.float32]  # (A,), the strength of each action; 0 for no patch
    accuracy: NDArray[np.float32]  # (1 + C·S, A), percent, states in the order of `Belief.joint`

    def __post_init__(self) -> None:
        states, actions = 1 + len(self.corruptions) * len(self.levels), len(self.signature)
        if self.accuracy.shape != (states, actions) or self.alpha.shape != (actions,) or self.signature.ndim != 1:
            found = f"accuracy {self.accuracy.shape}, alpha {self.alpha.shape}"
            expected = f"({states}, {actions}) and ({actions},)"
            raise FormatError(f"gain table: {found}, expected {expected}; rebuild the bundle")
        bounds = ("alpha", self.alpha, 0, MAX_ALPHA), ("accuracy", self.accuracy, -MAX_GAIN, MAX_GAIN)
        for what, values, least, most in bounds:
            if not ((values >= least) & (values <= most)).all():
                raise FormatError(f"gain table: {what} is not finite or not in {least}…{most}; rebuild the bundle")
        if actions == 0 or self.signature[0] != -1 or self.signature[1:].min(initial=0) < 0:
            raise FormatError("gain table: action 0 must be no patch (signature -1), and only it; rebuild the bundle")
        if self.signature.max() >= len(self.corruptions):
            found, known = self.signature.max(), len(self.corruptions)
            raise FormatError(f"gain table: signature index {found}, but {known} corruptions; rebuild the bundle")

    def mix(self, action: int) -> Mix:
        """Return the mix of an action."""
        index = int(self.signature[action])
        return {} if index < 0 else {self.corruptions[index]: float(self.alpha[action])}

    def index(self, name: str) -> int:
        """Return the place of a corruption among `corruptions`; raise InputError if the name is unknown."""
        if name not in self.corruptions:
            raise InputError(f"unknown corruption {name!r}; known: {', '.join(self.corruptions)}")
        return self.corruptions.index(name)

    def check_joint(self, joint: NDArray[np.float32]) -> None:
        """Raise InputError unless beliefs, float32 (..., 1 + C·S), have the table's number of states."""
        if joint.shape[-1:] != (len(self.accuracy),):
            raise InputError(f"beliefs: joint has shape {joint.shape}, expected {len(self.accuracy)} states in each")

    def own(self, name: str) -> NDArray[np.int64]:
        """Return the actions that use the signature `name`, and no patch: int64; raise InputError if it is unknown."""
        return np.flatnonzero((self.signature == self.index(name)) | (self.signature < 0))

    def estimate(self, mix: Mix) -> NDArray[np.float32]:
        """Estimate the accuracy of a mix in each state, percent, float32 (1 + C·S,); raise InputError for unknown ones.

        Each signature's gain is interpolated between its alphas, and the gains add up, at most to the best action's.
        """
        none = self.accuracy[:, 0]
        gain = np.zeros_like(none)
        for name, alpha in mix.items():
            actions = self.own(name)
            actions = actions[np.argsort(self.alpha[actions])]
            at = np.interp(alpha, self.alpha[actions], np.arange(len(actions)))
            low = min(int(at), len(actions) - 1)
            high = min(low + 1, len(actions) - 1)
            lower, upper = self.accuracy[:, actions[low]], self.accuracy[:, actions[high]]
            gain += lower + np.float32(at - low) * (upper - lower) - none
        return np.asarray(np.minimum(none + gain, self.accuracy.max(axis=1)))

    def limited_to(self, signatures: Sequence[str]) -> "GainTable":
        """Return the table without the actions of other signatures."""
        kept = np.array([index < 0 or self.corruptions[index] in signatures for index in self.signature])
        return replace(self, signature=self.signature[kept], alpha=self.alpha[kept], accuracy=self.accuracy[:, kept])

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays that `policy.safetensors` holds."""
        return {"gain.signature": self.signature, "gain.alpha": self.alpha, "gain.accuracy": self.accuracy}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[np.generic]], corruptions: Sequence[str], levels: Sequence[float]
    ) -> "GainTable":
        """Read the arrays back; raise FormatError if one is missing or they do not fit together."""
        if missing := [key for key in ("gain.signature", "gain.alpha", "gain.accuracy") if key not in arrays]:
            raise FormatError(f"policy: tensor {missing[0]!r} is missing; rebuild the bundle")
        if arrays["gain.signature"].dtype.kind not in "iu":
            raise FormatError("policy: 'gain.signature' holds no integers; rebuild the bundle")
        return cls(
            tuple(corruptions),
            tuple(float(level) for level in levels),
            arrays["gain.signature"].astype(np.int64),
            arrays["gain.alpha"].astype(np.float32),
            arrays["gain.accuracy"].astype(np.float32),
        )


class WeightedPolicy:
    """Every probable corruption's own signature, at its probability times its calibrated alpha, the best of its row.

    A corruption without a signature gets the best action of its row: a neighbour's signature, if one helps.
    Corruptions less probable than `threshold`, 0…1, are ignored; `clean_weight` is a factor on the odds of clean: how
    much likelier a clean frame is in use than the oracle assumes. The mix is kept while no alpha differs by more than
    `hold`, but removing the patch takes effect immediately; 0 for independent images.
    """

    def __init__(self, table: GainTable, threshold: float = 0.1, clean_weight: float = 1.0, hold: float = 0.0) -> None:
        if not (0 <= threshold < 1 and 1 / MAX_WEIGHT <= clean_weight <= MAX_WEIGHT and 0 <= hold < math.inf):
            needed = f"0 <= threshold < 1, clean_weight from {1 / MAX_WEIGHT} to {MAX_WEIGHT} and hold >= 0"
            raise InputError(f"policy: need {needed}, got {threshold}, {clean_weight} and {hold}")
        self.table, self.threshold, self.clean_weight, self.hold = table, threshold, clean_weight, hold
        self._answers = []
        for name in table.corruptions:
            reference = ReferencePolicy(table, "perfect" if len(table.own(name)) > 1 else "best")
            self._answers.append([reference.mix(name, level) for level in table.levels])
        self._levels = np.array(table.levels, np.float32)
        self._current: Mix = {}

    def reset(self) -> None:
        """Return to no patch."""
        self._current = {}

    def choose(self, belief: Belief) -> Mix:
        """Return the mix for the next frame; see `Policy.choose`."""
        belief.check(self.table.corruptions, self.table.levels)
        mix, current = self._mix(belief.joint), self._current
        if not mix or any(abs(mix.get(name, 0) - current.get(name, 0)) > self.hold for name in {*mix, *current}):
            self._current = mix
        return self._current

    def mixes(self, joint: NDArray[np.float32]) -> list[Mix]:
        """Return the mix of each of N independent frames; see `Policy.mixes`."""
        self.table.check_joint(joint)
        return [self._mix(row) for row in joint]

    def _mix(self, joint: NDArray[np.float32]) -> Mix:
        per_level = joint[1:].reshape(-1, len(self._levels))
        mass = per_level.sum(axis=1)
        whole = float(mass.sum()) + self.clean_weight * float(joint[0])
        mix: Mix = {}
        for index in np.flatnonzero(mass >= max(self.threshold * whole, 1e-12)).tolist():
            severity = float(per_level[index] @ self._levels) / float(mass[index])
            for name, alpha in self._answers[index][int(np.abs(self._levels - severity).argmin())].items():
                mix[name] = mix.get(name, 0.0) + alpha * float(mass[index]) / whole
        steps = {name: round(alpha / STEP) for name, alpha in mix.items()}
        return {name: count * STEP for name, count in steps.items() if count}


class ExpectedGainPolicy:
    """The action with the best expected accuracy under the belief, max_a Σ_s P(s)·accuracy[s, a], with hysteresis.

    Another action must beat the current one by `margin` percentage points; `clean_weight` is as for `WeightedPolicy`.
    """

    def __init__(self, table: GainTable, margin: float = 0.0, clean_weight: float = 1.0) -> None:
        if not (0 <= margin < math.inf and 1 / MAX_WEIGHT <= clean_weight <= MAX_WEIGHT):
            needed = f"margin >= 0 and clean_weight from {1 / MAX_WEIGHT} to {MAX_WEIGHT}"
            raise InputError(f"policy: need {needed}, got {margin} and {clean_weight}")
        self.table, self.margin, self.clean_weight = table, margin, clean_weight
        self._current = 0

    def reset(self) -> None:
        """Return to no patch."""
        self._current = 0

    def expected(self, joint: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the expected accuracy of each action, percent, float32 (…, A), for beliefs (…, 1 + C·S)."""
        self.table.check_joint(joint)
        weighted = joint.copy()
        weighted[..., 0] *= self.clean_weight
        weighted /= weighted.sum(axis=-1, keepdims=True)
        return np.asarray(weighted @ self.table.accuracy)

    def choose(self, belief: Belief) -> Mix:
        """Return the mix with the best expected accuracy, or the current one unless it is beaten by the margin."""
        belief.check(self.table.corruptions, self.table.levels)
        expected = self.expected(belief.joint)
        if expected.max() > expected[self._current] + self.margin:
            self._current = int(expected.argmax())
        return self.table.mix(self._current)

    def choose_batch(self, joint: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the best action of each of N independent frames, int64 (N,), for beliefs float32 (N, 1 + C·S)."""
        return np.asarray(self.expected(joint).argmax(axis=-1))

    def mixes(self, joint: NDArray[np.float32]) -> list[Mix]:
        """Return the mix of each of N independent frames; see `Policy.mixes`."""
        return [self.table.mix(int(action)) for action in self.choose_batch(joint)]


class ReferencePolicy:
    """Answers the true type and severity of a frame, as a perfect oracle would report them.

    Of kind "perfect" it takes the type's own signature at its calibrated alpha (the paper's reading: a corruption is
    always patched, clean never); of kind "best" the best action of the whole table.
    """

    def __init__(self, table: GainTable, kind: str) -> None:
        if kind not in ("perfect", "best"):
            raise InputError(f"reference policy is {kind!r}, expected perfect or best")
        self.table, self.kind = table, kind

    def action(self, name: str, severity: float) -> int:
        """Return the action for a true type at a true severity, 0…5; raise InputError if the type is unknown."""
        if name == CLEAN or severity <= 0:
            return 0
        level = int(np.abs(np.array(self.table.levels) - severity).argmin())
        row = self.table.accuracy[1 + self.table.index(name) * len(self.table.levels) + level]
        if self.kind == "best":
            return int(row.argmax())
        actions = self.table.own(name)[1:]
        return int(actions[row[actions].argmax()]) if len(actions) else 0

    def mix(self, name: str, severity: float) -> Mix:
        """Return the mix for a true type at a true severity; see `action`."""
        return self.table.mix(self.action(name, severity))


# The kinds of policy that a bundle can name.
_Kind = type[WeightedPolicy] | type[ExpectedGainPolicy]
POLICIES: Mapping[str, _Kind] = {"weighted": WeightedPolicy, "expected": ExpectedGainPolicy}


def make_policy(table: GainTable, settings: Mapping[str, object], independent: bool = False) -> Policy:
    """Return a bundle's policy, without hysteresis if `independent`; InputError or TypeError for unknown settings."""
    arguments = dict(settings)
    kind = arguments.pop("kind", "expected")
    if kind not in POLICIES:
        raise InputError(f"policy: unknown kind {str(kind)[:80]!r}; known: {', '.join(POLICIES)}")
    if independent:
        arguments["hold" if kind == "weighted" else "margin"] = 0.0
    return POLICIES[str(kind)](table, **arguments)  # type: ignore[arg-type]
