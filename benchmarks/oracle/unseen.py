"""Corruptions that nobody named: each of the 19 left out in turn, of the oracle, of the signatures and of the table.

What remains meets the corruption that it never saw. `std` is never patched; `ours` is the oracle of the other 18 with
the bundle's policy over their signatures; `borrowed` is told the corruption and takes the one signature of the other
18, or none, that is best for it on validation images; `own` is told it and has its own signature back (the bundle's, at
its calibrated alpha). The hypothesis is the paper's (Cai et al. 2023, end of Sec. 4): a neighbour's signature helps.

Each of the 19 is a job with files of its own in a work folder, so that several processes can share them and a stopped
run goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.errors import FormatError, InputError
from rws.oracle.policy import GainTable, Policy, ToldPolicy, make_policy
from rws.records import Mix
from rws.training.build.recipe import check_recipe
from rws.training.corruptions import CORRUPTIONS
from rws.training.evaluation.evaluator import Evaluator
from rws.training.evaluation.frames import Splits, make_frames, shuffled, single_cells
from rws.training.evaluation.gain import CalibrationRecipe
from rws.training.jobs.store import JSON, Store, claim
from rws.training.oracle.calibration import Calibration, calibrate_on_images
from rws.training.oracle.fit import ORACLE_VERSION, stored_oracle
from rws.training.oracle.network import OracleNetwork, oracle_logits
from rws.training.oracle.sampling import LEVELS, OracleRecipe

UNSEEN_VERSION = 1
"""Raise it when the same oracles, bundle and images give other rows."""

SEVERITIES = (1, 2, 3, 4, 5)
BORROWED_ALPHAS = (0.5, 1.0)
WAYS = ("std", "ours", "borrowed", "own")


@dataclass(frozen=True)
class UnseenRecipe:
    """What decides the result of a job, besides the bundle and the images.

    Args:
        oracle: how each oracle is trained.
        limit: test images at each severity.
        clean_limit: clean test images; None: all.
        validation_limit: validation images at each severity, for `borrowed`.
        clean_recall: percent of the clean validation images that each oracle must name so; see `bundle_recall`.
        seed: of training, images and corruptions.
    """

    oracle: OracleRecipe
    limit: int = 1000
    clean_limit: int | None = 2000
    validation_limit: int = 200
    clean_recall: float = CalibrationRecipe.clean_recall
    seed: int = 0


def bundle_recipe(bundle: Bundle, epochs: int | None = None) -> OracleRecipe:
    """The recipe of the bundle's oracle, with fewer epochs.

    Raises:
        FormatError: if the bundle's provenance has none that this version knows.
    """
    try:
        stored = bundle.manifest.provenance["recipe"]["oracle"]
        recipe = check_recipe(OracleRecipe, stored, "oracle")
    except (KeyError, TypeError, FormatError) as error:
        raise FormatError(
            f"{bundle.path}: its provenance has no recipe of an oracle that this version can follow ({error}); build "
            f"the bundle again"
        ) from error
    return recipe if epochs is None else replace(recipe, epochs=epochs)


def bundle_recall(bundle: Bundle) -> float:
    """The clean recall, percent, that the bundle's oracle was calibrated to; a recipe's default where it does not say.

    Raises:
        FormatError: if the provenance holds no number there, or one out of range.
    """
    recipe = bundle.manifest.provenance.get("recipe", {})
    try:
        recall = recipe.get("calibration", {}).get("clean_recall", CalibrationRecipe.clean_recall)
        return check_recipe(CalibrationRecipe, {"clean_recall": recall}, "calibration").clean_recall
    except (AttributeError, FormatError) as error:
        raise FormatError(
            f"{bundle.path}: its provenance has no calibration that this version can follow ({error}); build the "
            f"bundle again"
        ) from error


def table_without(table: GainTable, corruption: str) -> GainTable:
    """The gain table of someone who never heard of a corruption: without its states and its signature.

    Raises:
        InputError: if the table does not know the corruption.
    """
    if corruption not in table.corruptions:
        raise InputError(f"unknown corruption {corruption!r}; known: {', '.join(table.corruptions)}")
    index, steps = table.corruptions.index(corruption), len(table.levels)
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
class Stranger:
    """An oracle and a policy that never saw one corruption.

    Args:
        network: the oracle's network, to logits.
        calibration: of its logits.
        policy: the bundle's, over the other signatures, each frame on its own.
        scores: on validation images of the known corruptions.
    """

    network: OracleNetwork
    calibration: Calibration
    policy: Policy
    scores: Mapping[str, float]

    def mixes(self, pixels: torch.Tensor) -> list[Mix]:
        """What it does to each frame, uint8 (N, 3, H, W), RGB."""
        return self.policy.mixes(self.calibration.joint(oracle_logits(self.network, pixels)).numpy())


def raise_stranger(
    bundle: Bundle,
    splits: Splits,
    corruption: str,
    recipe: UnseenRecipe,
    store: Store,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Stranger:
    """Train an oracle without one corruption, and calibrate it as a build does (`rws.training.build.build`)."""
    table = table_without(bundle.table, corruption)
    network = stored_oracle(
        store,
        f"{corruption}.pt",
        splits.train,
        recipe.oracle,
        seed=recipe.seed,
        report=report,
        corruptions=table.corruptions,
    )
    pixels = splits.validation.pixels
    calibration, found = calibrate_on_images(
        network, pixels, recipe.oracle, recipe.clean_recall, recipe.seed, table.corruptions
    )
    scores = {
        "type_accuracy": found["type_accuracy"],
        "clean_recall": found["clean_recall"],
        "clean_weight": found["clean_weight"],
    }
    policy = make_policy(table, bundle.manifest.policy, independent=True)
    return Stranger(network, calibration, policy, scores)


def meet(
    bundle: Bundle, splits: Splits, corruption: str, stranger: Stranger, recipe: UnseenRecipe, threads: int = 1
) -> dict[str, Any]:
    """Measure what a stranger does with the corruption that it never saw.

    Returns:
        `corruption`; for each of `WAYS` the accuracy at severities 1…5, percent; `gain` (ours − std, mean over the
        severities) and `worst` (at the worst one), points; `patched`, percent of the frames; `chosen`, up to three
        signatures with the percent of the frames where they are the strongest; `neighbour`, the signature borrowed at
        severity 5, None where none helps; `ta` and `ta_loss` on clean images; and the oracle's `scores` on what it
        knows.
    """
    model = bundle.model(ModelOptions(threads=threads))
    own = ToldPolicy(bundle.table, own=True)
    others = [name for name in bundle.table.corruptions if name != corruption and name in bundle.signatures.names]
    cells = single_cells(SEVERITIES, (corruption,))

    order = shuffled(splits.validation, recipe.validation_limit, recipe.seed)
    evaluator = Evaluator(model, make_frames(order, cells, recipe.seed, purpose="validation"))
    candidates: list[Mix] = [{}] + [{name: alpha} for name in others for alpha in BORROWED_ALPHAS]
    accuracy = [100 * evaluator.frames.per_cell(evaluator.right_under(mix)) for mix in candidates]
    borrowed = [candidates[int(best)] for best in np.argmax(accuracy, axis=0)]

    order = shuffled(splits.test, None, recipe.seed)
    frames = make_frames(order.first(recipe.limit), (*cells, ()), recipe.seed, order.first(recipe.clean_limit))
    evaluator = Evaluator(model, frames)
    ours = stranger.mixes(frames.pixels)
    told: dict[str, list[Mix]] = {
        "std": [{} for _ in frames.cells],
        "borrowed": [*borrowed, {}],
        "own": [*(own.choose_told(corruption, severity) for severity in SEVERITIES), {}],
    }
    mixes = {way: [by_cell[cell] for cell in frames.cell] for way, by_cell in told.items()} | {"ours": ours}
    reached = {way: 100 * frames.per_cell(evaluator.right(mixes[way])) for way in WAYS}
    gain = reached["ours"] - reached["std"]
    met = [mix for mix, cell in zip(ours, frames.cell, strict=True) if frames.cells[cell]]
    counts = Counter(max(mix, key=lambda name: mix[name]) for mix in met if mix)
    return {
        "corruption": corruption,
        **{way: [round(float(value), 2) for value in reached[way][:-1]] for way in WAYS},
        "gain": round(float(gain[:-1].mean()), 2),
        "worst": round(float(gain[:-1].min()), 2),
        "patched": round(100 * counts.total() / len(met), 1),
        "chosen": [[name, round(100 * count / len(met), 1)] for name, count in counts.most_common(3)],
        "neighbour": next(iter(borrowed[-1]), None),
        "ta": round(float(reached["ours"][-1]), 2),
        "ta_loss": round(float(reached["std"][-1] - reached["ours"][-1]), 2),
        "scores": dict(stranger.scores),
    }


def leave_one_out(
    bundle: Bundle,
    splits: Splits,
    recipe: UnseenRecipe,
    work: Path,
    *,
    only: Sequence[str] = (),
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Do the jobs that are neither done nor being done by another process, and sum up those that are done.

    Args:
        bundle: gives model, signatures and gain table.
        splits: oracles learn from `train`, are calibrated on `validation` and measured on `test`.
        recipe: what decides the result.
        work: folder of the jobs' files; several processes may share it.
        only: these corruptions; none: all that the bundle knows.
        threads: of the model.
        progress: called with a line for each epoch and job.

    Returns:
        `rows`, one a corruption (see `meet`); `missing`, those that are not done; and, where any row is there,
        `mean` of each of `WAYS` over corruptions and severities, `gain_of_borrowing` (ours − std),
        `share_of_own` (that gain in percent of own − std), `worst` corruption (mean over the severities) and
        `worst_cell`, and the largest `ta_loss`.

    Raises:
        InputError: if a name is unknown, or the bundle knows a corruption, or a severity level, that no oracle can be
            trained for.
    """
    strange = [name for name in bundle.table.corruptions if name not in CORRUPTIONS]
    if strange:
        raise InputError(
            f"{bundle.path}: no image can be given its corruption {strange[0]!r}; known: {', '.join(CORRUPTIONS)}"
        )
    if bundle.table.levels != LEVELS:
        raise InputError(
            f"{bundle.path}: its severity levels are {bundle.table.levels}, oracles are trained for {LEVELS}"
        )
    unknown = [name for name in only if name not in bundle.table.corruptions]
    if unknown:
        raise InputError(f"unknown corruption {unknown[0]!r}; known: {', '.join(bundle.table.corruptions)}")
    say = progress or (lambda line: None)
    store = Store(work, "keep")
    files = {file: spec.sha256 for file, spec in bundle.manifest.files.items() if not file.startswith("oracle")}
    images = [part.digest() for part in (splits.train, splits.validation, splits.test)]
    identity = [UNSEEN_VERSION, ORACLE_VERSION, recipe, files, dict(bundle.manifest.policy), images]
    entries = {name: store.entry(f"{name}.json", identity, JSON) for name in only or bundle.table.corruptions}

    def made(name: str) -> dict[str, Any]:
        def report(record: dict[str, Any]) -> None:
            say(f"{name}: " + "  ".join(f"{key} {value}" for key, value in record.items()))

        stranger = raise_stranger(bundle, splits, name, recipe, store, report)
        row = meet(bundle, splits, name, stranger, recipe, threads)
        say(f"{name}: gain {row['gain']:+.2f}, worst {row['worst']:+.2f}, TA loss {row['ta_loss']:.2f}")
        return row

    for name, entry in entries.items():
        with claim(work, name, wait=False) as held:
            if entry.load() is not None or not held:
                say(f"{name}: {'another process has it' if entry.load() is None else 'done'}")
            else:
                entry.get(partial(made, name))
    found = {name: entry.load() for name, entry in entries.items()}
    rows = [row for row in found.values() if row is not None]
    return {
        "rows": rows,
        "missing": [name for name, row in found.items() if row is None],
        **(summary(rows) if rows else {}),
        "epochs": recipe.oracle.epochs,
        "images": min(recipe.limit, len(splits.test)),
        "validation_images": min(recipe.validation_limit, len(splits.validation)),
        "seed": recipe.seed,
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the rows come to; see `leave_one_out`."""
    mean = {way: float(np.mean([row[way] for row in rows])) for way in WAYS}
    worst = min(rows, key=lambda row: row["gain"])
    cell = min(rows, key=lambda row: row["worst"])
    own_gain = mean["own"] - mean["std"]
    gain = mean["ours"] - mean["std"]
    return {
        "mean": {way: round(value, 2) for way, value in mean.items()},
        "gain_of_borrowing": round(gain, 2),
        "share_of_own": round(100 * gain / own_gain, 1) if own_gain > 0 else None,
        "worst": {"corruption": worst["corruption"], "gain": worst["gain"]},
        "worst_cell": {"corruption": cell["corruption"], "gain": cell["worst"]},
        "ta_loss": max(row["ta_loss"] for row in rows),
    }


def print_unseen(result: Mapping[str, Any], console: Console) -> None:
    """The table on a console: means over the severities."""
    table = Table("never seen", "chosen most", "best to borrow")
    for name in ("std", "ours", "borrowed", "own", "gain", "worst", "TA loss"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        means = [f"{np.mean(row[way]):.2f}" for way in WAYS]
        numbers = [f"{row['gain']:+.2f}", f"{row['worst']:+.2f}", f"{row['ta_loss']:.2f}"]
        most = f"{row['chosen'][0][0]} {row['chosen'][0][1]:.0f} %" if row["chosen"] else "none"
        table.add_row(row["corruption"], most, row["neighbour"] or "none", *means, *numbers)
    console.print(table)
    if result["rows"]:
        share = "" if result["share_of_own"] is None else f", {result['share_of_own']} % of what its own would give"
        console.print(f"gained by borrowing: {result['gain_of_borrowing']:+.2f} points{share}")
    if result["missing"]:
        console.print(f"not done yet: {', '.join(result['missing'])}")
