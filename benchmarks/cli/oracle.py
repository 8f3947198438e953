"""What the oracle is worth: `rws bench policies`, `pairs`, `unseen`, `filter`, `rivals` and `figures`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rws.edge.common.extras import require

if TYPE_CHECKING:
    from rich.console import Console

Data = Annotated[str, typer.Option(help="The images that the bundle was built from: folder or data set name.")]
BundleFolder = Annotated[Path | None, typer.Option("--bundle", help="Bundle folder; left out: the bundled default.")]
Cache = Annotated[Path | None, typer.Option(help="Folder that keeps the decoded images for the next run.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of model and oracle.")]
Report = Annotated[Path | None, typer.Option("--json", help="Write the result here.")]

_PIPED_WIDTH = 140
"""Columns of a table that goes to no terminal: rich would cut it at 80."""


def policies(
    data: Data,
    bundle: BundleFolder = None,
    limit: Annotated[int, typer.Option(min=1, help="Test images of each corruption and severity.")] = 200,
    validation_limit: Annotated[
        int, typer.Option(min=1, help="The same, of those that thresholds are chosen on.")
    ] = 400,
    seed: Annotated[int, typer.Option(help="Seed of the images and corruptions.")] = 0,
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
        from rws.training.evaluation.frames import load_splits
    from rws.edge.bundle.bundle import Bundle

    _check(report)
    chosen = Bundle.load(bundle)
    result = compare_policies(
        chosen,
        load_splits(chosen, data, cache),
        limit=limit,
        validation_limit=validation_limit,
        seed=seed,
        threads=threads,
        progress=typer.echo,
    )
    print_policies(result, _console())
    _save(report, result, data, seed, threads)


def pairs(
    data: Data,
    bundle: BundleFolder = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of corruptions, drawn by the seed.")] = 40,
    limit: Annotated[int, typer.Option(min=1, help="Test images of each pair and severity.")] = 200,
    validation_limit: Annotated[
        int, typer.Option(min=1, help="The same, of those that thresholds are chosen on.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the pairs, images and corruptions.")] = 0,
    cache: Cache = None,
    threads: Threads = 1,
    report: Report = None,
) -> None:
    """Two corruptions at once: what one signature gives, two composed, and what each policy makes of it.

    \b
    Example:
        rws bench pairs --data ~/data/cifar10 --json pairs.json
    """
    with require("bench"):
        from rws.benchmarks.oracle.pairs import compare_pairs, print_pairs
        from rws.training.evaluation.frames import load_splits
    from rws.edge.bundle.bundle import Bundle

    _check(report)
    chosen = Bundle.load(bundle)
    result = compare_pairs(
        chosen,
        load_splits(chosen, data, cache),
        pairs=pairs,
        limit=limit,
        validation_limit=validation_limit,
        seed=seed,
        threads=threads,
        progress=typer.echo,
    )
    print_pairs(result, _console())
    _save(report, result, data, seed, threads)


def unseen(
    data: Data,
    work: Annotated[Path, typer.Option(help="Folder of the jobs' files; several processes may share it.")],
    bundle: BundleFolder = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of each oracle.")] = 8,
    only: Annotated[list[str] | None, typer.Option(help="Leave out this corruption; once for each; none: all.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Test images of each severity.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
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
        from rws.training.evaluation.frames import load_splits
    from rws.edge.bundle.bundle import Bundle

    _check(report)
    torch.set_num_threads(threads)
    chosen = Bundle.load(bundle)
    recipe = UnseenRecipe(bundle_recipe(chosen, epochs), limit=limit, clean_recall=bundle_recall(chosen), seed=seed)
    result = leave_one_out(
        chosen, load_splits(chosen, data, cache), recipe, work, only=only or (), threads=threads, progress=typer.echo
    )
    print_unseen(result, _console())
    if result["missing"]:
        typer.echo(f"not done yet: {', '.join(result['missing'])}")
    _save(report, result, data, seed, threads)


def filter(
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
        from rws.benchmarks.oracle.filter_tuning import tune_filter
    from rws.edge.bundle.bundle import Bundle

    _check(report)
    result = tune_filter(Bundle.load(bundle), data, frames=frames, seed=seed, progress=typer.echo)
    typer.echo(f"best: {result['best']}")
    _save(report, result | {"count": len(result["tried"]), "tried": result["tried"][:keep]}, data, seed, 1)


def rivals(
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

        from rws.benchmarks.baselines.models import RivalModels
    from rws.edge.bundle.bundle import Bundle

    torch.set_num_threads(threads)
    models = RivalModels(Bundle.load(bundle), data, work, progress=lambda record: typer.echo(str(record)))
    models.train_all()
    typer.echo(f"models in {models.folder}; try: rws replay --data {data} --protocol all --rivals {work}")


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
    from rws.edge.bundle.bundle import Bundle

    draw_all(results, out, bundle=Bundle.load(bundle), only=only or (), progress=typer.echo)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)


def _check(report: Path | None) -> None:
    from rws.edge.common.files import check_target

    if report is not None:
        check_target(report)


def _save(report: Path | None, result: dict[str, object], data: str, seed: int, threads: int) -> None:
    from rws.edge.common.provenance import provenance, write_json

    if report is not None:
        write_json(report, provenance(data=Path(data).name, seed=seed, threads=threads) | result)


COMMANDS = (policies, pairs, unseen, filter, rivals, figures)
