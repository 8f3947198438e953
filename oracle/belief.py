"""The belief about one frame: a joint distribution over corruption and severity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rws.errors import InputError

CLEAN = "clean"
_LEAST = 1e-30  # a type of less mass has no usable severity: dividing by subnormal numbers is not exact
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"),
    "weather": ("snow", "frost", "fog", "brightness", "spatter"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression", "saturate"),
}
"""ImageNet-C's 19 corruptions by family, as pages and figures colour them."""


@dataclass(frozen=True)
class Belief:
    """A distribution over `clean` and the C corruptions (without `clean`) at S severity levels, ascending, above 0.

    InputError unless `joint` has the right shape and holds probabilities, and the levels lie in 0…5.
    """

    corruptions: tuple[str, ...]
    levels: tuple[float, ...]
    joint: NDArray[np.float32]  # (1 + C·S,), sums to 1: P(clean), then at 1 + c·S + k P(corruption c at level k)

    def __post_init__(self) -> None:
        expected = (1 + len(self.corruptions) * len(self.levels),)
        if self.joint.shape != expected:
            raise InputError(f"belief: joint has shape {self.joint.shape}, expected {expected} for these corruptions")
        numbers = self.joint.tolist()  # so few are added up faster by Python than by NumPy
        if not (min(numbers) >= 0 and abs(sum(numbers) - 1) < 1e-3):
            check_probabilities(self.joint)
        if not 0 < min(self.levels) <= max(self.levels) <= 5:
            raise InputError(f"belief: severity levels are {self.levels}, expected numbers above 0, at most 5")

    def check(self, corruptions: tuple[str, ...], levels: tuple[float, ...]) -> None:
        """Raise InputError unless the belief is about these corruptions and levels."""
        if self.corruptions != corruptions or self.levels != levels:
            found = f"{', '.join(self.corruptions)} at levels {self.levels}"
            raise InputError(f"belief: is about {found}, expected {', '.join(corruptions)} at levels {levels}")

    @property
    def names(self) -> tuple[str, ...]:
        """`clean`, then the corruptions: the order of `probability` and `severity`."""
        return (CLEAN, *self.corruptions)

    @property
    def probability(self) -> NDArray[np.float32]:
        """P(type), float32, shape (1 + C,), in the order of `names`."""
        return per_type(self.joint, len(self.corruptions))

    @property
    def severity(self) -> NDArray[np.float32]:
        """Expected severity of each type if it is the true one, float32, shape (1 + C,), 0…5; 0 for clean."""
        per_level = self.joint[1:].reshape(len(self.corruptions), len(self.levels))
        mass = per_level.sum(axis=1)
        uniform = np.full_like(per_level, 1 / len(self.levels))
        weights = np.where(mass[:, None] >= _LEAST, per_level / np.maximum(mass, _LEAST)[:, None], uniform)
        return np.append(0, weights @ np.array(self.levels, np.float32)).astype(np.float32)

    @property
    def type(self) -> str:
        """The most probable type: `clean` or a corruption's name."""
        return self.names[int(self.probability.argmax())]

    @property
    def type_severity(self) -> float:
        """Expected severity of the most probable type if it is the true one, 0…5; 0 for clean."""
        return float(self.severity[self.probability.argmax()])

    @property
    def expected_severity(self) -> float:
        """Expected severity over the whole distribution, 0…5 (clean counts as 0)."""
        return float(self.probability @ self.severity)


class CorruptionOracle(Protocol):
    """Names the corruption of a frame; `rws.oracle.classifier.Oracle` is one."""

    def observe(self, x: NDArray[Any]) -> Belief:
        """Return the belief about one frame: what the oracle sees of it, as float32 (3, H, W), RGB, 0…1."""


def certain(corruptions: Sequence[str], levels: Sequence[float], name: str, severity: float = 0.0) -> Belief:
    """Return a belief in one type, all on the levels (clean is 0) around `severity`, 0…5; InputError if unknown."""
    joint = np.zeros(1 + len(corruptions) * len(levels), np.float32)
    if name == CLEAN:
        joint[0] = 1
    elif name in corruptions:
        start = 1 + list(corruptions).index(name) * len(levels)
        grid = np.concatenate([[0.0], levels])
        place = float(np.interp(severity, grid, np.arange(len(grid))))
        low = min(int(place), len(grid) - 2)
        for index, mass in ((low, 1 - (place - low)), (low + 1, place - low)):
            joint[0 if index == 0 else start + index - 1] += mass
    else:
        raise InputError(f"unknown corruption {name!r}; known: {CLEAN}, {', '.join(corruptions)}")
    return Belief(tuple(corruptions), tuple(float(level) for level in levels), joint)


def check_probabilities(joint: NDArray[np.float32]) -> None:
    """Raise InputError unless each of the distributions (…, 1 + C·S) has no number below 0 and sums to 1 (±0.001)."""
    # Every comparison with NaN is false, and a sum with an infinity is never near 1.
    if not (joint.min(initial=0) >= 0 and (np.abs(joint.sum(axis=-1) - 1) <= 1e-3).all()):
        sums = np.atleast_1d(joint.sum(axis=-1))
        worst = f"{joint.min():g}, their sum {sums[np.abs(sums - 1).argmax()]:g}"
        raise InputError(f"belief: the least number is {worst}; expected probabilities: 0 or more, with the sum 1")


def per_type(joint: NDArray[np.float32], corruptions: int) -> NDArray[np.float32]:
    """Sum joint distributions (…, 1 + C·S) over the severity levels: P(type), float32 (…, 1 + C), clean first."""
    summed = joint[..., 1:].reshape(*joint.shape[:-1], corruptions, -1).sum(axis=-1)
    return np.concatenate([joint[..., :1], summed], axis=-1)
