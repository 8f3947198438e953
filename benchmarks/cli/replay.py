"""`rws replay`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rws.benchmarks.cli.options import BundleFolder, Report, check_targets, open_bundle, save
from rws.edge.common.extras import require
from rws.errors import UsageError
from rws.terminal import say, show

if TYPE_CHECKING:
    from rws.benchmarks.replay.streams import StreamOptions
    from rws.training.evaluation.evaluator import EvaluationOptions

Data = Annotated[
    str,
    typer.Option(help="Clean test folder or data set (corrupted here), ImageNet-C folders, or CIFAR-10-C .npy files."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of model and oracle; streams: left out, 1.")]
Protocols = Annotated[
    list[str] | None,
    typer.Option(
        help="Streams of clean images, corrupted here: iid, mixed, continual, gradual, correlated, or all; "
        "several times."
    ),
]
Batches = Annotated[
    list[int] | None, typer.Option(min=1, help="Streams: the rivals' batch; several times; left out: 1 and 64.")
]
Resume = Annotated[bool, typer.Option(help="Streams: go on from what an earlier run left in the folder JSON.parts.")]
Remeasure = Annotated[
    bool, typer.Option("--remeasure", help="Rivals: measure time and memory anew, whatever JSON.parts holds.")
]


def replay(
    data: Data,
    bundle: BundleFolder = None,
    severity: Annotated[str, typer.Option(help="1 to 5, a list such as 1,3,5, or all.")] = "5",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many images of each set.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the corruptions, of --limit and of the streams.")] = 0,
    threads: Threads = None,
    report: Report = None,
    protocol: Protocols = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Streams: frames per type; left out: 500.")] = None,
    rivals: Annotated[Path | None, typer.Option(help="Streams: also the rivals, whose models are here.")] = None,
    batch: Batches = None,
    table: Annotated[Path | None, typer.Option("--csv", help="Streams: write the accuracies by type here.")] = None,
    resume: Resume = True,
    remeasure: Remeasure = False,
) -> None:
    """Replay the oracle against a corrupted test set: accuracy never patched, with the oracle, and when told.

    With --protocol: frame by frame over streams in which the corruption changes, with the temporal filter.

    \b
    Examples:
        rws replay --data ~/data/cifar10 --json result.json           # severity 5, all 19 corruptions
        rws replay --data ~/data/CIFAR-10-C --severity all --limit 1000
        rws replay --bundle my_bundle --data my_photos/test --limit 500
        rws replay --data ~/data/cifar10 --protocol continual --protocol mixed --frames 200
        rws replay --data ~/data/cifar10 --protocol all --rivals runs/rivals --json streams.json --csv streams.csv
    """
    _check(protocol, rivals, {"--frames": frames, "--rivals": rivals, "--batch": batch, "--csv": table}, remeasure)
    severities = _severities(severity)
    if protocol and limit is not None:
        raise UsageError("--limit is for sets of images; with --protocol give --frames")
    if protocol and severity != "all" and len(severities) != 1:
        raise UsageError(f"--severity {severity!r}: with --protocol expected one of 1 to 5, or all")
    with require("bench"):
        from rws.benchmarks.replay.streams import StreamOptions
        from rws.benchmarks.streams.protocols import PROTOCOLS
        from rws.training.evaluation.evaluator import EvaluationOptions
    check_targets(report, table)
    if not protocol:
        options = EvaluationOptions(limit=limit, seed=seed, threads=threads, progress=say)
        _replay_sets(data, bundle, severities, options, report)
        return
    streams = StreamOptions(
        protocols=PROTOCOLS if "all" in protocol else protocol,
        frames=frames or 500,
        severity="all" if severity == "all" else float(severity),
        seed=seed,
        baselines=rivals,
        batches=batch or (1, 64),
        parts=None if report is None else report.with_name(report.name + ".parts"),
        resume=resume,
        remeasure=remeasure,
        threads=threads or 1,
        progress=say,
    )
    _replay_streams(data, bundle, streams, report, table)


def _check(protocol: list[str] | None, rivals: Path | None, for_streams: dict[str, object], remeasure: bool) -> None:
    misplaced = [option for option, value in for_streams.items() if value is not None]
    if misplaced and not protocol:
        raise UsageError(f"{misplaced[0]} is for streams; give --protocol as well")
    for option, given in (("--batch", for_streams["--batch"]), ("--remeasure", remeasure)):
        if given and rivals is None:
            raise UsageError(f"{option} is for the rivals; give --rivals as well")


def _replay_sets(
    data: str, bundle: Path | None, severities: list[int], options: EvaluationOptions, report: Path | None
) -> None:
    from rws.benchmarks.replay.replay import format_replay
    from rws.benchmarks.replay.replay import replay as run

    result = run(open_bundle(bundle), data, severities, options)
    show(format_replay(result))
    save(report, "replay/1", result, data)


def _replay_streams(
    data: str, bundle: Path | None, options: StreamOptions, report: Path | None, table: Path | None
) -> None:
    from rws.benchmarks.replay.streams import format_streams, replay_streams, write_accuracies

    result = replay_streams(open_bundle(bundle), data, options)
    show(format_streams(result))
    save(report, "streams/1", result, data, threads=options.threads)
    if table is not None:
        write_accuracies(table, result)


def _severities(text: str) -> list[int]:
    if text == "all":
        return [1, 2, 3, 4, 5]
    parts = text.split(",")
    if not all(part.strip() in {"1", "2", "3", "4", "5"} for part in parts):
        raise UsageError(f"--severity {text!r}: expected 1 to 5, a list such as 1,3,5, or all")
    return sorted({int(part) for part in parts})
