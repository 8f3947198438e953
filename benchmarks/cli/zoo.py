"""`rws bench zoo`, `rws bench zoo-curve` and `rws bench models`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from rws.benchmarks.cli.options import save
from rws.edge.cli.parameters import JsonOption
from rws.edge.common.extras import require
from rws.terminal import say, show

Names = Annotated[
    Path | None,
    typer.Option(
        help="File with the class folders' names in the order of the logits (default: the folders' order); of a "
        "detector its classes; of a text reader phrases to write."
    ),
]
RecipeFile = Annotated[Path | None, typer.Option(help="Settings of the adoption; see `rws adopt --recipe`.")]
Limit = Annotated[int | None, typer.Option(help="At most this many images in all.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]
Seed = Annotated[int, typer.Option(help="Seed of the adoption and of the test's corruptions.")]


def zoo(
    images: Annotated[
        list[str],
        typer.Option(
            help="Image folder <class>/<image>: one half is adopted with, the other one tests. With --file: clean "
            "images to adopt with; repeatable."
        ),
    ],
    model: Annotated[
        str, typer.Option(help="efficientnet_lite0, efficientnet_lite1, cifar10, fastestdet or ppocr_rec.")
    ] = "efficientnet_lite0",
    file: Annotated[Path | None, typer.Option(help="The .onnx file of a detector or text reader.")] = None,
    test: Annotated[
        Path | None,
        typer.Option(
            help="Test images of a detector, in images/, with YOLO label files in labels/; for a text reader "
            "photographs to write on."
        ),
    ] = None,
    work: Annotated[Path, typer.Option(help="Folder for checkpoints; a stopped adoption resumes from it.")] = Path(
        "runs/zoo"
    ),
    out: Annotated[Path | None, typer.Option(help="Bundle to write. Default: inside --work.")] = None,
    names: Names = None,
    titles: Annotated[
        Path | None, typer.Option(help="Names of the classes in the bundle, in the same order. Default: --names.")
    ] = None,
    int8: Annotated[
        str, typer.Option(help="Quantise a classifier before it is adopted: s8s8 or u8s8, activations and weights.")
    ] = "",
    recipe: RecipeFile = None,
    own_oracle: Annotated[list[str] | None, typer.Option(help="As of `rws adopt`; repeatable.")] = None,
    onto: Annotated[Path | None, typer.Option(help="As of `rws adopt`.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Adopt as `rws adopt --quick` does.")] = False,
    limit: Limit = None,
    threads: Threads = 2,
    seed: Seed = 0,
    report: JsonOption = None,
) -> None:
    """Adopt a model of the zoo without labels, and measure it on other images: accuracy, mAP50, or lines read right.

    \b
    Examples:
        rws bench zoo --images imagenet-sample/ --names imagenet1k_classes.json --json zoo_lite0.json
        rws bench zoo --model fastestdet --file FastestDet.onnx --images clear/ --test coco/images/val2017 \\
            --names coco.names --json zoo_detector.json
        rws bench zoo --model ppocr_rec --file ch_PP-OCRv4_rec_infer.onnx --images clear/ --test others/ \\
            --names phrases.txt --json zoo_ppocr_rec.json
    """
    with require("bench"):
        from rws.benchmarks.zoo.run import ZooOptions, run_entry
    options = ZooOptions(
        names, titles, recipe, quick, limit, threads, seed, say, file, test, int8, own_oracle or (), onto
    )
    result = run_entry(model, images, work, out, options)
    save(report, "zoo/1", result)
    shown = ("clean", "summary", "int8", "build_minutes", "sizes", "torch")
    show(json.dumps({key: value for key, value in result.items() if key in shown}))


def zoo_curve(
    images: Annotated[str, typer.Option(help="As in `rws bench zoo`.")],
    model: Annotated[str, typer.Option(help="As in `rws bench zoo`.")] = "efficientnet_lite0",
    layers: Annotated[list[int] | None, typer.Option(help="First n convolutions; repeatable, one per point.")] = None,
    corruption: Annotated[list[str] | None, typer.Option(help="Corruption to average over; repeatable.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for the signatures.")] = Path("runs/zoo_curve"),
    names: Names = None,
    recipe: RecipeFile = None,
    limit: Limit = None,
    threads: Threads = 2,
    seed: Seed = 0,
    report: JsonOption = None,
) -> None:
    """Measure gain against bytes: what more and more convolutions win back with the perfect oracle, at alpha 1.

    \b
    Example:
        rws bench zoo-curve --images imagenet-sample/ --layers 6 --layers 18 --corruption contrast --json curve.json
    """
    with require("bench"):
        from rws.benchmarks.zoo.run import ZooOptions, run_curve
    options = ZooOptions(names=names, recipe=recipe, limit=limit, threads=threads, seed=seed, progress=say)
    chosen = corruption or ("gaussian_noise", "contrast")
    result = run_curve(model, images, work, layers or (3, 9, 18, 27), chosen, options)
    save(report, "zoo-curve/1", result)


def models(
    model: Annotated[
        list[str] | None,
        typer.Argument(
            help="torchvision/NAME, torchvision/NAME@dynamo, timm/NAME, zoo/NAME or .onnx files. Default: 26 of them."
        ),
    ] = None,
    images: Annotated[str, typer.Option(help="Photographs that tell the preprocessing of trained models.")] = "",
    work: Annotated[Path, typer.Option(help="Folder for exported models.")] = Path("runs/models"),
    workers: Annotated[int, typer.Option(min=1, help="Models at a time, each with one thread.")] = 1,
    seed: Seed = 0,
    report: JsonOption = None,
) -> None:
    """Try whether models can be adopted: what is understood, patches that are exact, and torch's answers and gradients.

    \b
    Example:
        rws bench models torchvision/resnet18 detector.onnx --images photographs/ --json models.json
    """
    with require("bench"):
        from rws.benchmarks.common.tables import Record
        from rws.benchmarks.zoo.models import DEFAULT, ModelsOptions, measure_models

    def keep(rows: list[Record]) -> None:
        save(report, "models/1", {"rows": rows}, images or None, seed=seed, threads=1)

    work.mkdir(parents=True, exist_ok=True)
    measure_models(model or DEFAULT, ModelsOptions(images, work, seed, workers), say, keep)
