"""`rws demo`, `rws replay` and `rws bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rws.benchmarks.cli.oracle import COMMANDS
from rws.benchmarks.cli.zoo import zoo, zoo_curve
from rws.edge.common.extras import require
from rws.errors import InputError

if TYPE_CHECKING:
    from rws.edge.bundle.bundle import Bundle

bench = typer.Typer(no_args_is_help=True, help="Measure parts of the project.", add_completion=False)
for _command in (*COMMANDS, zoo, zoo_curve):
    bench.command()(_command)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for timeline.png, frames.mp4, results.jsonl, summary.json.")] = Path(
        "demo"
    ),
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; left out: the bundled default.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of model and oracle.")] = 1,
) -> None:
    """Play a stream of corrupted test images through the frame loop and show what the oracle and the patch do.

    \b
    Examples:
        rws demo
        rws demo --out my_demo --threads 2
    """
    with require("demo"):
        from rich.console import Console

        import rws.benchmarks.streams.timeline  # noqa: F401 - drawing needs the extra: say so before the stream is played
        from rws.benchmarks.demo.demo import play, print_summary
    from rws.edge.bundle.bundle import Bundle

    console = Console(highlight=False, soft_wrap=True)
    summary = play(Bundle.load(bundle), out, threads, console)
    print_summary(summary, console)
    console.print(f"{summary['seconds']} s; look at {out}/timeline.png and {out}/frames.mp4")


def replay(
    data: Annotated[
        str,
        typer.Option(
            help="Clean test folder or data set (corrupted here), ImageNet-C folders, or CIFAR-10-C .npy files."
        ),
    ],
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; left out: the bundled default.")] = None,
    severity: Annotated[str, typer.Option(help="1 to 5, a list such as 1,3,5, or all.")] = "5",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many images of each set.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the corruptions, of --limit and of the streams.")] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of model and oracle; streams: left out, 1.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="Streams of clean images, corrupted here: iid, mixed, continual, gradual, correlated, or all; "
            "several times."
        ),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Streams: frames per type; left out: 500.")] = None,
    rivals: Annotated[Path | None, typer.Option(help="Streams: also the rivals, whose models are here.")] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Streams: the rivals' batch; several times; left out: 1 and 64.")
    ] = None,
    table: Annotated[Path | None, typer.Option("--csv", help="Streams: write the accuracies by type here.")] = None,
    resume: Annotated[
        bool, typer.Option(help="Streams: go on from what an earlier run left in the folder JSON.parts.")
    ] = True,
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Rivals: measure time and memory anew, whatever JSON.parts holds.")
    ] = False,
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
    severities = _severities(severity)
    for_streams = {"--frames": frames, "--rivals": rivals, "--batch": batch, "--csv": table}
    misplaced = [option for option, value in for_streams.items() if value is not None]
    if misplaced and not protocol:
        raise InputError(f"{misplaced[0]} is for streams; give --protocol as well")
    for option, given in (("--batch", batch), ("--remeasure", remeasure)):
        if given and rivals is None:
            raise InputError(f"{option} is for the rivals; give --rivals as well")
    if protocol and limit is not None:
        raise InputError("--limit is for sets of images; with --protocol give --frames")
    if protocol and severity != "all" and len(severities) != 1:
        raise InputError(f"--severity {severity!r}: with --protocol expected one of 1 to 5, or all")
    with require("bench"):
        from rws.benchmarks.replay.replay import WAYS
        from rws.benchmarks.replay.replay import replay as run
        from rws.edge.common.provenance import provenance, write_json
    from rws.edge.bundle.bundle import Bundle
    from rws.edge.common.files import check_target

    for target in (report, table):
        if target is not None:
            check_target(target)
    if protocol:
        _replay_streams(
            Bundle.load(bundle),
            data,
            protocol,
            frames,
            severity,
            seed,
            threads or 1,
            rivals,
            batch,
            report,
            table,
            resume,
            remeasure,
        )
        return
    result = run(
        Bundle.load(bundle), data, severities=severities, limit=limit, seed=seed, threads=threads, progress=typer.echo
    )
    typer.echo("          " + "".join(f"{way:>10s}" for way in WAYS))
    for row in ("ta", "ra"):
        if result[row]:
            typer.echo(f"{row.upper():10s}" + "".join(f"{result[row][way]:10.2f}" for way in WAYS))
    scores = result["oracle"]
    recall = "" if scores["clean_recall"] is None else f"clean recall {scores['clean_recall']:.2f} %, "
    typer.echo(
        f"regret {result['regret']:.2f}; oracle: type {scores['type_accuracy']:.2f} %, "
        f"{recall}severity error {scores['severity_mae']:.2f}"
    )
    if report is not None:
        write_json(report, provenance(data=Path(data).name) | result)


def _replay_streams(
    bundle: Bundle,
    data: str,
    protocols: list[str],
    frames: int | None,
    severity: str,
    seed: int,
    threads: int,
    rivals: Path | None,
    batches: list[int] | None,
    report: Path | None,
    table: Path | None,
    resume: bool,
    remeasure: bool,
) -> None:
    from rws.benchmarks.streams.protocols import PROTOCOLS
    from rws.benchmarks.streams.run import format_streams, replay_streams, write_csv
    from rws.edge.common.provenance import provenance, write_json

    result = replay_streams(
        bundle,
        data,
        protocols=PROTOCOLS if "all" in protocols else protocols,
        frames=500 if frames is None else frames,
        severity="all" if severity == "all" else float(severity),
        seed=seed,
        batches=batches or (1, 64),
        rivals=rivals,
        parts=None if report is None else report.with_name(report.name + ".parts"),
        resume=resume,
        remeasure=remeasure,
        threads=threads,
        progress=typer.echo,
    )
    typer.echo(format_streams(result))
    if report is not None:
        write_json(report, provenance(data=Path(data).name, threads=threads) | result)
    if table is not None:
        write_csv(table, result)


def _severities(text: str) -> list[int]:
    if text == "all":
        return [1, 2, 3, 4, 5]
    parts = text.split(",")
    if not all(part.strip() in {"1", "2", "3", "4", "5"} for part in parts):
        raise InputError(f"--severity {text!r}: expected 1 to 5, a list such as 1,3,5, or all")
    return sorted({int(part) for part in parts})


@bench.command()
def ways(
    work: Annotated[Path, typer.Option(help="Work folder of a build whose jobs tuned and residual are done.")],
    data: Annotated[str, typer.Option(help="The build's images; the test split is reported on.")],
    recipe: Annotated[str, typer.Option(help="The build's recipe.")] = "cifar10_vgg16",
    size: Annotated[int | None, typer.Option(help="The build's --size.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Test images.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    report: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Compare signatures tuned without labels with the paper's residual: alone, in pairs, quantised, cost.

    \b
    Examples:
        rws build --data ~/data/cifar10 --job tuned --job residual
        rws bench ways --work runs/build --data ~/data/cifar10 --json ways.json
    """
    with require("bench"):
        import torch

        from rws.benchmarks.replay.signature_methods import compare_ways
        from rws.edge.common.provenance import provenance, write_json
        from rws.training.build.build import Build
        from rws.training.build.recipe import load_recipe
        from rws.training.data.images import load_images
    test = load_images(data, "test", size=size, cache=work / "images")
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
    build = Build(load_recipe(recipe), data, work, size=size)
    result = compare_ways(build, test.take(order[:limit]), seed=seed, progress=typer.echo)
    if report is not None:
        write_json(report, provenance(data=Path(data).name, seed=seed, threads=torch.get_num_threads()) | result)


@bench.command()
def signatures(
    data: Annotated[str, typer.Option(help="Clean test folder or data set (corrupted here); see `rws replay`.")],
    work: Annotated[
        Path | None,
        typer.Option(help="Work folder of the build that made the bundle; left out: only the bundle's own bits."),
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; left out: the bundled default.")] = None,
    severity: Annotated[int, typer.Option(min=1, max=5, help="Severity of the corruptions.")] = 5,
    limit: Annotated[int, typer.Option(min=1, help="At most this many images of each set.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the corruptions and of --limit.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the model.")] = None,
    report: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Accuracy of the signatures at 32, 16, 8 and 4 bits, per tensor and per channel: clean after resets, and patched.

    \b
    Examples:
        rws bench signatures --data ~/data/cifar10 --work runs/build --json signatures.json
        rws bench signatures --bundle my_bundle --data my_photos/test --limit 500      # its own bits alone
    """
    with require("bench"):
        from rich.console import Console
        from rich.table import Table

        from rws.benchmarks.storage.precision import compare_codes
        from rws.edge.common.provenance import provenance, write_json
    from rws.edge.bundle.bundle import Bundle
    from rws.edge.common.files import check_target

    if report is not None:
        check_target(report)
    result = compare_codes(
        Bundle.load(bundle),
        data,
        work,
        severity=severity,
        limit=limit,
        seed=seed,
        threads=threads,
        progress=typer.echo,
    )
    table = Table("bits", "one scale per", "RA", "TA after resets", "bytes")
    table.add_row("never patched", "", f"{result['ra_never_patched']:.2f}", f"{result['ta']:.2f}", "")
    for row in result["rows"]:
        table.add_row(
            str(row["bits"]), row["per"], f"{row['ra']:.2f}", f"{row['ta_after_reset']:.2f}", f"{row['bytes']:,}"
        )
    Console(highlight=False).print(table)
    if report is not None:
        write_json(report, provenance(data=Path(data).name, threads=threads) | result)


@bench.command()
def storage(
    model: Annotated[
        list[str] | None,
        typer.Option(help="NAME:PIXELS such as vgg16:32, or an .onnx file; several times; left out: a bundle."),
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; left out: the bundled default.")] = None,
    layers: Annotated[int, typer.Option(min=1, help="Shallowest layers that are patched; a bundle has its own.")] = 5,
    report: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Bytes on disk and in memory: the clean model, 20 models, and one model with signatures of 32 to 4 bits.

    \b
    Examples:
        rws bench storage                                      # the bundled default
        rws bench storage --model vgg16:32 --model resnet50:224 --json storage.json
        rws bench storage --model classifier.onnx --layers 3
    """
    with require("bench"):
        from rich.console import Console

        from rws.benchmarks.common.models import load_models
        from rws.benchmarks.storage.sizes import measure_storage, print_storage
        from rws.edge.common.provenance import provenance, write_json
    from rws.edge.common.files import check_target

    if report is not None:
        check_target(report)
    result = measure_storage(load_models(model or [], bundle, layers=layers), progress=typer.echo)
    print_storage(result, Console(highlight=False))
    if report is not None:
        write_json(report, provenance(seed=0, layers=layers) | result)


@bench.command()
def latency(
    model: Annotated[
        list[str] | None,
        typer.Option(help="NAME:PIXELS such as vgg16:224, or an .onnx file; several times; left out: a bundle."),
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; left out: the bundled default.")] = None,
    layers: Annotated[int, typer.Option(min=1, help="Shallowest layers that are patched; a bundle has its own.")] = 5,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="Threads inside an operator; several times; left out: 1.")
    ] = None,
    way: Annotated[
        list[str] | None, typer.Option(help="Only this way, beside the untouched model; several times.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="How often each case comes round in a repeat.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="How often all models are loaded anew.")] = 8,
    duration: Annotated[float, typer.Option(min=0, help="Then also seconds of sustained load.")] = 0,
    source: Annotated[
        str | None, typer.Option(help="What the whole frame reads; left out: a video of 640 x 480 pixels, made here.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, inputs and order.")] = 0,
    report: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    table: Annotated[
        Path | None, typer.Option("--csv", help="Write the rows into this folder, named by device and versions.")
    ] = None,
) -> None:
    """Time of a frame with live weights, beside the untouched model and what users do instead; interleaved.

    \b
    Examples:
        rws bench latency                                               # the bundled default
        rws bench latency --model vgg16:32 --model resnet50:224 --threads 1 --threads 2 --json latency.json --csv .
        rws bench latency --model classifier.onnx --way untouched_again --way live --rounds 30
        rws bench latency --model vgg16:224 --way live --duration 600   # does it throttle?
    """
    with require("bench"):
        from rich.console import Console

        from rws.benchmarks.common.models import load_models
        from rws.benchmarks.latency.run import LatencyOptions, measure_latency, print_latency, write_results
        from rws.edge.common.provenance import provenance
    from rws.edge.common.files import check_target

    options = LatencyOptions(
        ways=tuple(way or ()),
        threads=tuple(threads or (1,)),
        device=device,
        rounds=rounds,
        repeats=repeats,
        duration=duration,
        source=source,
        seed=seed,
    )
    if report is not None:
        check_target(report)
    if table is not None:
        table.mkdir(parents=True, exist_ok=True)
    models = load_models(model or [], bundle, layers=layers, seed=seed)
    made = provenance(seed=seed, layers=layers, device=device, rounds=rounds, repeats=repeats)
    result = measure_latency(
        models, options, progress=typer.echo, save=lambda found: write_results(made | found, report, table)
    )
    print_latency(made | result, Console(highlight=False))
    write_results(made | result, report, table)


@bench.command("oracle")
def oracle_cost(
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder; left out: the bundled default.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Beside the bundle's own, vgg16, resnet50, …; once for each.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each case comes round in a repeat.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help="How often everything is loaded anew.")] = 6,
    report: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Time of the oracle, the temporal filter and the policy beside the model's own, one thread.

    \b
    Example:
        rws bench oracle --model vgg16 --json oracle_cost.json
    """
    with require("bench"):
        from rws.benchmarks.common.models import load_model
        from rws.benchmarks.oracle.cost import measure_oracle
        from rws.edge.common.provenance import provenance, write_json
    from rws.edge.bundle.bundle import Bundle
    from rws.edge.common.files import check_target

    if report is not None:
        check_target(report)
    chosen = Bundle.load(bundle)
    others = [load_model(name, size=chosen.manifest.input.height) for name in model or ()]
    result = measure_oracle(chosen, others, rounds=rounds, repeats=repeats, progress=typer.echo)
    if report is not None:
        write_json(report, provenance(seed=0, threads=1) | result)


@bench.command()
def gpu(
    out: Annotated[Path, typer.Option(help="Folder for latency.json, its CSV, and storage.json.")],
    rounds: Annotated[int, typer.Option(min=1, help="How often each case comes round in a repeat.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="How often all models are loaded anew.")] = 8,
    duration: Annotated[float, typer.Option(min=0, help="Seconds of sustained load for each model.")] = 30,
) -> None:
    """Latency and storage of VGG-16 and ResNet-50 at 32 and 224 pixels, on this machine's GPU.

    \b
    Example:
        rws bench gpu --out results/
    """
    with require("bench"):
        from rich.console import Console

        from rws.benchmarks.common.models import load_models
        from rws.benchmarks.latency.run import LatencyOptions, measure_latency, print_latency, write_results
        from rws.benchmarks.storage.sizes import measure_storage, print_storage
        from rws.edge.common.provenance import provenance, write_json
    options = LatencyOptions(device="cuda", rounds=rounds, repeats=repeats, duration=duration)
    out.mkdir(parents=True, exist_ok=True)
    models = load_models(["vgg16:32", "vgg16:224", "resnet50:32", "resnet50:224"])
    console = Console(highlight=False)
    made = provenance(seed=0, layers=5, device="cuda", rounds=rounds, repeats=repeats)
    result = measure_latency(
        models, options, progress=typer.echo, save=lambda found: write_results(made | found, out / "latency.json", out)
    )
    print_latency(made | result, console)
    write_results(made | result, out / "latency.json", out)
    result = provenance(seed=0, layers=5) | measure_storage(models, progress=typer.echo)
    print_storage(result, console)
    write_json(out / "storage.json", result)
