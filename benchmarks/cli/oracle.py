"""Measure the oracle: `rws bench policies`, `pairs`, `unseen`, `filter`, `baselines`, `figures`, `cameras`, `clips`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rws.benchmarks.cli.options import open_bundle, save
from rws.edge.cli.parameters import BundleOption, Cifar10Option, JsonOption
from rws.edge.common.extras import require
from rws.terminal import result_console, say, show

if TYPE_CHECKING:
    from rws.edge.bundle.bundle import Bundle
    from rws.training.evaluation.frames import Splits

Data = Annotated[str, typer.Option(help="The images that the bundle was built from: folder or data set name.")]
Cache = Annotated[Path | None, typer.Option(help="Folder that keeps the decoded images for the next run.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of model and oracle.")]
Seed = Annotated[int, typer.Option(help="Seed of the images and corruptions.")]
ValidationLimit = Annotated[int, typer.Option(min=1, help="The same for the images that thresholds are chosen on.")]


def policies(
    data: Data,
    bundle: Cifar10Option = None,
    limit: Annotated[int, typer.Option(min=1, help="Test images of each corruption and severity.")] = 200,
    validation_limit: ValidationLimit = 400,
    seed: Seed = 0,
    cache: Cache = None,
    threads: Threads = 1,
    report: JsonOption = None,
) -> None:
    """Compare policies, from a belief to a mix: hard choice, weighted composition, expected accuracy.

    \b
    Example:
        rws bench policies --data ~/data/cifar10 --json policies.json
    """
    with require("bench"):
        from rws.benchmarks.oracle.policies import compare_policies, print_policies
        from rws.training.evaluation.evaluator import EvaluationOptions
    options = EvaluationOptions(limit, validation_limit, None, seed, threads, say)
    result = compare_policies(*_inputs(data, bundle, cache), options)
    print_policies(result, result_console())
    save(report, "policies/1", result, data, seed=seed, threads=threads)


def pairs(
    data: Data,
    bundle: Cifar10Option = None,
    cache: Cache = None,
    seed: Seed = 0,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of corruptions, drawn by the seed.")] = 40,
    limit: Annotated[int, typer.Option(min=1, help="Test images of each pair and severity.")] = 200,
    validation_limit: ValidationLimit = 100,
    threads: Threads = 1,
    report: JsonOption = None,
) -> None:
    """Measure two corruptions at once: one signature, two composed, and what each policy chooses.

    \b
    Example:
        rws bench pairs --data ~/data/cifar10 --json pairs.json
    """
    with require("bench"):
        from rws.benchmarks.oracle.pairs import CLEAN_LIMIT, compare_pairs, print_pairs
        from rws.training.evaluation.evaluator import EvaluationOptions
    options = EvaluationOptions(limit, validation_limit, CLEAN_LIMIT, seed, threads, say)
    result = compare_pairs(*_inputs(data, bundle, cache), pairs, options)
    print_pairs(result, result_console())
    save(report, "pairs/1", result, data, seed=seed, threads=threads)


def unseen(
    data: Data,
    work: Annotated[Path, typer.Option(help="Folder for the jobs' files; several processes may share it.")],
    bundle: Cifar10Option = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each oracle.")] = 8,
    only: Annotated[list[str] | None, typer.Option(help="Hold out this corruption; repeatable. Default: all.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Test images of each severity.")] = 1000,
    seed: Seed = 0,
    cache: Cache = None,
    threads: Threads = 1,
    report: JsonOption = None,
) -> None:
    """Measure corruptions that the oracle never saw: each one is held out of oracle, signatures and gain table.

    It trains an oracle per corruption, keeps what is done in --work, and resumes from there.

    \b
    Example:
        rws bench unseen --data ~/data/cifar10 --work runs/unseen --json unseen.json
    """
    with require("bench"):
        import torch

        from rws.benchmarks.oracle.unseen import UnseenRecipe, bundle_recall, bundle_recipe, leave_one_out, print_unseen
    torch.set_num_threads(threads)
    chosen, splits = _inputs(data, bundle, cache)
    recipe = UnseenRecipe(bundle_recipe(chosen, epochs), limit=limit, clean_recall=bundle_recall(chosen), seed=seed)
    result = leave_one_out(chosen, splits, recipe, work, only=only or (), threads=threads, progress=say)
    print_unseen(result, result_console())
    save(report, "unseen/1", result, data, seed=seed, threads=threads)


def tune_filter(
    data: Data,
    bundle: Cifar10Option = None,
    frames: Annotated[int, typer.Option(min=1, help="Validation frames of each type in each stream.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the streams.")] = 0,
    keep: Annotated[
        int, typer.Option(min=1, help="Write at most this many of the settings tried, the best first.")
    ] = 12,
    report: JsonOption = None,
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
    result = filter_tuning.tune_filter(open_bundle(bundle), data, frames, options)
    show(f"best: {result['best']}")
    shown = {**result, "count": len(result["tried"]), "tried": result["tried"][:keep]}
    save(report, "filter/1", shown, data, seed=seed, threads=1)


def baselines(
    data: Data,
    work: Annotated[Path, typer.Option(help="Folder for the models; a stopped training resumes from it.")],
    bundle: Cifar10Option = None,
    threads: Threads = 1,
) -> None:
    """Train the baselines' models: one with all corruptions as augmentation, and one per corruption.

    `rws bench streams --baselines WORK` then measures them.

    \b
    Example:
        rws bench baselines --data ~/data/cifar10 --work runs/baselines
    """
    with require("bench"):
        import torch

        from rws.benchmarks.baselines.models import BaselineModels
        from rws.training.jobs.progress import JobLines
    torch.set_num_threads(threads)
    models = BaselineModels(open_bundle(bundle), data, work, progress=JobLines())
    models.train_all()
    say(f"models in {models.folder}; try: rws bench streams --data {data} --baselines {work}")


def figures(
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results"),
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("docs/benchmarks"),
    bundle: Cifar10Option = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this figure; repeatable.")] = None,
) -> None:
    """Draw the confusion matrix, the gain table, the split of the regret and a stream's timeline from the results.

    \b
    Example:
        rws bench figures --results benchmarks/results --out docs/benchmarks
    """
    with require("bench"):
        from rws.benchmarks.oracle.figures import draw_all
    draw_all(results, out, bundle=open_bundle(bundle), only=only or (), progress=say)


def cameras(
    clear: Annotated[list[str], typer.Option(help="A folder of clear photographs of one source; repeatable.")],
    bundle: BundleOption = None,
    noise: Annotated[str | None, typer.Option(help="Folder of pairs, …_real and …_mean, of sensor noise.")] = None,
    dark: Annotated[
        str | None, typer.Option(help="Folder of photographs in low light; bright ones are left out.")
    ] = None,
    rain: Annotated[list[str] | None, typer.Option(help="Folder of photographs in the rain; repeatable.")] = None,
    clip: Annotated[list[str] | None, typer.Option(help="A clear video; repeatable.")] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="A YOLOX .onnx file: how well the detector agrees with it in low light and rain."),
    ] = None,
    size: Annotated[
        list[int] | None, typer.Option(help="Side of the corrupted photographs; default: 224, 512.")
    ] = None,
    cell: Annotated[int, typer.Option(min=1, help="Photographs of each corruption, severity and size.")] = 12,
    limit: Annotated[int, typer.Option(min=1, help="Clear photographs of each source.")] = 500,
    seed: Seed = 0,
    report: JsonOption = None,
) -> None:
    """Measure an oracle on photographs of cameras: clear ones, corrupted ones, and ones with real corruption.

    \b
    Example:
        rws bench cameras --bundle detector --clear kodak/ --clear bsds/ --noise polyu/ --dark dicm/ --json cameras.json
    """
    with require("bench"):
        import torch

        from rws.benchmarks.oracle.cameras import CameraSets, measure_cameras
        from rws.edge.bundle.bundle import Bundle
    torch.set_num_threads(1)
    sets = CameraSets(clear, noise, dark, rain or (), clip or (), size or (224, 512), reference, cell, limit)
    result = measure_cameras(Bundle.load(bundle), sets, seed, say)
    for row in result["times"]:
        ms = f"oracle {row['oracle_ms']:.2f} ms, model {row['model_ms']:.2f} ms, {row['of_model']:.1%} of the model"
        show(f"{row['width']}x{row['height']}: {ms}, {row['of_frame']:.1%} with its preprocessing")
    save(report, "cameras/1", result, seed=seed, threads=1)


def clips(
    clip: Annotated[list[str], typer.Option(help="A clear video; repeatable.")],
    bundle: BundleOption = None,
    fps: Annotated[float, typer.Option(min=1, max=1000, help="Frames per second that are looked at.")] = 5.0,
    seed: Seed = 0,
    report: JsonOption = None,
) -> None:
    """Measure a detector's bundle (default: detector) on clips with dusk, fog and rain that come, and a dirty lens.

    \b
    Example:
        rws bench clips --clip street.mp4 --clip yard.mp4 --json clips.json
    """
    with require("bench"):
        import torch

        from rws.benchmarks.common.tables import terminal
        from rws.benchmarks.streams.clips import COLUMNS, measure_clips
        from rws.edge.bundle.bundle import Bundle
    torch.set_num_threads(1)
    result = measure_clips(Bundle.load(bundle), clip, fps, seed, say)
    show(terminal(COLUMNS, result["rows"]))
    save(report, "clips/1", result, seed=seed, threads=1)


def _inputs(data: str, bundle: Path | None, cache: Path | None) -> tuple[Bundle, Splits]:
    from rws.training.evaluation.frames import load_splits

    chosen = open_bundle(bundle)
    return chosen, load_splits(chosen, data, cache)


COMMANDS: Mapping[str, Callable[..., None]] = {
    "policies": policies,
    "pairs": pairs,
    "unseen": unseen,
    "filter": tune_filter,
    "baselines": baselines,
    "figures": figures,
    "cameras": cameras,
    "clips": clips,
}
