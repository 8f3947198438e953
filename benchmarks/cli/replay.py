"""`rws replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rws.benchmarks.cli.options import open_bundle, save
from rws.edge.cli.parameters import Cifar10Option, JsonOption
from rws.edge.common.extras import require
from rws.errors import UsageError
from rws.terminal import result_console, say
from rws.training.cli.parameters import ExplainOption, OnOption, ThreadsOfJobOption, WorkersOption, absolute


def replay(
    data: Annotated[
        str,
        typer.Option(help="Clean test folder or data set (corrupted here), ImageNet-C folders, CIFAR-10-C .npy files."),
    ],
    bundle: Cifar10Option = None,
    severity: Annotated[str, typer.Option(help="1 to 5, a list such as 1,3,5, or all.")] = "5",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many images of each set.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the corruptions and of --limit.")] = 0,
    work: Annotated[
        Path | None, typer.Option(help="Folder that keeps each finished set; needed for --workers and --on.")
    ] = None,
    threads: ThreadsOfJobOption = None,
    workers: WorkersOption = 1,
    on: OnOption = "here",
    explain: ExplainOption = False,
    report: JsonOption = None,
) -> None:
    """Measure accuracy on a corrupted test set: no patch, trained oracle, perfect oracle. Each image is alone.

    `rws bench streams` measures streams of frames, with the temporal filter.

    \b
    Examples:
        rws replay --data ~/data/cifar10 --json result.json           # severity 5, all 19 corruptions
        rws replay --data ~/data/CIFAR-10-C --severity all --limit 1000
        rws replay --bundle my_bundle --data my_photos/test --limit 500
        rws replay --data imagenet-c --severity all --work replay --on ray
    """
    severities = _severities(severity)
    with require("bench"):
        from rws.benchmarks.replay.replay import Replay, ReplayOptions, open_graph, print_replay
        from rws.training.jobs.driver import Where, do_jobs
        from rws.training.jobs.graph import Work
    where = Where(on, workers, threads, explain)
    opened = open_bundle(bundle, any_range=True)
    folder = work and work.absolute()
    options = ReplayOptions(
        opened.path.absolute(), absolute(data), tuple(severities), limit, seed, where.threads_each, folder
    )
    run = Replay(options, opened)
    if folder is not None:
        do_jobs(run.graph(), Work(open_graph, (options,), folder), where)
    elif where != Where(threads=threads):
        raise UsageError("--workers, --on and --explain need --work FOLDER, in which finished sets are kept")
    result = run.summed(say)
    print_replay(result, result_console())
    save(report, "replay/1", result, data)


def _severities(text: str) -> list[int]:
    if text == "all":
        return [1, 2, 3, 4, 5]
    parts = text.split(",")
    if not all(part.strip() in {"1", "2", "3", "4", "5"} for part in parts):
        raise UsageError(f"--severity {text!r}: expected 1 to 5, a list such as 1,3,5, or all")
    return sorted({int(part) for part in parts})
