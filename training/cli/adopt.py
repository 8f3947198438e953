"""`rws adopt`: a bundle for a classifier that exists, from clean images without labels."""

from enum import Enum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from rws.edge.common.extras import require

Target = Enum("Target", {"auto": "auto", "output": "output", "shallow": "shallow"})


def adopt(
    model: Annotated[str, Argument(help="An .onnx file, or package.module:factory for a torch module.")],
    images: Annotated[
        str, Argument(help="Clean images: a folder, glob, list, video or stream; labels are not needed.")
    ],
    out: Annotated[Path, Option(help="Bundle folder to write.")] = Path("bundle"),
    recipe: Annotated[Path | None, Option(help="A .toml file with settings of the training.")] = None,
    size: Annotated[
        int | None, Option(min=8, help="Side of the model's input in pixels, if the model does not say.")
    ] = None,
    work: Annotated[Path, Option(help="Folder for checkpoints; a stopped adoption resumes from it.")] = Path(
        "runs/adopt"
    ),
    threads: Annotated[int | None, Option(min=1, help="CPU threads; 1 is fastest on a busy machine.")] = None,
    more_images: Annotated[str | None, Option(help="Other clean images, for the oracle only.")] = None,
    labels: Annotated[
        bool, Option("--labels", help="IMAGES is <class>/<image>; measure accuracy instead of agreement.")
    ] = False,
    names: Annotated[Path | None, Option(help="Class names in the order of the logits, one per line.")] = None,
    layers: Annotated[
        int | None,
        Option(
            min=0,
            help="Patch the first n convolutions; 0: as many as 0.6 % of the model's bytes allow. "
            "Default: the recipe's, else 0.",
        ),
    ] = None,
    target: Annotated[
        Target | None,
        Option(help="Match the model's output, or only its shallow part. Default: the recipe's, else auto."),
    ] = None,
    quick: Annotated[
        bool, Option("--quick", help="A first look, in minutes; the full training wins back more.")
    ] = False,
    mean: Annotated[str, Option(help="The model takes (x * scale - mean) / std, x in 0…1; one number or R,G,B.")] = "0",
    std: Annotated[str, Option(help="See --mean.")] = "1",
    scale: Annotated[float, Option(help="See --mean; 255 if the model takes 0…255.")] = 1.0,
    bgr: Annotated[bool, Option("--bgr", help="The model takes blue, green, red.")] = False,
    every: Annotated[int, Option(min=1, help="Take every n-th frame of a video.")] = 10,
    limit: Annotated[int, Option(min=1, help="Take at most this many images.")] = 1000,
) -> None:
    """Make a bundle for a classifier that exists: 19 signatures, an oracle and a policy, from clean images.

    The model stays as it is. A hundred images are enough; they should show what the camera will see.

    \b
    Examples:
        rws adopt classifier.onnx clean_frames/ --out my_bundle
        rws adopt classifier.onnx clean.mp4 --scale 255 --mean 127 --std 128 --quick
        rws adopt package.module:factory clean_frames/ --size 224
    """
    with require("train"):
        import torch

        from rws.training.adopt.graph import Preprocessing
        from rws.training.adopt.run import AdoptOptions, numbers, run_adopt
        from rws.training.jobs.progress import JobLines

    if threads is not None:
        torch.set_num_threads(threads)
    wanted = Preprocessing(scale, numbers("--mean", mean), numbers("--std", std), bgr)
    sources = (model, images, wanted, out, work, more_images, names, labels, size, every, limit)
    goal = None if target is None else target.value
    run_adopt(AdoptOptions(*sources, recipe, layers, goal, quick), JobLines())
