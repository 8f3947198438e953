"""`rws bench`: everything that is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rws.benchmarks.cli.damage import damage
from rws.benchmarks.cli.live import live
from rws.benchmarks.cli.options import Layers, Models, Repeats, Rounds, open_bundle, save
from rws.benchmarks.cli.oracle import COMMANDS
from rws.benchmarks.cli.streams import streams
from rws.benchmarks.cli.zoo import models, zoo, zoo_curve
from rws.edge.cli.parameters import BundleOption, Cifar10Option, JsonOption
from rws.edge.common.extras import require
from rws.terminal import result_console, say, show

if TYPE_CHECKING:
    from rws.benchmarks.common.models import BenchmarkModel
    from rws.benchmarks.common.tables import Record
    from rws.benchmarks.latency.options import LatencyOptions

bench = typer.Typer(no_args_is_help=True, help="Measure parts of the project.", add_completion=False)
_COMMANDS: dict[str, Callable[..., None]] = {
    **COMMANDS,
    "damage": damage,
    "live": live,
    "models": models,
    "streams": streams,
    "zoo": zoo,
    "zoo-curve": zoo_curve,
}
for _name, _measure in _COMMANDS.items():
    bench.command(_name)(_measure)


@bench.command()
def signatures(
    data: Annotated[str, typer.Option(help="Clean test folder or data set (corrupted here); see `rws replay`.")],
    work: Annotated[
        Path | None,
        typer.Option(
            help="The --work folder of the training that made the bundle. Default: only the bundle's own bits."
        ),
    ] = None,
    bundle: Cifar10Option = None,
    severity: Annotated[int, typer.Option(min=1, max=5, help="Severity of the corruptions.")] = 5,
    limit: Annotated[int, typer.Option(min=1, help="At most this many images of each set.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the corruptions and of --limit.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the model.")] = None,
    report: JsonOption = None,
) -> None:
    """Measure accuracy with signatures of 32, 16, 8 and 4 bits, per tensor and per channel.

    \b
    Examples:
        rws bench signatures --data ~/data/cifar10 --work runs/train --json signatures.json
        rws bench signatures --bundle my_bundle --data my_photos/test --limit 500      # only its own bits
    """
    with require("bench"):
        from rws.benchmarks.common.tables import terminal
        from rws.benchmarks.storage.precision import COLUMNS, compare_encodings
        from rws.training.evaluation.evaluator import EvaluationOptions
    options = EvaluationOptions(limit=limit, seed=seed, threads=threads, progress=say)
    result = compare_encodings(open_bundle(bundle), data, work, severity, options)
    show(terminal(COLUMNS, result["rows"]))
    show(f"no patch: robust accuracy {result['ra_no_patch']:.2f}, clean accuracy {result['ta']:.2f}")
    save(report, "signatures/1", result, data, threads=threads)


@bench.command()
def storage(model: Models = None, bundle: Cifar10Option = None, layers: Layers = 5, report: JsonOption = None) -> None:
    """Measure bytes on disk and in memory: the clean model, 20 models, and one model with signatures of 32 to 4 bits.

    \b
    Examples:
        rws bench storage                                      # the bundle cifar10
        rws bench storage --model vgg16:32 --model resnet50:224 --json storage.json
        rws bench storage --model classifier.onnx --layers 3
    """
    with require("bench"):
        from rws.benchmarks.common.models import load_models
    _storage(load_models(model or [], bundle, layers=layers), report, layers)


@bench.command()
def latency(
    model: Models = None,
    bundle: Cifar10Option = None,
    layers: Layers = 5,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="Threads inside an operator; repeatable. Default: 1.")
    ] = None,
    strategy: Annotated[
        list[str] | None, typer.Option(help="Only this strategy, next to the untouched model; repeatable.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Rounds = 5,
    repeats: Repeats = 8,
    duration: Annotated[float, typer.Option(min=0, help="Then also N seconds of sustained load.")] = 0,
    source: Annotated[
        str | None, typer.Option(help="What the whole frame reads. Default: a video of 640 x 480 pixels, made here.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, inputs and order.")] = 0,
    report: JsonOption = None,
    table: Annotated[
        Path | None,
        typer.Option("--csv", help="Write the rows to a file in this folder, named after device and versions."),
    ] = None,
) -> None:
    """Measure a frame's time with live weights, next to the untouched model and what users do instead; interleaved.

    \b
    Examples:
        rws bench latency                                               # the bundle cifar10
        rws bench latency --model vgg16:32 --model resnet50:224 --threads 1 --threads 2 --json latency.json --csv .
        rws bench latency --model classifier.onnx --strategy untouched_again --strategy live --rounds 30
        rws bench latency --model vgg16:224 --strategy live --duration 600   # does it throttle?
    """
    with require("bench"):
        from rws.benchmarks.common.models import load_models
        from rws.benchmarks.latency.options import LatencyOptions
    cases = (tuple(strategy or ()), tuple(threads or (1,)))
    options = LatencyOptions(*cases, device, rounds, repeats, duration, source, seed)
    _latency(load_models(model or [], bundle, layers=layers, seed=seed), options, layers, report, table)


@bench.command("oracle")
def oracle_cost(
    bundle: Cifar10Option = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Next to the bundle's own, vgg16, resnet50, …; repeatable.")
    ] = None,
    rounds: Rounds = 20,
    repeats: Repeats = 6,
    report: JsonOption = None,
) -> None:
    """Measure the time of the oracle, the temporal filter and the policy, next to the model's; one thread.

    \b
    Example:
        rws bench oracle --model vgg16 --json oracle_cost.json
    """
    with require("bench"):
        from rws.benchmarks.common.models import load_model
        from rws.benchmarks.oracle.cost import measure_oracle
    chosen = open_bundle(bundle)
    others = [load_model(name, size=chosen.manifest.input.height) for name in model or ()]
    result = measure_oracle(chosen, others, rounds=rounds, repeats=repeats, progress=say)
    save(report, "oracle-cost/1", result, seed=0, threads=1)


@bench.command()
def gpu(
    out: Annotated[Path, typer.Option(help="Folder for latency.json, its CSV, and storage.json.")],
    rounds: Rounds = 5,
    repeats: Repeats = 8,
    duration: Annotated[float, typer.Option(min=0, help="Seconds of sustained load for each model.")] = 30,
) -> None:
    """Measure latency and storage of VGG-16 and ResNet-50 at 32 and 224 pixels, on this machine's GPU.

    \b
    Example:
        rws bench gpu --out results/
    """
    with require("bench"):
        from rws.benchmarks.common.models import load_models
        from rws.benchmarks.latency.options import LatencyOptions
    options = LatencyOptions(device="cuda", rounds=rounds, repeats=repeats, duration=duration)
    models = load_models(["vgg16:32", "vgg16:224", "resnet50:32", "resnet50:224"])
    _latency(models, options, 5, out / "latency.json", out)
    _storage(models, out / "storage.json", 5)


def _latency(
    models: Sequence[BenchmarkModel], options: LatencyOptions, layers: int, report: Path | None, table: Path | None
) -> None:
    from rws.benchmarks.latency.report import csv_name, print_latency, write_rows
    from rws.benchmarks.latency.run import measure_latency

    if table is not None:
        table.mkdir(parents=True, exist_ok=True)
    often: dict[str, Any] = {"rounds": options.rounds, "repeats": options.repeats}

    def keep(found: Record) -> None:
        save(report, "latency/1", found, seed=options.seed, layers=layers, device=options.device, **often)
        if table is not None:
            write_rows(table / csv_name(found), found)

    print_latency(measure_latency(models, options, say, keep), result_console())


def _storage(models: Sequence[BenchmarkModel], report: Path | None, layers: int) -> None:
    from rws.benchmarks.storage.sizes import measure_storage, print_storage

    result = measure_storage(models, progress=say)
    print_storage(result, result_console())
    save(report, "storage/1", result, seed=0, layers=layers)


@bench.command()
def several(
    bundle: BundleOption = None,
    fps: Annotated[float, typer.Option(min=0.1, help="Images of each camera per second.")] = 5.0,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of each run.")] = 20.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the three ways, interleaved.")] = 3,
    broker: Annotated[
        bool, typer.Option("--broker", help="Only a run of --seconds with an MQTT broker that goes and comes back.")
    ] = False,
    report: JsonOption = None,
) -> None:
    """Measure eight cameras in one run against eight runs and one, and seven of them while one misbehaves.

    \b
    Examples:
        rws bench several --seconds 5 --rounds 1
        rws bench several --json several_cameras.json
        rws bench several --broker --seconds 1200 --json broker.json
    """
    with require("bench"):
        from rws.benchmarks.cameras import measure
    name = str(bundle or "detector")
    load = measure.Load(name, fps, seconds)
    if broker:
        with require("mqtt"):
            from rws.benchmarks.cameras.broker import measure_broker
        found = measure_broker(load, say)
        show(f"accepted {found['accepted']}, written {found['written']}, dropped {found['dropped']}")
        save(report, "broker/1", {**measure.describe(load), **found}, None, seed=0)
        return
    result: Record = {**measure.describe(load), "rounds": rounds}
    result["grouping"] = measure.measure_grouping(name, rounds)
    say(f"grouping: {result['grouping']}")
    result["batching"] = measure.measure_batching(tuple(dict.fromkeys((name, "cifar10"))), (1, 2))
    say(f"batching: {result['batching']}")
    result["ways"] = measure.measure_costs(load, rounds, say)
    result["faults"] = measure.measure_faults(load, say)
    for row in result["ways"]:
        show(f"{row['way']}: {row['cpu']} processors, {row['memory_mb']} MB, p95 of the age {row['age_p95_ms']} ms")
    save(report, "several-cameras/1", result, None, seed=0)


@bench.command()
def jobs(
    data: Annotated[str | None, typer.Option(help="Test images to replay in every place. Default: none.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Images of each of the 96 sets.")] = 100,
    count: Annotated[int, typer.Option(min=2, help="Jobs of a second of CPU, compared with a bare loop.")] = 60,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of these, interleaved.")] = 3,
    most: Annotated[int, typer.Option(min=10, help="Small jobs, at most.")] = 10_000,
    report: JsonOption = None,
) -> None:
    """Measure what the job graph costs, how it grows, and whether each place makes the same result.

    \b
    Examples:
        rws bench jobs --count 20 --rounds 1 --most 1000
        rws bench jobs --data ~/data/cifar10 --json jobs.json
    """
    with require("cluster"):
        import ray  # noqa: F401  # before minutes of work, not after

        from rws.benchmarks.jobs.measure import growth, overhead, places
        from rws.benchmarks.jobs.plan import measured_rates, plan
    rates = [measured_rates(name) for name in ("resnet50", "efficientnet_b0")]
    result: Record = {"rates": rates, "plan": [row for each in rates for row in plan(each)]}
    result["places"] = [] if data is None else places(data, limit, say)
    result["overhead"] = overhead(count, 1.0, rounds)
    say(f"overhead: {result['overhead']['ratio']:.3f} of the bare loop")
    result["growth"] = growth([most // 10, most // 3, most])
    for row in result["growth"]:
        show(f"{row['jobs']} jobs: {row['s']} s, again {row['again_s']} s, {row['driver_bytes'] / 1e6:.0f} MB")
    save(report, "jobs/1", {"limit": limit, **result}, data, seed=0)
