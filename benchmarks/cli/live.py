"""`rws bench live`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rws.benchmarks.cli.options import Rounds, save
from rws.edge.cli.parameters import JsonOption
from rws.edge.common.extras import require
from rws.terminal import say

if TYPE_CHECKING:
    from rws.benchmarks.common.tables import Record


def live(
    model: Annotated[
        list[str] | None,
        typer.Option(help="torchvision/NAME, timm/NAME or an .onnx file; repeatable. Default: 37 architectures."),
    ] = None,
    python: Annotated[
        list[str] | None,
        typer.Option(help="A Python with another onnxruntime (and numpy, onnx); repeatable. Default: this one."),
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Keep the exported models in this folder.")] = None,
    rounds: Rounds = 5,
    workers: Annotated[int, typer.Option(min=1, help="Cases at a time; their times are the processor's.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of weights, inputs and order.")] = 0,
    report: JsonOption = None,
) -> None:
    """Try live weights on many architectures, with and without AVX-512: exactness, latency, and the second opening.

    \b
    Examples:
        rws bench live --model torchvision/resnet18 --model classifier.onnx
        rws bench live --python old/bin/python --python new/bin/python --json live_table.json
    """
    with require("bench"):
        from rws.benchmarks.live.models import DEFAULT
        from rws.benchmarks.live.table import TableOptions, measure_table

    def keep(rows: list[Record]) -> None:
        save(report, "live/1", {"rows": rows}, seed=seed, rounds=rounds, threads=1)

    with tempfile.TemporaryDirectory() as folder:
        options = TableOptions(python or [sys.executable], work or Path(folder), rounds, seed, workers)
        measure_table(model or DEFAULT, options, say, keep)
