"""`rws replay`."""

from __future__ import annotations

from typing import Annotated

import typer

from rws.benchmarks.cli.options import open_bundle, save
from rws.edge.cli.parameters import Cifar10Option, JsonOption
from rws.edge.common.extras import require
from rws.errors import UsageError
from rws.terminal import result_console, say


def replay(
    data: Annotated[
        str,
        typer.Option(help="Clean test folder or data set (corrupted here), ImageNet-C folders, CIFAR-10-C .npy files."),
    ],
    bundle: Cifar10Option = None,
    severity: Annotated[str, typer.Option(help="1 to 5, a list such as 1,3,5, or all.")] = "5",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many images of each set.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the corruptions and of --limit.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of model and oracle.")] = None,
    report: JsonOption = None,
) -> None:
    """Measure accuracy on a corrupted test set: no patch, trained oracle, perfect oracle. Each image is alone.

    `rws bench streams` measures streams of frames, with the temporal filter.

    \b
    Examples:
        rws replay --data ~/data/cifar10 --json result.json           # severity 5, all 19 corruptions
        rws replay --data ~/data/CIFAR-10-C --severity all --limit 1000
        rws replay --bundle my_bundle --data my_photos/test --limit 500
    """
    severities = _severities(severity)
    with require("bench"):
        from rws.benchmarks.replay.replay import print_replay
        from rws.benchmarks.replay.replay import replay as run
        from rws.training.evaluation.evaluator import EvaluationOptions
    options = EvaluationOptions(limit=limit, seed=seed, threads=threads, progress=say)
    result = run(open_bundle(bundle, any_range=True), data, severities, options)
    print_replay(result, result_console())
    save(report, "replay/1", result, data)


def _severities(text: str) -> list[int]:
    if text == "all":
        return [1, 2, 3, 4, 5]
    parts = text.split(",")
    if not all(part.strip() in {"1", "2", "3", "4", "5"} for part in parts):
        raise UsageError(f"--severity {text!r}: expected 1 to 5, a list such as 1,3,5, or all")
    return sorted({int(part) for part in parts})
