"""Unseen corruptions: each of the 19 in turn is held out of the oracle, of the signatures and of the gain table.

`borrowed` knows the corruption and takes the other signature (or none) that is best on validation images; `own` takes
its own. The hypothesis is the paper's (Cai et al. 2023, end of Sec. 4): a similar corruption's signature helps."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import Tensor

from rws.benchmarks.common.tables import Column, Record, columns, label, terminal
from rws.edge.bundle.bundle import Bundle
from rws.errors import FormatError, InputError
from rws.oracle.policy import GainTable, Policy, ReferencePolicy, make_policy
from rws.records import Mix
from rws.training.build.recipe import check_recipe
from rws.training.corruptions import CORRUPTIONS
from rws.training.evaluation.evaluator import EvaluationOptions, Progress, prepare, silent
from rws.training.evaluation.frames import SEVERITIES, Splits, single_cells
from rws.training.evaluation.gain import CalibrationRecipe
from rws.training.jobs.graph import Job, run
from rws.training.jobs.store import JSON, Entry, Store
from rws.training.jobs.workers import Here
from rws.training.oracle.calibration import Calibration, calibrate_on_images
from rws.training.oracle.fit import ORACLE_VERSION, stored_oracle
from rws.training.oracle.network import OracleNetwork, oracle_logits
from rws.training.oracle.sampling import LEVELS, OracleRecipe

UNSEEN_VERSION = 1
"""Raise it if the same oracles, bundle and images give other rows."""
BORROWED_ALPHAS = (0.5, 1.0)
ARMS = ("std", "ours", "borrowed", "own")


@dataclass(frozen=True)
class UnseenRecipe:
    """The settings that decide a job's result, apart from the bundle and the images.

    Args:
        limit, clean_limit: test images at each severity, and clean ones; None: all.
        validation_limit: validation images at each severity, for `borrowed`.
        clean_recall: percent of the clean validation images that each oracle must name clean; see `bundle_recall`.
    """

    oracle: OracleRecipe
    limit: int = 1000
    clean_limit: int | None = 2000
    validation_limit: int = 200
    clean_recall: float = CalibrationRecipe.clean_recall
    seed: int = 0


def bundle_recipe(bundle: Bundle, epochs: int | None = None) -> OracleRecipe:
    """Return the recipe of the bundle's oracle, with fewer epochs; raise FormatError if the provenance has none."""
    try:
        recipe = check_recipe(OracleRecipe, bundle.manifest.provenance["recipe"]["oracle"], "oracle")
    except (KeyError, TypeError, FormatError) as error:
        raise _unknown(bundle, "recipe of an oracle", error) from error
    return recipe if epochs is None else replace(recipe, epochs=epochs)


def bundle_recall(bundle: Bundle) -> float:
    """Return the clean recall, percent, of the bundle's calibration; raise FormatError if it is out of range."""
    recipe = bundle.manifest.provenance.get("recipe", {})
    try:
        recall = recipe.get("calibration", {}).get("clean_recall", CalibrationRecipe.clean_recall)
        return check_recipe(CalibrationRecipe, {"clean_recall": recall}, "calibration").clean_recall
    except (AttributeError, FormatError) as error:
        raise _unknown(bundle, "calibration", error) from error


def _unknown(bundle: Bundle, part: str, error: Exception) -> FormatError:
    return FormatError(
        f"{bundle.path}: its provenance has no {part} that this version can follow ({error}); build the bundle again"
    )


def table_without(table: GainTable, corruption: str) -> GainTable:
    """Return the gain table without a corruption's states and signature; raise InputError if it is unknown."""
    index, steps = table.index(corruption), len(table.levels)
    states = np.delete(np.arange(len(table.accuracy)), np.s_[1 + index * steps : 1 + (index + 1) * steps])
    actions = np.flatnonzero(table.signature != index)
    signature = table.signature[actions]
    return GainTable(
        tuple(name for name in table.corruptions if name != corruption),
        table.levels,
        signature - (signature > index),
        table.alpha[actions],
        table.accuracy[np.ix_(states, actions)],
    )


@dataclass(frozen=True)
class HeldOutOracle:
    """A network, calibration and policy that never saw one corruption, and its scores on validation images."""

    network: OracleNetwork
    calibration: Calibration
    policy: Policy
    scores: Mapping[str, float]

    def mixes(self, pixels: Tensor) -> list[Mix]:
        """Return the mix of each frame, uint8 (N, 3, H, W), RGB."""
        return self.policy.mixes(self.calibration.joint(oracle_logits(self.network, pixels)).numpy())


def train_without(
    bundle: Bundle, splits: Splits, corruption: str, recipe: UnseenRecipe, store: Store, progress: Progress = silent
) -> HeldOutOracle:
    """Train an oracle without one corruption, and calibrate it as a build does (`rws.training.build.build`)."""

    def report(record: dict[str, Any]) -> None:
        progress(f"{corruption}: " + "  ".join(f"{key} {value}" for key, value in record.items()))

    table, oracle, seed = table_without(bundle.table, corruption), recipe.oracle, recipe.seed
    name, known, pixels = f"{corruption}.pt", table.corruptions, splits.validation.pixels
    network = stored_oracle(store, name, splits.train, oracle, corruptions=known, seed=seed, report=report)
    calibration, found = calibrate_on_images(network, pixels, oracle, recipe.clean_recall, seed, known)
    kept = ("type_accuracy", "clean_recall", "clean_weight")
    scores = {key: value for key, value in found.items() if key in kept and isinstance(value, float)}
    policy = make_policy(table, bundle.manifest.policy, independent=True)
    return HeldOutOracle(network, calibration, policy, scores)


def evaluate_held_out(
    bundle: Bundle, splits: Splits, corruption: str, oracle: HeldOutOracle, recipe: UnseenRecipe, threads: int = 1
) -> Record:
    """Measure what a held-out oracle does with the corruption that it never saw."""
    own = ReferencePolicy(bundle.table, "perfect")
    others = [name for name in bundle.table.corruptions if name != corruption and name in bundle.signatures.names]
    cells = single_cells(SEVERITIES, (corruption,))
    options = EvaluationOptions(recipe.limit, recipe.validation_limit, recipe.clean_limit, recipe.seed, threads)

    evaluator, _ = prepare(bundle, splits.validation, cells, options, "validation")
    candidates: list[Mix] = [{}] + [{name: alpha} for name in others for alpha in BORROWED_ALPHAS]
    accuracy = [100 * evaluator.frames.per_cell(evaluator.right_under(mix)) for mix in candidates]
    borrowed = [candidates[int(best)] for best in np.argmax(accuracy, axis=0)]

    evaluator, _ = prepare(bundle, splits.test, (*cells, ()), options)
    frames = evaluator.frames
    ours = oracle.mixes(frames.pixels)
    mixes: dict[str, list[Mix]] = {
        "std": [{}] * len(frames),
        "ours": ours,
        "borrowed": frames.spread([*borrowed, {}]),
        "own": frames.spread([*(own.mix(corruption, severity) for severity in SEVERITIES), {}]),
    }
    reached = {arm: 100 * frames.per_cell(evaluator.right(mixes[arm])) for arm in ARMS}
    by_severity = {arm: [round(float(value), 2) for value in reached[arm][:-1]] for arm in ARMS}
    gain = reached["ours"] - reached["std"]
    unseen = [mix for mix, cell in zip(ours, frames.cell, strict=True) if frames.cells[cell]]
    counts = Counter(max(mix, key=lambda name: mix[name]) for mix in unseen if mix)
    return {
        "corruption": corruption,
        "std": by_severity["std"],
        "ours": by_severity["ours"],
        "borrowed": by_severity["borrowed"],
        "own": by_severity["own"],
        "gain": round(float(gain[:-1].mean()), 2),
        "worst": round(float(gain[:-1].min()), 2),
        "patched": round(100 * counts.total() / len(unseen), 1),
        "chosen": [(name, round(100 * count / len(unseen), 1)) for name, count in counts.most_common(3)],
        "neighbour": next(iter(borrowed[-1]), None),
        "ta": round(float(reached["ours"][-1]), 2),
        "ta_loss": round(float(reached["std"][-1] - reached["ours"][-1]), 2),
        "scores": dict(oracle.scores),
    }


def leave_one_out(
    bundle: Bundle,
    splits: Splits,
    recipe: UnseenRecipe,
    work: Path,
    *,
    only: Sequence[str] = (),
    threads: int = 1,
    progress: Progress = silent,
) -> Record:
    """Do the jobs that no process has done or is doing, and sum up the finished ones.

    Args:
        work: folder of the jobs' files; several processes may share it, and a stopped run continues.
        only: these corruptions; none: all that the bundle knows. InputError if a name is unknown, or no oracle can be
            trained for a corruption or level of the bundle.
    """
    _check(bundle, only)
    store = Store(work, "keep")
    files = {file: spec.sha256 for file, spec in bundle.manifest.files.items() if not file.startswith("oracle")}
    images = [part.digest() for part in (splits.train, splits.validation, splits.test)]
    identity = [UNSEEN_VERSION, ORACLE_VERSION, recipe, files, dict(bundle.manifest.policy), images]

    def make(name: str) -> Record:
        oracle = train_without(bundle, splits, name, recipe, store, progress)
        row = evaluate_held_out(bundle, splits, name, oracle, recipe, threads)
        progress(f"{name}: gain {row['gain']:+.2f}, worst {row['worst']:+.2f}, TA loss {row['ta_loss']:.2f}")
        return row

    entries: dict[str, Entry[Record]] = {
        name: store.entry(f"{name}.json", identity, JSON) for name in only or bundle.table.corruptions
    }
    graph = {name: Job(partial(entry.get, partial(make, name))) for name, entry in entries.items()}
    run(graph, Here(graph, work), wait_for_others=False, quiet=True)
    found = {name: entry.load() for name, entry in entries.items()}
    rows = [row for row in found.values() if row is not None]
    return {
        "rows": rows,
        "missing": [name for name, row in found.items() if row is None],
        **summary(rows),
        "epochs": recipe.oracle.epochs,
        "images": min(recipe.limit, len(splits.test)),
        "validation_images": min(recipe.validation_limit, len(splits.validation)),
        "seed": recipe.seed,
    }


def _check(bundle: Bundle, only: Sequence[str]) -> None:
    table = bundle.table
    if strange := [name for name in table.corruptions if name not in CORRUPTIONS]:
        raise InputError(
            f"{bundle.path}: no image can be given its corruption {strange[0]!r}; known: {', '.join(CORRUPTIONS)}"
        )
    if table.levels != LEVELS:
        raise InputError(f"{bundle.path}: its severity levels are {table.levels}, oracles are trained for {LEVELS}")
    for name in only:
        table.index(name)


def summary(rows: Sequence[Record]) -> Record:
    """Sum up the rows; empty if there are none."""
    if not rows:
        return {}
    mean = {arm: float(np.mean([row[arm] for row in rows])) for arm in ARMS}
    worst = min(rows, key=lambda row: row["gain"])
    cell = min(rows, key=lambda row: row["worst"])
    own_gain, gain = mean["own"] - mean["std"], mean["ours"] - mean["std"]
    return {
        "mean": {arm: round(value, 2) for arm, value in mean.items()},
        "gain_of_borrowing": round(gain, 2),
        "share_of_own": round(100 * gain / own_gain, 1) if own_gain > 0 else None,
        "worst": {"corruption": worst["corruption"], "gain": worst["gain"]},
        "worst_cell": {"corruption": cell["corruption"], "gain": cell["worst"]},
        "ta_loss": max(row["ta_loss"] for row in rows),
    }


_COLUMNS = (
    label("never seen", "corruption"),
    label("chosen most", lambda row: "{} {:.0f} %".format(*row["chosen"][0]) if row["chosen"] else "none"),
    label("best to borrow", lambda row: row["neighbour"] or "none"),
    *columns({arm: arm for arm in ARMS}, ".2f"),
    *columns({"gain": "gain", "worst": "worst"}, "+.2f"),
    Column("TA loss", "ta_loss", ".2f"),
)


def print_unseen(result: Record, console: Console) -> None:
    """Print the table on a console: means over the severities."""
    rows = [{**row, **{arm: float(np.mean(row[arm])) for arm in ARMS}} for row in result["rows"]]
    console.print(terminal(_COLUMNS, rows))
    if result["rows"]:
        share = "" if result["share_of_own"] is None else f", {result['share_of_own']} % of what its own would give"
        console.print(f"gained by borrowing: {result['gain_of_borrowing']:+.2f} points{share}")
    if result["missing"]:
        console.print(f"not done yet: {', '.join(result['missing'])}")
