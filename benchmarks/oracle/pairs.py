"""Two corruptions at once (fog and noise, …): no patch, one signature, both composed; by ground truth or the oracle.

These arms know the pair: `single` takes the one signature that is best for it, `averaged` its two own at half strength,
`scaled` at the best strength. The first corruption of a pair is applied first. Best means: on validation images."""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
from rich.console import Console

from rws.benchmarks.common.tables import Record, columns, label, terminal
from rws.benchmarks.oracle.frame_policies import ComposingPolicy, ExpectedPolicy, FramePolicy
from rws.edge.bundle.bundle import Bundle
from rws.oracle.belief import Belief
from rws.oracle.policy import GainTable, ReferencePolicy
from rws.records import Mix
from rws.training.corruptions import CORRUPTIONS
from rws.training.evaluation.evaluator import EvaluationOptions, Evaluator, Progress, prepare
from rws.training.evaluation.frames import TWO_SEVERITIES, Frames, Layers, Splits, single_cells

SCALES = (0.5, 0.75, 1.0)
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
"""Scales and thresholds that `composed` may choose from."""
ALLOWED_LOSS = 0.1
"""Points that `composed` may lose on clean images, and on single corruptions, on validation images."""
CLEAN_LIMIT = 2000
"""Clean images of each part, test and validation, at most."""
KNOWING = ("single", "both", "averaged", "scaled")

Pair = tuple[str, str]


class Scores(NamedTuple):
    """Accuracy, percent: clean, mean over the single corruptions, mean over the pairs."""

    ta: float
    single: float
    pairs: float


def draw_pairs(count: int, seed: int, corruptions: Sequence[str] = CORRUPTIONS) -> list[Pair]:
    """Draw `count` different pairs of corruptions; all of them if there are no more."""
    every = list(combinations(corruptions, 2))
    return every if count >= len(every) else random.Random(seed).sample(every, count)


def compare_pairs(bundle: Bundle, splits: Splits, pairs: int, options: EvaluationOptions) -> Record:
    """Compare the arms on `pairs` pairs, drawn by the seed; their settings are chosen on validation images."""
    corruptions, say = bundle.manifest.corruptions, options.progress
    drawn = draw_pairs(pairs, options.seed, corruptions)
    cells_of = {(a, b): [((a, float(s)), (b, float(s))) for s in TWO_SEVERITIES] for a, b in drawn}
    pair_cells = [cell for cells in cells_of.values() for cell in cells]
    cells = ((), *single_cells(TWO_SEVERITIES, corruptions), *pair_cells)

    evaluator, beliefs = prepare(bundle, splits.validation, cells, options, "validation")
    single, scale = _best_for_pairs(bundle.table, evaluator, pair_cells, say)
    expected = ExpectedPolicy(bundle.table)
    composing = _best_composing(bundle.table, expected, evaluator, beliefs, say)
    shipped = bundle.policy(independent=True)
    policies: dict[str, FramePolicy] = {"shipped": shipped, "expected": expected, "composed": composing}
    validation = {arm: _scores(evaluator, found) for arm, found in _policy_mixes(policies, beliefs).items()}

    evaluator, beliefs = prepare(bundle, splits.test, cells, options)
    frames, truth = evaluator.frames, ReferencePolicy(bundle.table, "perfect")
    by_pair: dict[str, Callable[[Layers], Mix]] = {
        "single": single.__getitem__,
        "both": lambda layers: own_pair_mix(truth, layers, 1.0),
        "averaged": lambda layers: own_pair_mix(truth, layers, 0.5),
        "scaled": lambda layers: own_pair_mix(truth, layers, scale[layers]),
    }
    asked = _policy_mixes(policies, beliefs)
    mixes = {"std": asked.pop("std")}
    for arm, mix_of in by_pair.items():
        mixes[arm] = frames.spread([mix_of(layers) if len(layers) == 2 else {} for layers in frames.cells])
    right = {arm: evaluator.right(found) for arm, found in (mixes | asked).items()}
    rows = [_row(frames, arm, right[arm], found) for arm, found in (mixes | asked).items()]
    for row in rows:
        say("  ".join(f"{key} {value}" for key, value in row.items()))
    places = {cell: number for number, cell in enumerate(frames.cells)}
    per_cell = [100 * frames.per_cell(flags) for flags in right.values()]
    return {
        "rows": rows,
        "oracle": _oracle_on_pairs(frames, beliefs),
        "chosen": {"threshold": composing.threshold, "scale": composing.scale},
        "validation": {
            arm: {key: round(value, 2) for key, value in s._asdict().items()} for arm, s in validation.items()
        },
        "per_pair": [
            [*pair, *(round(float(np.mean([found[places[cell]] for cell in here])), 1) for found in per_cell)]
            for pair, here in cells_of.items()
        ],
        "severities": list(TWO_SEVERITIES),
        "images": len(splits.test.first(options.limit)),
        "clean_images": int((frames.cell == 0).sum()),
        "validation_images": len(splits.validation.first(options.validation_limit)),
        "allowed_loss": ALLOWED_LOSS,
        "seed": options.seed,
    }


def own_pair_mix(truth: ReferencePolicy, layers: Layers, scale: float) -> Mix:
    """Return the own signatures of all layers, each at its calibrated alpha for its severity, times `scale`."""
    mix: Mix = {}
    for name, severity in layers:
        for signature, alpha in truth.mix(name, severity).items():
            mix[signature] = mix.get(signature, 0.0) + scale * alpha
    return mix


def _policy_mixes(policies: Mapping[str, FramePolicy], beliefs: Sequence[Belief]) -> dict[str, list[Mix]]:
    found: dict[str, list[Mix]] = {"std": [{} for _ in beliefs]}
    return found | {arm: [policy.choose(belief) for belief in beliefs] for arm, policy in policies.items()}


def _best_for_pairs(
    table: GainTable, evaluator: Evaluator, pairs: Sequence[Layers], say: Progress
) -> tuple[dict[Layers, Mix], dict[Layers, float]]:
    truth = ReferencePolicy(table, "perfect")
    single, scale = dict[Layers, Mix](), dict[Layers, float]()
    for layers in pairs:
        chosen = evaluator.frames.where([evaluator.frames.cells.index(layers)])

        def accuracy(mix: Mix, chosen: np.ndarray = chosen) -> float:
            return float(evaluator.right_under(mix, chosen).mean())

        candidates: list[Mix] = [{}] + [truth.mix(name, layers[0][1]) for name in table.corruptions]
        single[layers] = max(candidates, key=accuracy)
        both = {each: own_pair_mix(truth, layers, each) for each in SCALES}
        scale[layers] = max(both, key=lambda each: accuracy(both[each]))
        named = " then ".join(f"{name} {severity:g}" for name, severity in layers)
        say(f"validation: {named}: best single {next(iter(single[layers]), 'none')}, scale {scale[layers]}")
    return single, scale


def _best_composing(
    table: GainTable, base: FramePolicy, evaluator: Evaluator, beliefs: Sequence[Belief], say: Progress
) -> ComposingPolicy:
    # Best for pairs, of those that cost little elsewhere; else the cheapest.
    before = _scores(evaluator, [base.choose(belief) for belief in beliefs])
    found = []
    for threshold, scale in product(THRESHOLDS, SCALES):
        policy = ComposingPolicy(table, base, threshold, scale)
        clean, single, pairs = np.subtract(_scores(evaluator, [policy.choose(b) for b in beliefs]), before)
        found.append((policy, max(-clean, -single), pairs))
        change = f"clean {clean:+.2f}  single {single:+.2f}  pairs {pairs:+.2f}"
        say(f"validation: composed from {threshold}, scale {scale}: {change}")
    if allowed := [entry for entry in found if entry[1] <= ALLOWED_LOSS]:
        return max(allowed, key=lambda entry: entry[2])[0]
    return min(found, key=lambda entry: entry[1])[0]


def _scores(evaluator: Evaluator, mixes: Sequence[Mix]) -> Scores:
    right = evaluator.right(mixes)
    return Scores(*(evaluator.frames.percent(right, layers) for layers in (0, 1, 2)))


def _row(frames: Frames, arm: str, right: np.ndarray, mixes: Sequence[Mix]) -> Record:
    percent = partial(frames.percent, right)
    accuracy, accuracy_3, accuracy_5 = (round(percent(2, severity), 2) for severity in (None, 3, 5))
    row: Record = {"arm": arm, "perfect_oracle": arm in KNOWING, "accuracy": accuracy}
    row |= {"accuracy_3": accuracy_3, "accuracy_5": accuracy_5}
    if arm not in KNOWING:
        row["ta"], row["single"] = round(percent(0), 2), round(percent(1), 2)
        if arm != "std":
            row["composed"] = round(frames.percent(np.array([len(mix) > 1 for mix in mixes]), 2), 1)
    return row


def _oracle_on_pairs(frames: Frames, beliefs: Sequence[Belief]) -> Record:
    found = []
    for belief, cell in zip(beliefs, frames.cell, strict=True):
        if len(layers := frames.cells[cell]) == 2:
            truth = {belief.corruptions.index(name) for name, _ in layers}
            probability = belief.probability[1:]
            order = np.argsort(-probability, kind="stable").tolist()
            lesser = min(probability[index] for index in truth)
            found.append((set(order[:2]) == truth, order[0] in truth, lesser))
    both, one, probable = (float(np.mean(values)) for values in zip(*found, strict=True))
    shares = {"both_named": round(100 * both, 2), "one_named": round(100 * one, 2)}
    return {**shares, "lesser_probability": round(probable, 3)}


_ACCURACIES = {"accuracy": "accuracy", **{f"at {severity}": f"accuracy_{severity}" for severity in TWO_SEVERITIES}}
_COLUMNS = (
    label("arm", "arm"),
    label("perfect oracle", lambda row: "yes" if row["perfect_oracle"] else "no"),
    *columns(_ACCURACIES | {"clean": "ta", "one corruption": "single", "% composed": "composed"}, ".2f"),
)


def print_pairs(result: Record, console: Console) -> None:
    """Print the table on a console."""
    console.print(terminal(_COLUMNS, result["rows"]))
    oracle, chosen = result["oracle"], result["chosen"]
    console.print(
        f"both of the pair are the oracle's two most probable ones in {oracle['both_named']} % of the frames, one of "
        f"them is the most probable in {oracle['one_named']} %; composed from P >= {chosen['threshold']:g} at scale "
        f"{chosen['scale']:g}"
    )
    for arm, score in result["validation"].items():
        numbers = f"pairs {score['pairs']:.2f}, one corruption {score['single']:.2f}, clean {score['ta']:.2f}"
        console.print(f"validation: {arm}: {numbers}")
