"""`rws bench streams`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from rws.benchmarks.cli.options import open_bundle, save
from rws.edge.cli.parameters import Cifar10Option, JsonOption, output
from rws.edge.common.extras import require
from rws.errors import UsageError
from rws.terminal import STDOUT, result_console, say

Severity = Enum("Severity", {"1": "1", "2": "2", "3": "3", "4": "4", "5": "5", "all": "all"})


def streams(
    data: Annotated[str, typer.Option(help="Clean test folder or data set; it is corrupted here.")],
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="iid, mixed, continual, gradual, correlated, potpourri, or all; repeatable. Default: all."),
    ] = None,
    bundle: Cifar10Option = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames per corruption type.")] = 500,
    severity: Annotated[Severity, typer.Option(help="Severity of the corruptions; all: changing.")] = Severity["5"],
    baselines: Annotated[
        Path | None, typer.Option(help="Also the baselines; the --work folder of `rws bench baselines`.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this one of the baselines, such as augmented; repeatable.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch size of the baselines; repeatable. Default: 1 and 64.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the streams.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of model and oracle.")] = 1,
    resume: Annotated[bool, typer.Option(help="Use what an earlier run left in the folder JSON.parts.")] = True,
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Measure time and memory of the baselines again, without --resume.")
    ] = False,
    report: JsonOption = None,
    table: Annotated[
        Path | None,
        typer.Option("--csv", callback=output, help="Write the accuracies by corruption type here; -: stdout."),
    ] = None,
) -> None:
    """Measure accuracy on streams in which the corruption changes: our methods frame by frame, and the baselines.

    \b
    Examples:
        rws bench streams --data ~/data/cifar10 --protocol continual --protocol mixed --frames 200
        rws bench streams --data ~/data/cifar10 --baselines runs/baselines --json streams.json --csv streams.csv
    """
    for option, given in (("--only", only), ("--batch", batch), ("--remeasure", remeasure)):
        if given and baselines is None:
            raise UsageError(f"{option} is for the baselines; give --baselines as well")
    with require("bench"):
        from rws.benchmarks.replay.streams import StreamOptions, print_streams, replay_streams, write_accuracies
        from rws.benchmarks.streams.protocols import PROTOCOLS
    options = StreamOptions(
        protocols=PROTOCOLS if protocol is None or "all" in protocol else protocol,
        frames=frames,
        severity="all" if severity.value == "all" else float(severity.value),
        seed=seed,
        baselines=baselines,
        only=only or (),
        batches=batch or (1, 64),
        parts=None if report in (None, STDOUT) else report.with_name(report.name + ".parts"),
        resume=resume,
        remeasure=remeasure,
        threads=threads,
        progress=say,
    )
    result = replay_streams(open_bundle(bundle), data, options)
    print_streams(result, result_console())
    save(report, "streams/1", result, data, threads=threads)
    if table is not None:
        write_accuracies(table, result)
