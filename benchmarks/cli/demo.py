"""`rws demo`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from rws import terminal
from rws.benchmarks.cli.options import open_bundle
from rws.edge.cli.parameters import Cifar10Option
from rws.edge.common.extras import require

Demo = Enum("Demo", {"cifar10": "cifar10", "camera": "camera"})


def demo(
    which: Annotated[Demo, typer.Argument(help="Images of CIFAR-10, classified, or a street, with boxes.")] = Demo[
        "cifar10"
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figure, the video and summary.json; default: demo, demo/camera.")
    ] = None,
    bundle: Cifar10Option = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of model and oracle.")] = 1,
) -> None:
    """Play a stream of corrupted test images through the frame loop and show what the oracle and the patch do.

    `camera`: a real street in dusk, fog, rain and noise and through a dirty lens, seen by a detector (its default
    bundle is detector) without a patch and with it. It makes the corruptions itself, with torch: the extra `bench`.

    \b
    Examples:
        rws demo
        rws demo --out my_demo --verbose         # and a line per mix change
        rws demo camera
    """
    console = terminal.console(wrap=True)
    if which is Demo["camera"]:
        _camera(out or Path("demo") / "camera", bundle, threads)
        return
    with require("demo"):
        from rws.benchmarks.demo.demo import play, print_summary
    folder = out or Path("demo")
    summary, right = play(open_bundle(bundle), folder, threads, console, terminal.is_verbose())
    print_summary(summary, right, terminal.result_console())
    terminal.say(f"{summary['seconds']} s. Look at {folder}/timeline.png and {folder}/frames.mp4")


def _camera(out: Path, bundle: Path | None, threads: int | None) -> None:
    with require("bench"):
        import torch

        from rws.benchmarks.common.tables import terminal as table
        from rws.benchmarks.demo.camera import play_camera
        from rws.benchmarks.streams.clips import COLUMNS
        from rws.edge.bundle.bundle import Bundle
        from rws.edge.bundle.contents import DETECTOR_BUNDLE
    torch.set_num_threads(threads or torch.get_num_threads())
    summary = play_camera(Bundle.load(bundle or DETECTOR_BUNDLE), out, threads, terminal.console(wrap=True))
    terminal.show(table(COLUMNS, summary["stretches"]))
    terminal.say(f"{summary['seconds']} s. Look at {out}/camera.png and {out}/camera.mp4")
