"""Two corruptions at once (fog and noise, …): never patched, one signature, both composed; told, and by the oracle.

Pairs are laid over one another by `rws.training.evaluation.frames.corrupted`, the first one first. Words of
the table: `std` is never patched; of those who are told the pair, `single` has the one signature, of all, that is best
for it, `both` its two own signatures, each at its calibrated alpha, `averaged` these at half strength, `scaled` at the
strength that is best for the pair; of those who ask the oracle, `shipped` is the bundle's policy, `expected` takes the
one signature with the best expected accuracy, `composed` takes both of the two most probable corruptions where both are
probable enough, and else does as `expected`. What is best is found on validation images; every number is measured on
test images, save those of `validation`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from rws.benchmarks.oracle.policies import ExpectedPolicy, FramePolicy, own_alphas
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.errors import InputError
from rws.oracle.belief import Belief
from rws.oracle.policy import GainTable, ToldPolicy
from rws.records import Mix
from rws.training.corruptions import CORRUPTIONS
from rws.training.data.images import Images
from rws.training.evaluation.evaluator import Evaluator, beliefs_of
from rws.training.evaluation.frames import Frames, Layers, Splits, make_frames, shuffled, single_cells

SEVERITIES = (3, 5)
SCALES = (0.5, 0.75, 1.0)
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
TOLD = ("single", "both", "averaged", "scaled")

Pair = tuple[str, str]


class ComposingPolicy:
    """Both signatures of the two most probable corruptions where both are probable enough; else another policy.

    Args:
        table: the gain table.
        base: decides where at most one corruption is probable enough.
        threshold: least probability of either, above 0, at most 0.5.
        scale: what both calibrated alphas are multiplied by.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(self, table: GainTable, base: FramePolicy, threshold: float, scale: float = 1.0) -> None:
        if not 0 < threshold <= 0.5 or scale <= 0:
            raise InputError(f"policy: need 0 < threshold <= 0.5 and scale > 0, got {threshold} and {scale}")
        self.base, self.threshold, self.scale = base, threshold, scale
        self._alphas, self._levels = own_alphas(table), np.array(table.levels, np.float32)

    def choose(self, belief: Belief) -> Mix:
        """The mix for one frame."""
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


def draw_pairs(count: int, seed: int, corruptions: Sequence[str] = CORRUPTIONS) -> list[Pair]:
    """Pairs of corruptions at random, each once at most, in the corruptions' order; all 171 where `count` is more."""
    every = list(combinations(corruptions, 2))
    return every if count >= len(every) else random.Random(seed).sample(every, count)


def compare_pairs(
    bundle: Bundle,
    splits: Splits,
    *,
    pairs: int = 40,
    severities: Sequence[int] = SEVERITIES,
    limit: int = 200,
    validation_limit: int = 100,
    clean_limit: int | None = 2000,
    thresholds: Sequence[float] = THRESHOLDS,
    scales: Sequence[float] = SCALES,
    allowed_loss: float = 0.1,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Compare ways to answer two corruptions at once.

    Args:
        bundle: gives model, oracle, gain table and the shipped policy.
        splits: what is best is found on `validation`, the table is measured on `test`.
        pairs: how many pairs, drawn by the seed.
        severities: whole ones; each pair has both corruptions at the first, then both at the second, …
        limit: test images of each pair and severity, and of each single corruption and severity.
        validation_limit: validation images of each.
        clean_limit: clean images of either.
        thresholds, scales: what `composed` may choose from.
        allowed_loss: points that `composed` may lose on clean images, and on single corruptions, on validation images.
        seed: of pairs, images and corruptions.
        threads: of model and oracle.
        progress: called with a line for each step.

    Returns:
        `rows`, one a way: `way`, `told`, `accuracy` (over all pairs and severities, percent) and by severity
        `accuracy_3` and so on; for those who ask the oracle also `ta`, `single` (mean over single corruptions at the
        same severities) and `composed`, the percent of pair frames under more than one signature. `oracle`: how often
        the two most probable corruptions are the pair, how often the most probable one is of the pair (percent), and
        the mean probability of the lesser of the pair. `per_pair`: first, second, then the accuracy of each way, in
        the order of `rows`, over the severities. `chosen`: threshold and scale of `composed`. `validation`: of `std`
        and those who ask the oracle the accuracy on validation images: `ta`, `single` and `pairs`.
    """
    say = progress or (lambda line: None)
    drawn = draw_pairs(pairs, seed, bundle.manifest.corruptions)
    pair_cells = tuple(((a, float(s)), (b, float(s))) for a, b in drawn for s in severities)
    cells = ((), *single_cells(severities, bundle.manifest.corruptions), *pair_cells)
    model, oracle = bundle.model(ModelOptions(threads=threads)), bundle.oracle(threads)
    expected = ExpectedPolicy(bundle.table)

    def prepare(images: Images, count: int, purpose: str) -> tuple[Evaluator, list[Belief]]:
        order = shuffled(images, None, seed)
        frames = make_frames(order.first(count), cells, seed, order.first(clean_limit), purpose=purpose)
        return Evaluator(model, frames), beliefs_of(oracle, frames)

    evaluator, beliefs = prepare(splits.validation, validation_limit, "validation")
    single, scaled = _best_told(bundle.table, evaluator, pair_cells, scales, say)
    composing = _best_composing(bundle.table, expected, evaluator, beliefs, thresholds, scales, allowed_loss, say)
    policies: dict[str, FramePolicy] = {
        "shipped": bundle.policy(independent=True),
        "expected": expected,
        "composed": composing,
    }
    validation = {"std": _scores(evaluator, [{} for _ in beliefs])}
    validation |= {way: _scores(evaluator, [policy.choose(b) for b in beliefs]) for way, policy in policies.items()}

    evaluator, beliefs = prepare(splits.test, limit, "test")
    frames = evaluator.frames
    told = ToldPolicy(bundle.table, own=True)
    mixes: dict[str, list[Mix]] = {"std": [{} for _ in beliefs]}
    for way, mix_of in (
        ("single", lambda layers: single[layers]),
        ("both", lambda layers: both_own(told, layers, 1.0)),
        ("averaged", lambda layers: both_own(told, layers, 0.5)),
        ("scaled", lambda layers: both_own(told, layers, scaled[layers])),
    ):
        by_cell = [mix_of(layers) if len(layers) == 2 else {} for layers in frames.cells]
        mixes[way] = [by_cell[cell] for cell in frames.cell]
    mixes |= {way: [policy.choose(belief) for belief in beliefs] for way, policy in policies.items()}
    rows, accuracy = [], {}
    for way, found in mixes.items():
        accuracy[way] = 100 * frames.per_cell(evaluator.right(found))
        row: dict[str, Any] = {"way": way, "told": way in TOLD}
        row |= _by_severity(frames, accuracy[way], severities)
        if way in policies:
            several = 100 * frames.per_cell(np.array([len(mix) > 1 for mix in found]))
            row |= _without_pairs(frames, accuracy[way]) | {"composed": round(_mean_of(frames, several, 2), 1)}
        elif way == "std":
            row |= _without_pairs(frames, accuracy[way])
        rows.append(row)
        say("  ".join(f"{key} {value}" for key, value in row.items()))
    numbers = {layers: number for number, layers in enumerate(frames.cells)}
    return {
        "rows": rows,
        "oracle": _oracle_on_pairs(frames, beliefs),
        "chosen": {"threshold": composing.threshold, "scale": composing.scale},
        "validation": {
            way: dict(zip(("ta", "single", "pairs"), (round(float(score), 2) for score in found), strict=True))
            for way, found in validation.items()
        },
        "per_pair": [
            [
                *pair,
                *(
                    round(
                        float(np.mean([found[numbers[(pair[0], float(s)), (pair[1], float(s))]] for s in severities])),
                        1,
                    )
                    for found in accuracy.values()
                ),
            ]
            for pair in drawn
        ],
        "severities": list(severities),
        "images": min(limit, len(splits.test)),
        "clean_images": int((frames.cell == 0).sum()),
        "validation_images": min(validation_limit, len(splits.validation)),
        "allowed_loss": allowed_loss,
        "seed": seed,
    }


def both_own(told: ToldPolicy, layers: Layers, scale: float) -> Mix:
    """The own signatures of all layers, each at its calibrated alpha for its severity, times `scale`."""
    mix: Mix = {}
    for name, severity in layers:
        for signature, alpha in told.choose_told(name, severity).items():
            mix[signature] = mix.get(signature, 0.0) + scale * alpha
    return mix


def _best_told(
    table: GainTable, evaluator: Evaluator, pairs: Sequence[Layers], scales: Sequence[float], say: Callable[[str], None]
) -> tuple[dict[Layers, Mix], dict[Layers, float]]:
    """For each pair the best single signature, or none, at its alpha for that severity; and the best scale of both."""
    told = ToldPolicy(table, own=True)
    single: dict[Layers, Mix] = {}
    scaled: dict[Layers, float] = {}
    for layers in pairs:
        chosen = evaluator.frames.where([evaluator.frames.cells.index(layers)])
        candidates: list[Mix] = [{}] + [told.choose_told(name, layers[0][1]) for name in table.corruptions]
        single[layers] = max(candidates, key=lambda mix: evaluator.right_under(mix, chosen).mean())
        scaled[layers] = max(scales, key=lambda s: evaluator.right_under(both_own(told, layers, s), chosen).mean())
        say(f"validation: {_named(layers)}: best single {next(iter(single[layers]), 'none')}, scale {scaled[layers]}")
    return single, scaled


def _best_composing(
    table: GainTable,
    base: FramePolicy,
    evaluator: Evaluator,
    beliefs: Sequence[Belief],
    thresholds: Sequence[float],
    scales: Sequence[float],
    allowed_loss: float,
    say: Callable[[str], None],
) -> ComposingPolicy:
    """Threshold and scale that are best for pairs, of those that cost little elsewhere; else what costs least."""
    before = _scores(evaluator, [base.choose(belief) for belief in beliefs])
    found = []
    for threshold in thresholds:
        for scale in scales:
            policy = ComposingPolicy(table, base, threshold, scale)
            change = _scores(evaluator, [policy.choose(belief) for belief in beliefs]) - before
            found.append((policy, max(-change[0], -change[1]), change[2]))
            say(
                f"validation: composed from {threshold}, scale {scale}: "
                f"clean {change[0]:+.2f}  single {change[1]:+.2f}  pairs {change[2]:+.2f}"
            )
    allowed = [entry for entry in found if entry[1] <= allowed_loss]
    if allowed:
        return max(allowed, key=lambda entry: entry[2])[0]
    return min(found, key=lambda entry: entry[1])[0]


def _scores(evaluator: Evaluator, mixes: Sequence[Mix]) -> NDArray[np.float64]:
    """Accuracy, percent, float64 (3,): clean, mean over the single corruptions, mean over the pairs."""
    per_cell = 100 * evaluator.frames.per_cell(evaluator.right(mixes))
    return np.array([_mean_of(evaluator.frames, per_cell, layers) for layers in (0, 1, 2)])


def _mean_of(frames: Frames, per_cell: NDArray[np.float64], layers: int) -> float:
    """Mean over the cells with so many corruptions laid over one another."""
    return float(np.mean([value for value, cell in zip(per_cell, frames.cells, strict=True) if len(cell) == layers]))


def _by_severity(frames: Frames, per_cell: NDArray[np.float64], severities: Sequence[int]) -> dict[str, float]:
    row = {"accuracy": round(_mean_of(frames, per_cell, 2), 2)}
    for severity in severities:
        at = [n for n, layers in enumerate(frames.cells) if len(layers) == 2 and layers[0][1] == severity]
        row[f"accuracy_{severity}"] = round(float(per_cell[at].mean()), 2)
    return row


def _without_pairs(frames: Frames, per_cell: NDArray[np.float64]) -> dict[str, float]:
    return {"ta": round(_mean_of(frames, per_cell, 0), 2), "single": round(_mean_of(frames, per_cell, 1), 2)}


def _oracle_on_pairs(frames: Frames, beliefs: Sequence[Belief]) -> dict[str, float]:
    named, one, lesser = [], [], []
    for belief, cell in zip(beliefs, frames.cell, strict=True):
        layers = frames.cells[cell]
        if len(layers) == 2:
            truth = {belief.corruptions.index(name) for name, _ in layers}
            probability = belief.probability[1:]
            order = np.argsort(-probability, kind="stable")
            named.append(set(order[:2].tolist()) == truth)
            one.append(int(order[0]) in truth)
            lesser.append(min(probability[index] for index in truth))
    return {
        "both_named": round(100 * float(np.mean(named)), 2),
        "one_named": round(100 * float(np.mean(one)), 2),
        "lesser_probability": round(float(np.mean(lesser)), 3),
    }


def _named(layers: Layers) -> str:
    return " then ".join(f"{name} {severity:g}" for name, severity in layers)


def print_pairs(result: Mapping[str, Any], console: Console) -> None:
    """The table on a console."""
    by_severity = [f"accuracy_{severity}" for severity in result["severities"]]
    table = Table("way", "told")
    for name in ("accuracy", *(f"at {s}" for s in result["severities"]), "clean", "one corruption", "% composed"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        keys = ("accuracy", *by_severity, "ta", "single", "composed")
        table.add_row(
            row["way"], "yes" if row["told"] else "no", *(f"{row[key]:.2f}" if key in row else "" for key in keys)
        )
    console.print(table)
    oracle, chosen = result["oracle"], result["chosen"]
    console.print(
        f"both of the pair are the oracle's two most probable ones in {oracle['both_named']} % of the frames, one of "
        f"them is the most probable in {oracle['one_named']} %; composed from P >= {chosen['threshold']:g} at scale "
        f"{chosen['scale']:g}"
    )
    for way, score in result["validation"].items():
        numbers = f"pairs {score['pairs']:.2f}, one corruption {score['single']:.2f}, clean {score['ta']:.2f}"
        console.print(f"validation: {way}: {numbers}")
