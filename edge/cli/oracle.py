"""`rws oracle` and `rws health`. What needs time to import is imported when the command runs, not for its help text."""

from pathlib import Path
from typing import Annotated

import typer

from rws.edge.cli.parameters import BundleOption, JsonOption, KeyOption, ThreadsOption, optional, output
from rws.terminal import say, show


def oracle(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Images, folders or quoted globs.")],
    bundle: BundleOption = None,
    key: KeyOption = None,
    report: JsonOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Name the corruption of each image and estimate its severity, each image on its own.

    \b
    Examples:
        rws oracle photo.jpg
        rws oracle photos/ --json beliefs.json        # per image: file, corruption, probability, severity
        rws oracle photos/ --json - | jq .            # the same on stdout
        rws oracle a.png b.png "shots/*.jpg" --bundle my_bundle
    """
    from rws.edge.bundle.bundle import Bundle
    from rws.edge.bundle.keys import trusted_keys
    from rws.edge.cli.running.frames import SizeWarning
    from rws.edge.cli.running.results import describe_belief
    from rws.edge.common.provenance import write_json
    from rws.edge.sources.open import open_images, quiet_opencv
    from rws.errors import RwsError

    quiet_opencv()
    source = open_images(images, "use `rws run` for anything else")
    loaded = Bundle.load(bundle, trusted_keys(key))
    network = loaded.oracle(threads=threads)
    view = loaded.manifest.view
    rows: list[dict[str, object]] = []
    for frame in map(SizeWarning(loaded.manifest), source):
        try:
            belief = network.observe(view.take(frame.image))
        except RwsError as error:
            raise RwsError(f"{frame.name}: {error}") from error
        certain, severity = round(float(belief.probability.max()), 4), round(belief.type_severity, 3)
        ranked = belief.probability.argsort()[::-1][1:3].tolist()
        others = ", ".join(f"{belief.names[i]} {belief.probability[i]:.0%}" for i in ranked)
        line = f"{describe_belief(belief)}  ({others})"
        show(f"{frame.name}  {line}")
        rows.append({"file": frame.name, "corruption": belief.type, "probability": certain, "severity": severity})
    say(f"images {len(rows)}, rejected {source.rejected}")
    if report is not None:
        write_json(report, "oracle/1", {"images": rows})


def health(
    source: Annotated[list[str], typer.Argument(metavar="SOURCE", help="As of `rws run`.")],
    bundle: BundleOption = None,
    key: KeyOption = None,
    min_severity: Annotated[float, typer.Option(min=0, max=5, help="An image is bad from this severity on.")] = 3.0,
    lasting: Annotated[float, typer.Option(min=0, help="Seconds that a camera is bad before it is an alert.")] = 10.0,
    only_bad: Annotated[bool, typer.Option("--only-bad", help="Of images, print bad ones only.")] = False,
    fail_if: Annotated[
        list[str] | None,
        optional(
            metavar="PROBLEM",
            help="End with 1 if there is an alert or a bad image of this kind: a problem such as `out of focus`, a "
            "corruption, or `bad` for any; repeatable.",
        ),
    ] = None,
    limit: Annotated[int | None, optional(min=1, help="Stop after N frames.")] = None,
    seconds: Annotated[float | None, optional(min=0.1, help="Stop after this time.")] = None,
    retries: Annotated[int | None, optional(min=0, help="As of `rws run`.")] = None,
    plot: Annotated[
        Path | None,
        optional(callback=output, help="Write the severity of each type over time to this .png; extra `demo`."),
    ] = None,
    report: JsonOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Say how good a camera's frames are, without any model: what is wrong, how severely, since when; and alert.

    A line per image; of a video or camera a line when an alert begins and ends, and at the end what is wrong now.

    \b
    Examples:
        rws health rtsp://camera/stream                              # until Ctrl-C
        rws health 0 --seconds 30 --fail-if bad && echo fine         # for a script: 0 or 1
        rws health photos/ --only-bad --min-severity 2
        rws health night.mp4 --plot night.png --json night.json
    """
    from contextlib import ExitStack
    from importlib import import_module

    from rws.edge.bundle.bundle import Bundle
    from rws.edge.bundle.keys import trusted_keys
    from rws.edge.cli.running.frames import SizeWarning
    from rws.edge.cli.running.session import stop_on_signal
    from rws.edge.common.extras import require
    from rws.edge.common.provenance import write_json
    from rws.edge.monitoring.watch import ANY, Watch, problems_meant, write_plot
    from rws.edge.sources.open import open_images, open_source, quiet_opencv
    from rws.errors import SourceError

    quiet_opencv()
    loaded, lost = Bundle.load(bundle, trusted_keys(key)), None
    asked = problems_meant(fail_if or (), loaded.manifest.corruptions)
    if plot is not None:
        with require("demo"):
            import_module("matplotlib.figure")  # before long work
    network, view = loaded.oracle(threads=threads), loaded.manifest.view
    one_camera = "watch one camera or video at a time"
    with ExitStack() as stack:
        several = len(source) > 1
        opened = open_images(source, one_camera) if several else open_source(source[0], retries=retries)
        stack.enter_context(opened)
        stack.enter_context(stop_on_signal(opened.stop))
        watch, warn = Watch(opened, loaded.filter(), min_severity, lasting, only_bad), SizeWarning(loaded.manifest)
        try:
            for frame in opened.frames():
                if frame is None:
                    watch.idle()
                else:
                    watch.add(frame, lambda frame: network.observe(view.take(warn(frame).image)))
                if watch.frames == limit or watch.seconds >= (seconds or float("inf")):
                    break
        except SourceError as error:
            lost = error
    watch.summarise()
    if plot is not None:
        write_plot(plot, watch.timeline, loaded.manifest.corruptions, opened.sequential)
    if report is not None:
        write_json(report, "camera-health/1", watch.record())
    if lost is not None:
        raise lost
    if watch.problems and (ANY in asked or watch.problems & asked):
        raise typer.Exit(1)
