"""What the oracle is worth: `rws bench policies`, `pairs`, `unseen`, `filter`, `rivals` and `figures`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rws.benchmarks.cli.options import BundleFolder, Report, open_bundle, save
from rws.edge.common.extras import require
from rws.terminal import result_console, say, show

if TYPE_CHECKING:
    from rws.edge.bundle.bundle import Bundle
    from rws.training.evaluation.frames import Splits

Data = Annotated[str, typer.Option(help="The images that the bundle was built from: folder or data set name.")]
Cache = Annotated[Path | None, typer.Option(help="Folder that keeps the decoded images for the next run.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of model and oracle.")]
Seed = Annotated[int, typer.Option(help="Seed of the images and corruptions.")]
ValidationLimit = Annotated[int, typer.Option(min=1, help="The same, of those that thresholds are chosen on.")]


def policies(
    data: Data,
    bundle: BundleFolder = None,
    limit: Annotated[int, typer.Option(min=1, help="Test images of each corruption and severity.")] = 200,
    validation_limit: ValidationLimit = 400,
    seed: Seed = 0,
    cache: Cache = None,
    threads: Threads = 1,
    report: Report = None,
) -> None:
    """From a belief to a mix: hard choice, weighted composition, expected accuracy, each with thresholds.

    \b
    Example:
        rws bench policies --data ~/data/cifar10 --json policies.json
    """
    with require("bench"):
        from rws.benchmarks.oracle.policies import compare_policies, print_policies
        from rws.training.evaluation.evaluator import EvaluationOptions
    options = EvaluationOptions(limit, validation_limit, None, seed, threads, say)
    result = compare_policies(*_inputs(data, bundle, cache, report), options)
    print_policies(result, result_console())
    save(report, "policies/1", result, data, seed=seed, threads=threads)


def pairs(
    data: Data,
    bundle: BundleFolder = None,
    cache: Cache = None,
    seed: Seed = 0,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of corruptions, drawn by the seed.")] = 40,
    limit: Annotated[int, typer.Option(min=1, help="Test images of each pair and severity.")] = 200,
    validation_limit: ValidationLimit = 100,
    threads: Threads = 1,
    report: Report = None,
) -> None:
    """Two corruptions at once: what one signature gives, two composed, and what each policy makes of it.

    \b
    Example:
        rws bench pairs --data ~/data/cifar10 --json pairs.json
    """
    with require("bench"):
        from rws.benchmarks.oracle.pairs import CLEAN_LIMIT, compare_pairs, print_pairs
        from rws.training.evaluation.evaluator import EvaluationOptions
    options = EvaluationOptions(limit, validation_limit, CLEAN_LIMIT, seed, threads, say)
    result = compare_pairs(*_inputs(data, bundle, cache, report), pairs, options)
    print_pairs(result, result_console())
    save(report, "pairs/1", result, data, seed=seed, threads=threads)


def unseen(
    data: Data,
    work: Annotated[Path, typer.Option(help="Folder of the jobs' files; several processes may share it.")],
    bundle: BundleFolder = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of each oracle.")] = 8,
    only: Annotated[list[str] | None, typer.Option(help="Leave out this corruption; once for each; none: all.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Test images of each severity.")] = 1000,
    seed: Seed = 0,
    cache: Cache = None,
    threads: Threads = 1,
    report: Report = None,
) -> None:
    """Corruptions that the oracle never saw: each one in turn is left out of oracle, signatures and gain table.

    It trains an oracle for each, keeps what is done in --work, and goes on from there.

    \b
    Example:
        rws bench unseen --data ~/data/cifar10 --work runs/unseen --json unseen.json
    """
    with require("bench"):
        import torch

        from rws.benchmarks.oracle.unseen import UnseenRecipe, bundle_recall, bundle_recipe, leave_one_out, print_unseen
    torch.set_num_threads(threads)
    chosen, splits = _inputs(data, bundle, cache, report)
    recipe = UnseenRecipe(bundle_recipe(chosen, epochs), limit=limit, clean_recall=bundle_recall(chosen), seed=seed)
    result = leave_one_out(chosen, splits, recipe, work, only=only or (), threads=threads, progress=say)
    print_unseen(result, result_console())
    save(report, "unseen/1", result, data, seed=seed, threads=threads)


def tune_filter(
    data: Data,
    bundle: BundleFolder = None,
    frames: Annotated[int, typer.Option(min=1, help="Validation frames of each type in each stream.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the streams.")] = 0,
    keep: Annotated[int, typer.Option(min=1, help="How many of the settings tried to write, the best first.")] = 12,
    report: Report = None,
) -> None:
    """Search the settings of temporal filter and policy on validation streams of all protocols.

    \b
    Example:
        rws bench filter --data ~/data/cifar10 --json filter.json
    """
    with require("bench"):
        from rws.benchmarks.oracle import filter_tuning
        from rws.training.evaluation.evaluator import EvaluationOptions
    options = EvaluationOptions(seed=seed, progress=say)
    result = filter_tuning.tune_filter(open_bundle(bundle, report), data, frames, options)
    show(f"best: {result['best']}")
    shown = {**result, "count": len(result["tried"]), "tried": result["tried"][:keep]}
    save(report, "filter/1", shown, data, seed=seed, threads=1)


def baselines(
    data: Data,
    work: Annotated[Path, typer.Option(help="Folder for the models; a stopped training goes on from it.")],
    bundle: BundleFolder = None,
    threads: Threads = 1,
) -> None:
    """Train the rivals' models: one with all corruptions as augmentation, and one for each corruption.

    `rws replay --protocol … --rivals WORK` then measures them.

    \b
    Example:
        rws bench rivals --data ~/data/cifar10 --work runs/rivals
    """
    with require("bench"):
        import torch

        from rws.benchmarks.baselines.models import BaselineModels
    torch.set_num_threads(threads)
    models = BaselineModels(open_bundle(bundle), data, work, progress=lambda record: say(str(record)))
    models.train_all()
    say(f"models in {models.folder}; try: rws replay --data {data} --protocol all --rivals {work}")


def figures(
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results"),
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("docs"),
    bundle: BundleFolder = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this picture; once for each.")] = None,
) -> None:
    """Draw confusion matrix, gain table, the regret's split and a stream's timeline from the results.

    \b
    Example:
        rws bench figures --results benchmarks/results --out docs
    """
    with require("bench"):
        from rws.benchmarks.oracle.figures import draw_all
    draw_all(results, out, bundle=open_bundle(bundle), only=only or (), progress=say)


def _inputs(data: str, bundle: Path | None, cache: Path | None, report: Path | None) -> tuple[Bundle, Splits]:
    from rws.training.evaluation.frames import load_splits

    chosen = open_bundle(bundle, report)
    return chosen, load_splits(chosen, data, cache)


COMMANDS: Mapping[str, Callable[..., None]] = {
    "policies": policies,
    "pairs": pairs,
    "unseen": unseen,
    "filter": tune_filter,
    "rivals": baselines,
    "figures": figures,
}
