"""`rws demo`."""

from pathlib import Path
from typing import Annotated

import typer

from rws import terminal
from rws.benchmarks.cli.options import open_bundle
from rws.edge.cli.parameters import Cifar10Option
from rws.edge.common.extras import require


def demo(
    out: Annotated[Path, typer.Option(help="Folder for timeline.png, frames.mp4, results.jsonl, summary.json.")] = Path(
        "demo"
    ),
    bundle: Cifar10Option = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of model and oracle.")] = 1,
) -> None:
    """Play a stream of corrupted test images through the frame loop and show what the oracle and the patch do.

    \b
    Examples:
        rws demo
        rws demo --out my_demo --verbose         # and a line per mix change
    """
    with require("demo"):
        from rws.benchmarks.demo.demo import play, print_summary
    console = terminal.console(wrap=True)
    summary, right = play(open_bundle(bundle), out, threads, console, terminal.is_verbose())
    print_summary(summary, right, terminal.result_console())
    terminal.say(f"{summary['seconds']} s. Look at {out}/timeline.png and {out}/frames.mp4")
