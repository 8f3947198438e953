"""`rws drill`: everything that goes wrong with a camera, on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rws.edge.cli.parameters import Cifar10Option, JsonOption, KeyOption, optional
from rws.terminal import console as line_console
from rws.terminal import result_console

if TYPE_CHECKING:
    from rich.console import Console

    from rws.edge.bundle.bundle import Bundle
    from rws.edge.faults.harness import Outcome


def drill(
    bundle: Cifar10Option = None,
    key: KeyOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Skip what takes longer than a few seconds.")] = False,
    only: Annotated[str | None, optional(help="Only the faults whose name contains this text.")] = None,
    video: Annotated[Path | None, optional(help="An H.264 file to play, and to damage; default: generated.")] = None,
    soak: Annotated[
        float | None,
        optional(min=10, help="Instead: a soak test of N seconds on a stream on loopback; needs the extra `serve`."),
    ] = None,
    hostile: Annotated[
        bool,
        typer.Option(
            "--hostile",
            help="With --soak: the camera dies 60 times, a disk is full, peers attack, and bad bundles appear.",
        ),
    ] = False,
    fps: Annotated[float, typer.Option(min=1, max=240, help="Frames per second of the soak's camera.")] = 30.0,
    report: JsonOption = None,
) -> None:
    """Put the frame loop through everything that goes wrong with a camera; no camera is needed.

    Prints for each fault what is promised, what happened, and the counts of frames: in = out + dropped + rejected. The
    exit code is 1 if a promise was not kept.

    \b
    Examples:
        rws drill                                # a minute; every fault
        rws drill --quick --json drill.json
        rws drill --only RTSP
        rws drill --only video --video clip.mp4  # play your own file, whole and damaged
        rws drill --soak 600 --json soak.json    # ten minutes: memory, age of results, every frame accounted for
        rws drill --soak 3600 --fps 15 --hostile # an hour in which everything goes wrong
    """
    from rws.edge.bundle.bundle import Bundle
    from rws.edge.bundle.contents import CIFAR10_BUNDLE
    from rws.edge.bundle.keys import trusted_keys
    from rws.edge.common.provenance import provenance, write_json
    from rws.edge.sources.open import quiet_opencv
    from rws.errors import UsageError

    if hostile and soak is None:
        raise UsageError("--hostile is for a soak test; add --soak SECONDS")
    quiet_opencv()
    console = line_console()
    loaded = Bundle.load(bundle or CIFAR10_BUNDLE, trusted_keys(key))
    if soak is None:
        content, failed = _run_cases(loaded, quick, only, video, console)
    else:
        content, failed = _run_soak(soak, fps, loaded, hostile, console)
    if report is not None:
        schema = "drill/1" if soak is None else "soak/1"
        write_json(report, schema, {**content, "bundle": loaded.manifest.name, "seed": 0, **provenance()})
    for promise in failed:
        result_console().print(f"not kept: {promise}", style="red", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _run_cases(
    bundle: Bundle, quick: bool, only: str | None, video: Path | None, console: Console
) -> tuple[dict[str, object], list[str]]:
    import contextlib
    import logging
    import tempfile

    from rws.edge.bundle.options import ModelOptions
    from rws.edge.faults.cases import CASES
    from rws.edge.pipeline import Pipeline
    from rws.errors import UsageError

    chosen = [case for case in CASES if only is None or only.lower() in case.name.lower()]
    if not chosen:
        raise UsageError(f"no fault's name contains {only!r}; there are: {', '.join(case.name for case in CASES)}")
    outcomes = []
    logger = logging.getLogger("rws")
    with contextlib.ExitStack() as stack:
        # The faults are on purpose, and the warnings of the sources would drown the outcomes.
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        pipeline = Pipeline.from_bundle(bundle, ModelOptions(threads=1))
        for case in (case for case in chosen if not (quick and case.slow)):
            with tempfile.TemporaryDirectory() as folder:
                outcomes.append(case.run(bundle, pipeline, Path(folder), video))
            _print_outcome(outcomes[-1], console)
    passed, skipped = sum(outcome.passed for outcome in outcomes), sum(bool(o.skipped) for o in outcomes)
    console.print(f"{passed} of {len(outcomes)} passed, {skipped} skipped")
    name = None if video is None else video.name
    cases = [{**outcome.to_dict(), "video": name} for outcome in outcomes]
    return {"cases": cases}, [f"{outcome.name}: {promise}" for outcome in outcomes for promise in outcome.failures]


def _run_soak(
    seconds: float, fps: float, bundle: Bundle, hostile: bool, console: Console
) -> tuple[dict[str, object], list[str]]:
    from rws.edge.faults.soak import soak

    result = soak(seconds, fps, bundle.path, console.print, hostile=hostile)
    for name, value in result.items():
        console.print(f"{name}: {value}")
    return {"soak": result}, [promise for promise, kept in result["promises"].items() if not kept]


def _print_outcome(outcome: Outcome, console: Console) -> None:
    mark = "[yellow]skipped[/]" if outcome.skipped else "[green]ok[/]" if outcome.passed else "[red]FAILED[/]"
    console.print(f"{mark}  [bold]{outcome.name}[/]  {outcome.seconds:.1f} s", markup=True)
    console.print(f"    promised: {outcome.promised}")
    console.print(f"    happened: {outcome.skipped or outcome.happened}")
    counts = f"out {outcome.frames_out} + dropped {outcome.dropped} + rejected {outcome.rejected_by_reason.total()}"
    console.print(f"    frames:   in {outcome.frames_in} = {counts}")
