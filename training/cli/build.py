"""`rws build`: from clean images to a bundle; for a classifier of one's own, without labels."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from rws.edge.common.extras import require
from rws.errors import UsageError
from rws.terminal import say

Target = Enum("Target", {"auto": "auto", "output": "output", "shallow": "shallow"})
_OWN_MODEL = ["images", "more_images", "labels", "names", "layers", "target", "quick", "mean", "std", "scale", "bgr"]
_OWN_MODEL += ["every", "limit"]
_FROM_LABELS = ["data", "device", "job", "onto"]


def build(
    ctx: typer.Context,
    out: Annotated[Path, Option(help="Bundle folder to write.")] = Path("bundle"),
    recipe: Annotated[
        str | None,
        Option(help="A .toml file, or the name of a recipe that ships; left out: cifar10_vgg16, or --model's own."),
    ] = None,
    data: Annotated[
        str | None,
        Option(help="Image folder <class>/<image> (or with train/ and test/ above it), or cifar10, cifar100."),
    ] = None,
    size: Annotated[int | None, Option(min=8, help="Resize and crop images to this side, in pixels.")] = None,
    work: Annotated[
        Path | None, Option(help="Folder for checkpoints; a stopped build goes on from it. Left out: in runs/.")
    ] = None,
    device: Annotated[str, Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    threads: Annotated[int | None, Option(min=1, help="CPU threads.")] = None,
    job: Annotated[
        list[str] | None,
        Option(
            help="Only these jobs, no bundle (they may run side by side): init, std, oracle, tuned, residual, gain."
        ),
    ] = None,
    onto: Annotated[
        Path | None,
        Option(help="A bundle whose model and signatures are kept; the oracle and the gain table are made anew."),
    ] = None,
    model: Annotated[
        str | None, Option(help="Your own classifier: an .onnx file, or package.module:factory for a torch module.")
    ] = None,
    images: Annotated[
        str | None, Option(help="--model: clean pictures without labels: a folder, glob, list, video, stream.")
    ] = None,
    more_images: Annotated[str | None, Option(help="--model: other clean pictures, for the oracle alone.")] = None,
    labels: Annotated[
        bool, Option("--labels", help="--model: --images is <class>/<image>; measure accuracy with that.")
    ] = False,
    names: Annotated[Path | None, Option(help="--model: class names in the order of the logits, one a line.")] = None,
    layers: Annotated[
        int | None,
        Option(
            min=0,
            help="--model: change the first n convolutions; 0: as many as 0.6 % of its bytes hold. Left out: the "
            "recipe's, else 0.",
        ),
    ] = None,
    target: Annotated[
        Target | None,
        Option(help="--model: match its output, or its shallow part alone. Left out: the recipe's, else auto."),
    ] = None,
    quick: Annotated[bool, Option("--quick", help="--model: a first look, in minutes.")] = False,
    mean: Annotated[str, Option(help="--model: it takes (x * scale - mean) / std; one number or R,G,B.")] = "0",
    std: Annotated[str, Option(help="--model: see --mean.")] = "1",
    scale: Annotated[float, Option(help="--model: see --mean; 255 where it takes 0…255.")] = 1.0,
    bgr: Annotated[bool, Option("--bgr", help="--model: it takes blue, green, red.")] = False,
    every: Annotated[int, Option(min=1, help="--model: every n-th frame of a video.")] = 10,
    limit: Annotated[int, Option(min=1, help="--model: at most so many pictures.")] = 1000,
) -> None:
    """Build a bundle: model, 19 signatures, oracle, policy.

    From clean labelled images the model is trained, too. With --model it is yours, and clean pictures are enough.

    \b
    Examples:
        rws build --model classifier.onnx --images clean_frames/ --out my_bundle
        rws build --model classifier.onnx --images clean.mp4 --scale 255 --mean 127 --std 128 --quick
        rws build --model package.module:factory --size 224 --images clean_frames/
        rws build --data ~/data/cifar10 --out bundle             # the bundled default, anew
        rws build --data my_photos/ --size 64 --out my_bundle
        rws build --data ~/data/cifar10 --job oracle             # one part, in a process of its own
        rws build --onto my_bundle --data my_photos/ --out calibrated
    """
    _check_options(ctx, model is not None, images is not None)
    with require("train"):
        import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if model is None or images is None:
        _build_labelled(recipe or "cifar10_vgg16", data, work or Path("runs/build"), onto, size, device, job or [], out)
        return
    from rws.training.adopt.graph import Preprocessing
    from rws.training.adopt.run import AdoptOptions, numbers, run_adopt

    wanted = Preprocessing(scale, numbers("--mean", mean), numbers("--std", std), bgr)
    sources = (model, images, wanted, out, work or Path("runs/adopt"), more_images, names, labels, size, every, limit)
    goal = None if target is None else target.value
    run_adopt(AdoptOptions(*sources, recipe, layers, goal, quick), say, _print_progress)


def _build_labelled(
    name: str, data: str | None, work: Path, onto: Path | None, size: int | None, device: str, job: list[str], out: Path
) -> None:
    from rws.edge.bundle.bundle import Bundle
    from rws.training.build.build import Build
    from rws.training.build.recipe import load_recipe

    chosen, kept = load_recipe(name), None if onto is None else Bundle.load(onto)
    source = data or chosen.data.source
    made = Build(chosen, source, work, size=size, device=device, onto=kept, progress=_print_progress)
    made.run(job)
    if not job:
        made.bundle(out)
        say(f"wrote {out}; try: rws inspect {out}")


def _check_options(ctx: typer.Context, model: bool, images: bool) -> None:
    if model != images:
        raise UsageError("a model of your own needs both --model and --images")
    others, where = (_FROM_LABELS, "without") if model else (_OWN_MODEL, "with")
    for name in others:
        if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE":
            raise UsageError(f"--{name.replace('_', '-')} goes {where} --model; leave one of them out")


def _print_progress(record: dict[str, Any]) -> None:
    values = "  ".join(f"{key} {value}" for key, value in record.items() if key not in ("job", "seconds"))
    say(f"{record['job']:32s} {record['seconds']:8.1f} s  {values}")
