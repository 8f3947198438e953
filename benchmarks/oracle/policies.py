"""Ways to get from a belief to a mix, compared on the same beliefs: hard, weighted, expected gain, with thresholds.

`hard` takes the most probable type's own signature; `weighted` composes all signatures by their types' probabilities
(`rws.oracle.policy.WeightedPolicy`); `expected` takes the gain table's action with the best expected accuracy
(`rws.oracle.policy.ExpectedGainPolicy`). Each comes plain; with a weight on clean; with a threshold; and with both.
What falls below the threshold: for `hard` the most probable type's probability (then nothing is patched), for
`weighted` a corruption's (then it is left out), for `expected` the points that a patch must win. Thresholds and weights
are chosen on validation images, all else is measured on test images, every frame on its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.errors import InputError
from rws.oracle.belief import CLEAN, Belief
from rws.oracle.policy import ExpectedGainPolicy, GainTable, ToldPolicy, WeightedPolicy
from rws.records import Mix
from rws.training.evaluation.evaluator import Evaluator, beliefs_of
from rws.training.evaluation.frames import Frames, Splits, make_frames, shuffled, single_cells

SEVERITIES = (1, 2, 3, 4, 5)
CLEAN_WEIGHTS = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
THRESHOLDS: dict[str, tuple[float, ...]] = {
    "hard": (0.0, 0.3, 0.5, 0.7, 0.9),
    "weighted": (0.0, 0.05, 0.1, 0.2, 0.4),
    "expected": (0.0, 0.25, 0.5, 1.0, 2.0),
}
RULES = ("plain", "clean weight", "threshold", "both")


class FramePolicy(Protocol):
    """Chooses a mix for a frame on its own."""

    def choose(self, belief: Belief) -> Mix:
        """The mix, {signature: alpha}; {} is no patch."""


def weighted_probability(belief: Belief, clean_weight: float) -> NDArray[np.float32]:
    """P(type), float32 (1 + C,), in the order of `belief.names`, after the odds of clean were multiplied."""
    probability = belief.probability.copy()
    probability[0] *= clean_weight
    scaled: NDArray[np.float32] = probability / probability.sum()
    return scaled


def own_alphas(table: GainTable) -> NDArray[np.float32]:
    """The calibrated alpha of each corruption's own signature at each level, float32 (C, S); 0 where it has none."""
    told = ToldPolicy(table, own=True)
    return np.array(
        [[table.alpha[told.action(name, level)] for level in table.levels] for name in table.corruptions], np.float32
    )


class HardPolicy:
    """The most probable type's own signature, at its calibrated alpha for the type's expected severity.

    Args:
        table: the gain table.
        threshold: no patch where the most probable type is less probable than this, 0…1.
        clean_weight: the odds of clean are multiplied by this first.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(self, table: GainTable, threshold: float = 0.0, clean_weight: float = 1.0) -> None:
        _check(threshold, clean_weight)
        self.threshold, self.clean_weight = threshold, clean_weight
        self._alphas, self._levels = own_alphas(table), np.array(table.levels, np.float32)

    def choose(self, belief: Belief) -> Mix:
        """The mix for one frame."""
        probability = weighted_probability(belief, self.clean_weight)
        index = int(probability.argmax())
        if index == 0 or probability[index] < self.threshold:
            return {}
        level = int(np.abs(self._levels - belief.severity[index]).argmin())
        alpha = float(self._alphas[index - 1, level])
        return {belief.names[index]: alpha} if alpha else {}


class ExpectedPolicy:
    """The gain table's action with the best expected accuracy, each frame on its own.

    Args:
        table: the gain table.
        threshold: points of expected accuracy by which a patch must beat no patch.
        clean_weight: the odds of clean are multiplied by this first.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(self, table: GainTable, threshold: float = 0.0, clean_weight: float = 1.0) -> None:
        self._policy = ExpectedGainPolicy(table, threshold, clean_weight)

    def choose(self, belief: Belief) -> Mix:
        """The mix for one frame."""
        self._policy.reset()
        return self._policy.choose(belief)


FAMILIES: dict[str, Callable[[GainTable, float, float], FramePolicy]] = {
    "hard": HardPolicy,
    "weighted": WeightedPolicy,
    "expected": ExpectedPolicy,
}


def _check(threshold: float, clean_weight: float) -> None:
    if not 0 <= threshold <= 1 or clean_weight <= 0:
        raise InputError(f"policy: need 0 <= threshold <= 1 and clean_weight > 0, got {threshold} and {clean_weight}")


@dataclass(frozen=True)
class Setting:
    """A policy of a family; accuracies on validation images in percent."""

    family: str
    threshold: float
    clean_weight: float
    ta_loss: float
    ra: float

    def policy(self, table: GainTable) -> FramePolicy:
        """The policy itself."""
        return FAMILIES[self.family](table, self.threshold, self.clean_weight)


def accuracies(frames: Frames, right: NDArray[np.bool_]) -> dict[str, float]:
    """`ta`, `ra` (over all corrupted cells) and `ra_5` (over those of severity 5), in percent."""
    per_cell = 100 * frames.per_cell(right)
    corrupted = [number for number, layers in enumerate(frames.cells) if layers]
    strongest = [number for number in corrupted if frames.cells[number][0][1] == SEVERITIES[-1]]
    return {
        "ta": float(np.mean([per_cell[number] for number, layers in enumerate(frames.cells) if not layers])),
        "ra": float(per_cell[corrupted].mean()),
        "ra_5": float(per_cell[strongest].mean()),
    }


def choose_setting(settings: Sequence[Setting], rule: str, allowed_ta_loss: float) -> Setting:
    """The setting of a family with the best RA on validation images, of those that a rule admits.

    Args:
        settings: those of one family.
        rule: one of `RULES`: what may differ from threshold 0 and clean weight 1.
        allowed_ta_loss: settings that lose more points on clean images do not count, save where all do: then the one
            that loses least is taken. A `plain` policy is what it is.

    Raises:
        InputError: if the rule is unknown.
    """
    if rule not in RULES:
        raise InputError(f"unknown rule {rule!r}; known: {', '.join(RULES)}")
    free_threshold, free_weight = rule in ("threshold", "both"), rule in ("clean weight", "both")
    admitted = [
        setting
        for setting in settings
        if (free_threshold or setting.threshold == 0) and (free_weight or setting.clean_weight == 1)
    ]
    harmless = [setting for setting in admitted if setting.ta_loss <= allowed_ta_loss]
    if harmless:
        return max(harmless, key=lambda setting: setting.ra)
    return min(admitted, key=lambda setting: (setting.ta_loss, -setting.ra))


def compare_policies(
    bundle: Bundle,
    splits: Splits,
    *,
    limit: int = 200,
    validation_limit: int = 400,
    clean_limit: int | None = None,
    allowed_ta_loss: float = 0.2,
    clean_weights: Sequence[float] = CLEAN_WEIGHTS,
    thresholds: Mapping[str, Sequence[float]] = THRESHOLDS,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Compare the policies in one table: 19 corruptions at severities 1…5, and clean images.

    Args:
        bundle: gives model, oracle, gain table and the shipped policy.
        splits: settings are chosen on `validation`, the table is measured on `test`.
        limit: test images of each corruption and severity.
        validation_limit: validation images of each.
        clean_limit: clean images of either; None: all, since 0.2 points are 2 images in 1000.
        allowed_ta_loss: points of clean accuracy that a setting may lose on validation images.
        clean_weights, thresholds: the grid; each must hold the plain values, 1 and 0.
        seed: of the images and the corruptions.
        threads: of model and oracle.
        progress: called with a line for each policy.

    Returns:
        `rows`, one a policy: `policy` (`std`, `perfect`, `best`, `shipped`, or a family), `rule`, `threshold`,
        `clean_weight`, `ta`, `ra`, `ra_5` (severity 5), `regret`, `regret_5` (perfect − this), `regret_best` (best −
        this), `ra_minus_shipped` with `ra_se`, its standard error over images, `patched` and `patched_clean` (percent
        of corrupted and clean frames), `microseconds` a decision, and for families and `shipped` what `validation`
        images showed: `ta_loss` and `ra`. Beside them the `winner`, the family and rule with the best RA on validation
        images under the allowed loss, and what it all rests on.

    Raises:
        InputError: if the grid lacks the plain values.
    """
    if 1 not in clean_weights or any(0 not in thresholds[family] for family in FAMILIES):
        raise InputError("policies: clean_weights must hold 1 and the thresholds of each family 0")
    say = progress or (lambda line: None)
    shipped = bundle.policy(independent=True)
    evaluator, beliefs, _ = _prepared(
        bundle, splits.validation, validation_limit, clean_limit, seed, threads, "validation"
    )
    settings = _validated(bundle.table, evaluator, beliefs, clean_weights, thresholds, say)
    validation = {("shipped", ""): _on_validation(evaluator, beliefs, shipped)}
    chosen = {
        (family, rule): choose_setting([s for s in settings if s.family == family], rule, allowed_ta_loss)
        for family in FAMILIES
        for rule in RULES
    }
    validation |= {key: (setting.ta_loss, setting.ra) for key, setting in chosen.items()}
    evaluator, beliefs, told = _prepared(bundle, splits.test, limit, clean_limit, seed, threads, "test")
    frames = evaluator.frames
    mixes: dict[tuple[str, str], list[Mix]] = {("std", ""): [{} for _ in beliefs]}
    mixes |= {(name, ""): found for name, found in told.items()}
    policies: dict[tuple[str, str], FramePolicy] = {("shipped", ""): shipped}
    policies |= {key: setting.policy(bundle.table) for key, setting in chosen.items()}
    mixes |= {key: [policy.choose(belief) for belief in beliefs] for key, policy in policies.items()}
    right = {key: evaluator.right(found) for key, found in mixes.items()}
    scores = {key: accuracies(frames, found) for key, found in right.items()}
    rows = []
    for key, found in mixes.items():
        score = scores[key]
        difference, error = _paired(frames, right[key], right["shipped", ""])
        row: dict[str, Any] = {"policy": key[0], "rule": key[1]}
        if key in chosen:
            row |= {"threshold": chosen[key].threshold, "clean_weight": chosen[key].clean_weight}
        elif key[0] == "shipped":
            own = bundle.manifest.policy
            row |= {name: own[name] for name in ("kind", "threshold", "clean_weight") if name in own}
        row |= {name: round(value, 2) for name, value in score.items()}
        row |= {
            "regret": round(scores["perfect", ""]["ra"] - score["ra"], 2),
            "regret_5": round(scores["perfect", ""]["ra_5"] - score["ra_5"], 2),
            "regret_best": round(scores["best", ""]["ra"] - score["ra"], 2),
            "ra_minus_shipped": round(difference, 2),
            "ra_se": round(error, 2),
            **_patched(frames, found),
        }
        if key in policies:
            row["microseconds"] = round(microseconds(policies[key], beliefs), 1)
            row["validation"] = dict(
                zip(("ta_loss", "ra"), (round(value, 2) for value in validation[key]), strict=True)
            )
        rows.append(row)
        say(f"{key[0]:10s} {key[1]:14s} TA {row['ta']:6.2f}  RA {row['ra']:6.2f}  at 5 {row['ra_5']:6.2f}")
    harmless = [key for key, setting in chosen.items() if setting.ta_loss <= allowed_ta_loss]
    best = max(harmless, key=lambda key: chosen[key].ra) if harmless else None
    return {
        "rows": rows,
        "winner": None if best is None else {"policy": best[0], "rule": best[1]},
        "allowed_ta_loss": allowed_ta_loss,
        "images": limit if limit < len(splits.test) else len(splits.test),
        "clean_images": int((frames.cell == 0).sum()),
        "frames": len(frames),
        "validation_images": min(validation_limit, len(splits.validation)),
        "grid": {"clean_weight": list(clean_weights), **{name: list(thresholds[name]) for name in FAMILIES}},
        "seed": seed,
    }


def _prepared(
    bundle: Bundle, images: Any, limit: int, clean_limit: int | None, seed: int, threads: int, purpose: str
) -> tuple[Evaluator, list[Belief], dict[str, list[Mix]]]:
    """Frames with a evaluator, the oracle's beliefs, and the mixes of those who are told."""
    order = shuffled(images, None, seed)
    cells = ((), *single_cells(SEVERITIES))
    frames = make_frames(order.first(limit), cells, seed, order.first(clean_limit), purpose=purpose)
    told = {}
    for name, own in (("perfect", True), ("best", False)):
        policy = ToldPolicy(bundle.table, own=own)
        by_cell = [policy.choose_told(*(layers[0] if layers else (CLEAN, 0.0))) for layers in frames.cells]
        told[name] = [by_cell[cell] for cell in frames.cell]
    return (
        Evaluator(bundle.model(ModelOptions(threads=threads)), frames),
        beliefs_of(bundle.oracle(threads), frames),
        told,
    )


def _on_validation(evaluator: Evaluator, beliefs: Sequence[Belief], policy: FramePolicy) -> tuple[float, float]:
    """The points of TA that a policy loses, and its RA."""
    score = accuracies(evaluator.frames, evaluator.right([policy.choose(belief) for belief in beliefs]))
    return accuracies(evaluator.frames, evaluator.right_under({}))["ta"] - score["ta"], score["ra"]


def _validated(
    table: GainTable,
    evaluator: Evaluator,
    beliefs: Sequence[Belief],
    clean_weights: Sequence[float],
    thresholds: Mapping[str, Sequence[float]],
    say: Callable[[str], None],
) -> list[Setting]:
    settings = []
    for family, build in FAMILIES.items():
        for threshold in thresholds[family]:
            for weight in clean_weights:
                found = _on_validation(evaluator, beliefs, build(table, threshold, weight))
                settings.append(Setting(family, threshold, weight, *found))
            best = max(settings[-len(clean_weights) :], key=lambda setting: setting.ra)
            say(f"validation: {family:10s} threshold {threshold:<5g} RA {best.ra:6.2f}  TA loss {best.ta_loss:5.2f}")
    return settings


def _paired(frames: Frames, right: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean difference in RA, points, and its standard error; a frame's luck is its image's, in all cells."""
    corrupted = frames.where(number for number, layers in enumerate(frames.cells) if layers)
    difference = 100 * (right[corrupted].astype(float) - other[corrupted])
    image = frames.image[corrupted]
    per_image = np.bincount(image, difference) / np.bincount(image)
    return float(per_image.mean()), float(per_image.std(ddof=1) / np.sqrt(len(per_image)))


def _patched(frames: Frames, mixes: Sequence[Mix]) -> dict[str, float]:
    per_cell = 100 * frames.per_cell(np.array([bool(mix) for mix in mixes]))
    corrupted = [number for number, layers in enumerate(frames.cells) if layers]
    return {"patched": round(float(per_cell[corrupted].mean()), 1), "patched_clean": round(float(per_cell[0]), 1)}


def microseconds(policy: FramePolicy, beliefs: Sequence[Belief], count: int = 500, repeats: int = 5) -> float:
    """Median over repeats of the time of a decision, microseconds, over beliefs spread over all that there are."""
    chosen = [beliefs[int(index)] for index in np.linspace(0, len(beliefs) - 1, min(count, len(beliefs)))]
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for belief in chosen:
            policy.choose(belief)
        times.append((time.perf_counter() - start) / len(chosen))
    return 1e6 * float(np.median(times[1:]))


def print_policies(result: Mapping[str, Any], console: Console) -> None:
    """The table on a console."""
    columns = ("ta", "ra", "ra_5", "regret", "regret_best", "patched", "patched_clean", "microseconds")
    table = Table("policy", "rule", "threshold", "clean weight")
    for name in ("TA", "RA", "RA at 5", "regret", "to best", "% patched", "% of clean", "µs"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        setting = [f"{row[key]:g}" if key in row else "" for key in ("threshold", "clean_weight")]
        numbers = [f"{row[key]:.{1 if key == 'microseconds' else 2}f}" if key in row else "" for key in columns]
        table.add_row(row["policy"], row["rule"], *setting, *numbers)
    console.print(table)
    if result["winner"]:
        winner = result["winner"]
        console.print(f"best on validation images: {winner['policy']} ({winner['rule']})")
