"""`rws adopt`: a bundle for a vision model that exists, from clean images without labels."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from typer import Argument, Option

from rws.edge.common.extras import require
from rws.training.cli.parameters import ExplainOption, OnOption, ThreadsOfJobOption, WorkersOption, absolute

if TYPE_CHECKING:
    from rws.edge.preprocess import Fit


Target = Enum("Target", {"auto": "auto", "output": "output", "shallow": "shallow"})
TaskOption = Enum(
    "TaskOption",
    {"classify": "classify", "multilabel": "multilabel", "detect": "detect", "segment": "segment", "raw": "raw"},
)
HeadOption = Enum(
    "HeadOption",
    {"fastestdet": "fastestdet", "yolov5": "yolov5", "yolov8": "yolov8", "yolox": "yolox", "nms": "nms"},
)
FitOption = Enum("FitOption", {"crop": "crop", "stretch": "stretch", "letterbox": "letterbox"})


def adopt(
    model: Annotated[
        str,
        Argument(
            help="An .onnx file, package.module:factory for a torch module, or imagenet: EfficientNet-Lite0 (needs the "
            "extra `zoo`), of which all commands then know the bundle by this name."
        ),
    ],
    images: Annotated[
        str, Argument(help="Clean images: a folder, glob, list, video or stream; labels are not needed.")
    ],
    out: Annotated[
        Path | None, Option(help="Bundle folder to write. Default: bundle; of imagenet the user's folder for data.")
    ] = None,
    recipe: Annotated[Path | None, Option(help="A .toml file with settings of the training.")] = None,
    size: Annotated[
        str | None, Option(help="Pixels of the model's input if the model does not say: a side, or HEIGHTxWIDTH.")
    ] = None,
    work: Annotated[Path, Option(help="Folder for checkpoints; a stopped adoption resumes from it.")] = Path(
        "runs/adopt"
    ),
    threads: ThreadsOfJobOption = None,
    workers: WorkersOption = 1,
    on: OnOption = "here",
    explain: ExplainOption = False,
    own_oracle: Annotated[
        list[str] | None,
        Option(
            help="Train the shipped oracle further on these clean images or videos, best of your camera; repeatable, "
            "each one is a source. Default: the shipped oracle as it is."
        ),
    ] = None,
    onto: Annotated[
        Path | None, Option(help="Keep the signatures of this bundle of the same model; make its oracle only.")
    ] = None,
    labels: Annotated[
        bool, Option("--labels", help="IMAGES is <class>/<image>; measure accuracy instead of agreement.")
    ] = False,
    names: Annotated[
        Path | None,
        Option(help="Class names in the order of the outputs: one per line, JSON, or data.yaml."),
    ] = None,
    task: Annotated[TaskOption | None, Option(help="What the outputs mean, if the model does not say.")] = None,
    head: Annotated[HeadOption | None, Option(help="How a detector's boxes are coded, if it does not say.")] = None,
    output: Annotated[
        list[str] | None, Option(help="An output (or any value of the graph) to read; repeatable. Default: what fits.")
    ] = None,
    fit: Annotated[
        FitOption | None,
        Option(help="How frames become the input's shape. Default: letterbox for detect and segment, else crop."),
    ] = None,
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
    dry_run: Annotated[
        bool, Option("--dry-run", help="Say what is understood of the model and the images, and stop.")
    ] = False,
    mean: Annotated[
        str | None,
        Option(
            help="The model takes (x * scale - mean) / std, x in 0…1; one number or one per channel. "
            "Default of all four: what the images show."
        ),
    ] = None,
    std: Annotated[str | None, Option(help="See --mean.")] = None,
    scale: Annotated[float | None, Option(help="See --mean; 255 if the model takes 0…255.")] = None,
    bgr: Annotated[bool, Option("--bgr", help="The model takes blue, green, red.")] = False,
    every: Annotated[int, Option(min=1, help="Take every n-th frame of a video.")] = 10,
    limit: Annotated[int, Option(min=1, help="Take at most this many images.")] = 1000,
) -> None:
    """Make a bundle for a vision model that exists: 23 signatures and a policy, from clean images.

    The model stays as it is. A hundred images are enough; they should show what the camera will see.

    \b
    Examples:
        rws adopt classifier.onnx clean_frames/ --out my_bundle
        rws adopt classifier.onnx clean.mp4 --scale 255 --mean 127 --std 128 --quick
        rws adopt detector.onnx clean_frames/ --names data.yaml --dry-run
        rws adopt package.module:factory clean_frames/ --size 192x320
        rws adopt imagenet photographs/ --quick                     # then: rws run 0 --bundle imagenet
        rws adopt classifier.onnx clean_frames/ --onto my_bundle --own-oracle my_camera/ --out for_my_camera
    """
    with require("train"):
        from rws.training.adopt.graph import Preprocessing
        from rws.training.adopt.outputs import Wanted
        from rws.training.adopt.run import AdoptOptions, numbers, run_adopt, side_lengths
        from rws.training.jobs.driver import Where
        from rws.training.jobs.progress import JobLines

    preprocessing = None
    if bgr or (mean, std, scale) != (None, None, None):
        shift, divisor = numbers("--mean", mean or "0"), numbers("--std", std or "1")
        preprocessing = Preprocessing(1.0 if scale is None else scale, shift, divisor, bgr)
    where = Where(on, workers, threads, explain)
    said = [None if choice is None else choice.value for choice in (target, task, head, fit)]
    options = AdoptOptions(
        model=model if model == "imagenet" else absolute(model),
        images=absolute(images),
        preprocessing=preprocessing,
        wanted=Wanted(said[1], said[2] or "", tuple(output or ())),
        fit=cast("Fit | None", said[3]),
        out=out,
        work=work.absolute(),
        own_oracle=[absolute(source) for source in own_oracle or ()],
        onto=onto and Path(absolute(str(onto))),
        names=names and Path(absolute(str(names))),
        labels=labels,
        size=None if size is None else side_lengths(size),
        every=every,
        limit=limit,
        recipe=recipe and Path(absolute(str(recipe))),
        layers=layers,
        target=said[0],
        quick=quick,
        dry_run=dry_run,
    )
    with JobLines() as lines:
        run_adopt(options, lines, where)
