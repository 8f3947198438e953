"""`rws reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rws.edge.cli.parameters import JsonOption
from rws.edge.common.extras import require
from rws.errors import UsageError, check_known
from rws.terminal import say, show
from rws.training.cli.parameters import ExplainOption, OnOption, ThreadsOfJobOption, WorkersOption, absolute

if TYPE_CHECKING:
    from rws.benchmarks.paper.columns import Place
    from rws.benchmarks.paper.jobs import Task
NAMES = (*(f"table{n}" for n in range(1, 6)), *(f"fig{n}" for n in range(2, 10)), "init", "tuned", "smaller")
"""What can be reproduced: the names of `paper.entries`, known before torch is imported."""

Data = Annotated[
    list[str] | None,
    typer.Option(
        help="A folder that holds cifar10/, cifar100/, tiny-imagenet/, imagenet/, each with train/ and test/ or "
        "val/; or NAME=FOLDER; repeatable. CIFAR is downloaded if it is not there."
    ),
]


def reproduce(
    names: Annotated[
        list[str] | None, typer.Argument(help="table1 to table5, fig2 to fig9, init, tuned, smaller, or all.")
    ] = None,
    scale: Annotated[str, typer.Option(help="small or short (two CPU cores) or full (a GPU).")] = "small",
    column: Annotated[
        list[str] | None, typer.Option(help="Only this column, such as cifar10-vgg16; repeatable.")
    ] = None,
    data: Data = None,
    work: Annotated[
        Path, typer.Option(help="Folder for checkpoints and scores; a stopped run resumes from them.")
    ] = Path("runs/reproduce"),
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results. Default: --work; with --status, the committed results of a checkout."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    workers: WorkersOption = 1,
    threads: ThreadsOfJobOption = None,
    on: OnOption = "here",
    explain: ExplainOption = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many test and validation images.")] = None,
    recipes: Annotated[
        Path | None, typer.Option(help="Folder of <scale>/<column>.toml. Default: those that ship.")
    ] = None,
    pretrained: Annotated[
        str, typer.Option(help="For init: ImageNet weights of VGG-16, a file or torchvision's name.")
    ] = "IMAGENET1K_V1",
    status: Annotated[bool, typer.Option("--status", help="List what is done and what is missing, and exit.")] = False,
    report: JsonOption = None,
) -> None:
    """Reproduce the paper's tables and figures, from data to table or plot.

    \b
    Examples:
        rws reproduce --status
        rws reproduce table1 --column cifar10-vgg16 --data ~/data --workers 2
        rws reproduce all --scale full --data ~/data --device cuda --workers 4
        rws reproduce table2 --scale full --data imagenet=/data/imagenet --device cuda
    """
    if report is not None and not status:
        raise UsageError("--json is for --status; results are written to --out")
    if not names and not status:
        raise UsageError("name what to reproduce, such as table1 or all; --status lists what there is")
    check_known("table or figure", names or (), (*NAMES, "all"))
    if limit is not None and out is None:
        raise UsageError("--limit is for trying things; give --out as well, so that it replaces no whole result")
    if status:
        _list_results(out, work, report)
        return
    with require("bench"):
        from rws.benchmarks.paper.columns import RECIPES, Place, parse_data
        from rws.benchmarks.paper.run import reproduce as run
        from rws.training.jobs.driver import Where
    images = {name: absolute(source) for name, source in parse_data(data or []).items()}
    folder = (recipes or RECIPES).absolute()
    place = Place(images, work.absolute(), scale, device, limit, folder, absolute(pretrained))
    chosen = _chosen(names or [], column or [], place)
    for path in run(chosen, place, out=out or work, where=Where(on, workers, threads, explain)):
        say(f"wrote {path}")


def _list_results(out: Path | None, work: Path, report: Path | None) -> None:
    with require("bench"):
        from rws.benchmarks.paper.run import RESULTS, status
        from rws.edge.common.provenance import write_json
    results = out or (RESULTS if RESULTS.is_dir() else work)
    rows = status(results)
    for row in rows:
        show(f"{row['scale']:6s} {row['name']:8s} {row['column']:24s} {'done' if row['done'] else 'missing'}")
    show(f"{sum(row['done'] for row in rows)} of {len(rows)} done in {results}")
    if report is not None:
        write_json(report, "reproduce-status/1", {"results": rows})


def _chosen(names: list[str], columns: list[str], place: Place) -> list[Task]:
    from rws.benchmarks.paper.columns import COLUMNS
    from rws.benchmarks.paper.run import tasks

    chosen = list(tasks(() if "all" in names else names, columns, (place.scale,)))
    if "all" in names:
        absent = {c for task in chosen for c in task.sources if COLUMNS[c].dataset not in place.data}
        if absent:
            say(f"skipped, because --data names no images for them: {', '.join(sorted(absent))}")
        chosen = [task for task in chosen if not absent & set(task.sources)]
    if not chosen:
        why = f"nothing to do at the {place.scale} scale with these columns and data"
        raise UsageError(f"{', '.join(names)}: {why} (a joint result needs all of its columns); see --status")
    return chosen
