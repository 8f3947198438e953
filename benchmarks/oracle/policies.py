"""Policies, from a belief to a mix, compared on the same beliefs: hard, weighted, expected gain, with thresholds.

Each family is tried plain, with a weight on clean, with a threshold, and with both. These settings are chosen on
validation images; everything else is measured on test images, each frame on its own."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from rws.benchmarks.common.tables import Column, Record, columns, label, terminal
from rws.benchmarks.oracle.frame_policies import FAMILIES, FramePolicy
from rws.edge.bundle.bundle import Bundle
from rws.errors import check_known
from rws.oracle.belief import Belief
from rws.oracle.policy import GainTable, ReferencePolicy
from rws.records import Mix
from rws.training.evaluation.evaluator import EvaluationOptions, Evaluator, Progress, ground_truth_mixes, prepare
from rws.training.evaluation.frames import SEVERITIES, Frames, Splits, single_cells

CLEAN_WEIGHTS = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
THRESHOLDS: dict[str, tuple[float, ...]] = {
    "hard": (0.0, 0.3, 0.5, 0.7, 0.9),
    "weighted": (0.0, 0.05, 0.1, 0.2, 0.4),
    "expected": (0.0, 0.25, 0.5, 1.0, 2.0),
}
"""The grid, plain values included. The threshold is on: for `hard` the most probable type's probability (below: no
patch), for `weighted` each corruption's (below: not in the mix), for `expected` the gain of a patch in points."""
ALLOWED_TA_LOSS = 0.2
"""Points of clean accuracy that a setting may lose on validation images."""
RULES = ("plain", "clean weight", "threshold", "both")

Key = tuple[str, str]
"""Policy (`std`, `perfect`, `best`, `shipped`, or a family) and rule ("" except for families)."""


@dataclass(frozen=True)
class Setting:
    """A policy of a family; accuracies on validation images in percent."""

    family: str
    threshold: float
    clean_weight: float
    ta_loss: float
    ra: float

    def policy(self, table: GainTable) -> FramePolicy:
        """Return the policy."""
        return FAMILIES[self.family](table, self.threshold, self.clean_weight)


def choose_setting(settings: Sequence[Setting], rule: str, allowed_ta_loss: float) -> Setting:
    """Return the setting of a family with the best RA on validation images, of those that a rule admits.

    Args:
        rule: one of `RULES`: what may differ from threshold 0 and clean weight 1; UsageError if it is unknown.
        allowed_ta_loss: settings that lose more points on clean images only count if all do; then the least loss wins.
    """
    check_known("rule", [rule], RULES)
    free_threshold, free_weight = rule in ("threshold", "both"), rule in ("clean weight", "both")
    admitted = [s for s in settings if (free_threshold or s.threshold == 0) and (free_weight or s.clean_weight == 1)]
    if harmless := [setting for setting in admitted if setting.ta_loss <= allowed_ta_loss]:
        return max(harmless, key=lambda setting: setting.ra)
    return min(admitted, key=lambda setting: (setting.ta_loss, -setting.ra))


def compare_policies(bundle: Bundle, splits: Splits, options: EvaluationOptions) -> Record:
    """Compare the policies in one table: 19 corruptions at severities 1…5, and clean images.

    Settings are chosen on `validation`, the table is measured on `test`. All clean images should be used: 0.2 points
    are 2 images in 1000.
    """
    table, cells = bundle.table, ((), *single_cells(SEVERITIES))
    shipped = bundle.policy(independent=True)
    evaluator, beliefs = prepare(bundle, splits.validation, cells, options, "validation")
    settings = _validated(table, evaluator, beliefs, options.progress)
    chosen = {
        (family, rule): choose_setting([s for s in settings if s.family == family], rule, ALLOWED_TA_LOSS)
        for family, rule in product(FAMILIES, RULES)
    }
    validation = {("shipped", ""): _on_validation(evaluator, beliefs, shipped)}
    validation |= {key: (setting.ta_loss, setting.ra) for key, setting in chosen.items()}
    policies: dict[Key, FramePolicy] = {("shipped", ""): shipped}
    policies |= {key: setting.policy(table) for key, setting in chosen.items()}

    evaluator, beliefs = prepare(bundle, splits.test, cells, options)
    mixes: dict[Key, list[Mix]] = {("std", ""): [{} for _ in beliefs]}
    for name in ("perfect", "best"):
        mixes[name, ""] = ground_truth_mixes(ReferencePolicy(table, name), evaluator.frames)
    mixes |= {key: [policy.choose(belief) for belief in beliefs] for key, policy in policies.items()}
    rows = _rows(evaluator, mixes)
    for key, row in rows.items():
        row |= _settings(bundle, chosen.get(key), shipped=key[0] == "shipped")
        if key in policies:
            ta_loss, ra = validation[key]
            row["microseconds"] = round(microseconds(policies[key], beliefs), 1)
            row["validation"] = {"ta_loss": round(ta_loss, 2), "ra": round(ra, 2)}
        options.progress(f"{key[0]:10s} {key[1]:14s} TA {row['ta']:6.2f}  RA {row['ra']:6.2f}  at 5 {row['ra_5']:6.2f}")
    harmless = [key for key, setting in chosen.items() if setting.ta_loss <= ALLOWED_TA_LOSS]
    best = max(harmless, key=lambda key: chosen[key].ra, default=None)
    return {
        "rows": list(rows.values()),
        "winner": None if best is None else {"policy": best[0], "rule": best[1]},
        "allowed_ta_loss": ALLOWED_TA_LOSS,
        "images": len(splits.test.first(options.limit)),
        "clean_images": int((evaluator.frames.cell == 0).sum()),
        "frames": len(evaluator.frames),
        "validation_images": len(splits.validation.first(options.validation_limit)),
        "grid": {"clean_weight": list(CLEAN_WEIGHTS), **{name: list(THRESHOLDS[name]) for name in FAMILIES}},
        "seed": options.seed,
    }


def _rows(evaluator: Evaluator, mixes: dict[Key, list[Mix]]) -> dict[Key, Record]:
    frames = evaluator.frames
    right = {key: evaluator.right(found) for key, found in mixes.items()}
    ra = {key: frames.percent(found, 1) for key, found in right.items()}
    ra_5 = {key: frames.percent(found, 1, SEVERITIES[-1]) for key, found in right.items()}
    rows = {}
    for key, found in mixes.items():
        difference, error = _paired(frames, right[key], right["shipped", ""])
        patched = np.array([bool(mix) for mix in found])
        rows[key] = {
            "policy": key[0],
            "rule": key[1],
            "ta": round(frames.percent(right[key], 0), 2),
            "ra": round(ra[key], 2),
            "ra_5": round(ra_5[key], 2),
            "regret": round(ra["perfect", ""] - ra[key], 2),
            "regret_5": round(ra_5["perfect", ""] - ra_5[key], 2),
            "regret_best": round(ra["best", ""] - ra[key], 2),
            "ra_minus_shipped": round(difference, 2),
            "ra_se": round(error, 2),
            "patched": round(frames.percent(patched, 1), 1),
            "patched_clean": round(frames.percent(patched, 0), 1),
        }
    return rows


def _settings(bundle: Bundle, setting: Setting | None, shipped: bool) -> dict[str, Any]:
    if setting is not None:
        return {"threshold": setting.threshold, "clean_weight": setting.clean_weight}
    own = bundle.manifest.policy if shipped else {}
    return {name: own[name] for name in ("kind", "threshold", "clean_weight") if name in own}


def _on_validation(evaluator: Evaluator, beliefs: Sequence[Belief], policy: FramePolicy) -> tuple[float, float]:
    frames, right = evaluator.frames, evaluator.right([policy.choose(belief) for belief in beliefs])
    return frames.percent(evaluator.right_under({}), 0) - frames.percent(right, 0), frames.percent(right, 1)


def _validated(table: GainTable, evaluator: Evaluator, beliefs: Sequence[Belief], say: Progress) -> list[Setting]:
    settings = []
    for family, threshold in ((name, least) for name in FAMILIES for least in THRESHOLDS[name]):
        for weight in CLEAN_WEIGHTS:
            found = _on_validation(evaluator, beliefs, FAMILIES[family](table, threshold, weight))
            settings.append(Setting(family, threshold, weight, *found))
        best = max(settings[-len(CLEAN_WEIGHTS) :], key=lambda setting: setting.ra)
        say(f"validation: {family:10s} threshold {threshold:<5g} RA {best.ra:6.2f}  TA loss {best.ta_loss:5.2f}")
    return settings


def _paired(frames: Frames, right: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the mean difference in RA, points, and its standard error over images: an image's frames are dependent."""
    corrupted = frames.where(number for number, layers in enumerate(frames.cells) if layers)
    difference = 100 * (right[corrupted].astype(float) - other[corrupted])
    image = frames.image[corrupted]
    per_image = np.bincount(image, difference) / np.bincount(image)
    return float(per_image.mean()), float(per_image.std(ddof=1) / np.sqrt(len(per_image)))


def microseconds(policy: FramePolicy, beliefs: Sequence[Belief]) -> float:
    """Return the time of a decision, microseconds: the median over repeats, over beliefs spread over all given."""
    chosen = [beliefs[int(index)] for index in np.linspace(0, len(beliefs) - 1, min(500, len(beliefs)))]
    times = []
    for _ in range(6):
        start = time.perf_counter()
        for belief in chosen:
            policy.choose(belief)
        times.append((time.perf_counter() - start) / len(chosen))
    return 1e6 * float(np.median(times[1:]))


_NUMBERS = {"TA": "ta", "RA": "ra", "RA at 5": "ra_5", "regret": "regret", "to best": "regret_best"}
_NUMBERS |= {"% patched": "patched", "% of clean": "patched_clean"}
_COLUMNS = (
    label("policy", "policy"),
    label("rule", "rule"),
    Column("threshold", "threshold", "g", words=True),
    Column("clean weight", "clean_weight", "g", words=True),
    *columns(_NUMBERS, ".2f"),
    Column("µs", "microseconds", ".1f"),
)


def print_policies(result: Record, console: Console) -> None:
    """Print the table on a console."""
    console.print(terminal(_COLUMNS, result["rows"]))
    if winner := result["winner"]:
        console.print(f"best on validation images: {winner['policy']} ({winner['rule']})")
