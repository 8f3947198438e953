"""`rws oracle`. What needs time to import is imported when the command runs, not for its help text."""

from typing import Annotated

import typer

from rws.edge.cli.parameters import BundleOption, JsonOption, KeyOption, ThreadsOption
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
    from rws.edge.cli.frames import SizeWarning
    from rws.edge.cli.results import describe_belief
    from rws.edge.common.provenance import write_json
    from rws.edge.preprocess import preprocess
    from rws.edge.sources.open import open_images, quiet_opencv
    from rws.errors import RwsError

    quiet_opencv()
    source = open_images(images, "use `rws run` for anything else")
    loaded = Bundle.load(bundle, trusted_keys(key))
    network = loaded.oracle(threads=threads)
    view = loaded.manifest.input.view
    rows: list[dict[str, object]] = []
    for frame in map(SizeWarning(loaded.manifest), source):
        try:
            belief = network.observe(preprocess(frame.image, view)[0])
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
