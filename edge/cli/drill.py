"""`rws drill`: everything that goes wrong with a camera, on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from rws.edge.bundle.bundle import Bundle
    from rws.edge.faults.harness import Outcome


def drill(
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle folder; left out: the bundled default.", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what takes longer than a few seconds.")] = False,
    only: Annotated[
        str | None, typer.Option(help="Only the faults whose name holds this text.", show_default=False)
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(help="An H.264 file to play, and to damage; left out: one is made.", show_default=False),
    ] = None,
    soak: Annotated[
        float | None,
        typer.Option(
            min=10,
            help="Instead: so many seconds on a stream on loopback; needs the extra `serve`.",
            show_default=False,
        ),
    ] = None,
    fps: Annotated[float, typer.Option(min=1, max=240, help="Frames a second of the soak's camera.")] = 30.0,
    report: Annotated[
        Path | None, typer.Option("--json", help="Write what happened to this file.", show_default=False)
    ] = None,
) -> None:
    """Put the frame loop through everything that goes wrong with a camera; no camera is needed.

    For each fault: what is promised, what happened, and the frames' books: in = out + dropped + rejected. The exit code
    is 1 if a promise was not kept.

    \b
    Examples:
        rws drill                                # a minute; every fault
        rws drill --quick --json drill.json
        rws drill --only RTSP
        rws drill --only video --video clip.mp4  # play a file of yours, whole and damaged
        rws drill --soak 600 --json soak.json    # ten minutes: memory, age of results, every frame accounted for
    """
    from rich.console import Console

    from rws.edge.bundle.bundle import Bundle
    from rws.edge.common.files import check_target
    from rws.edge.common.provenance import provenance, write_json
    from rws.edge.sources.open import quiet_opencv

    quiet_opencv()
    if report is not None:
        check_target(report)
    console = Console(highlight=False, soft_wrap=True)
    loaded = Bundle.load(bundle)
    if soak is not None:
        from rws.edge.faults.soak import soak as run_soak

        result = run_soak(soak, fps, loaded.path, console.print)
        failed = [promise for promise, held in result["held"].items() if not held]
        for key, value in result.items():
            console.print(f"{key}: {value}", markup=False)
        content: dict[str, object] = {"soak": result}
    else:
        outcomes = _run_cases(loaded, quick, only, video, console)
        failed = [f"{outcome.name}: {promise}" for outcome in outcomes for promise in outcome.failures]
        name = None if video is None else video.name
        content = {"cases": [outcome.to_json() | {"video": name} for outcome in outcomes]}
    if report is not None:
        write_json(report, {**content, "bundle": loaded.manifest.name, "seed": 0, **provenance()})
    if failed:
        for promise in failed:
            console.print(f"not kept: {promise}", style="red", markup=False)
        raise typer.Exit(1)


@contextmanager
def _quiet() -> Iterator[None]:
    """The faults are on purpose: what the sources say of them would drown what came of them."""
    import logging

    logger = logging.getLogger("rws")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _run_cases(bundle: Bundle, quick: bool, only: str | None, video: Path | None, console: Console) -> list[Outcome]:
    import tempfile

    from rws.edge.bundle.options import ModelOptions
    from rws.edge.faults.cases import all_cases
    from rws.edge.runtime import Runtime
    from rws.errors import InputError

    chosen = [case for case in all_cases() if only is None or only.lower() in case.name.lower()]
    if not chosen:
        raise InputError(f"no fault's name holds {only!r}; there are: {', '.join(case.name for case in all_cases())}")
    outcomes = []
    with _quiet(), Runtime.from_bundle(bundle, ModelOptions(threads=1)) as runtime:
        for case in chosen:
            if quick and case.slow:
                continue
            with tempfile.TemporaryDirectory() as folder:
                outcome = case.run(bundle, Path(folder), runtime, video)
            outcomes.append(outcome)
            mark = "[yellow]skipped[/]" if outcome.skipped else "[green]ok[/]" if outcome.passed else "[red]FAILED[/]"
            console.print(f"{mark}  [bold]{outcome.name}[/]  {outcome.seconds:.1f} s")
            console.print(f"    promised: {outcome.promised}", markup=False)
            console.print(f"    happened: {outcome.skipped or '; '.join(outcome.happened)}", markup=False)
            rejected = sum(outcome.rejected.values())
            books = (
                f"in {outcome.frames_in} = out {outcome.frames_out} + dropped {outcome.dropped} + rejected {rejected}"
            )
            console.print(f"    frames:   {books}", markup=False)
    passed, skipped = sum(outcome.passed for outcome in outcomes), sum(bool(o.skipped) for o in outcomes)
    console.print(f"{passed} of {len(outcomes)} passed, {skipped} skipped")
    return outcomes
