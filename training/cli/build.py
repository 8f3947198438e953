"""`rws build` and `rws extract`: from images, or from checkpoints, to signatures that a device can carry."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from rws.edge.common.extras import require
from rws.errors import InputError


class Way(str, Enum):
    """How a signature is made."""

    residual = "residual"
    tuned = "tuned"


class Target(str, Enum):
    """What the shallow layers of a model of your own are trained towards."""

    auto = "auto"
    output = "output"
    shallow = "shallow"


_OWN_MODEL = ("images", "more_images", "labels", "names", "layers", "target", "quick", "mean", "std", "scale", "bgr")
_OWN_MODEL += ("every", "limit")
_FROM_LABELS = ("data", "device", "job", "onto")


def build(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="Bundle folder to write.")] = Path("bundle"),
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A .toml file, or the name of a recipe that ships; left out: cifar10_vgg16, or --model's own."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Image folder <class>/<image> (or with train/ and test/ above it), or cifar10, cifar100."),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Resize and crop images to this side, in pixels.")] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints; a stopped build goes on from it. Left out: in runs/."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    job: Annotated[
        list[str] | None,
        typer.Option(
            help="Only these jobs, no bundle (they may run side by side): init, std, oracle, tuned, residual, gain."
        ),
    ] = None,
    onto: Annotated[
        Path | None,
        typer.Option(help="A bundle whose model and signatures are kept; the oracle and the gain table are made anew."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Your own classifier: an .onnx file, or package.module:factory for a torch module."),
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="--model: clean pictures without labels: a folder, glob, list, video, stream.")
    ] = None,
    more_images: Annotated[
        str | None, typer.Option(help="--model: other clean pictures, for the oracle alone.")
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="--model: --images is <class>/<image>; measure accuracy with that.")
    ] = False,
    names: Annotated[
        Path | None, typer.Option(help="--model: class names in the order of the logits, one a line.")
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="--model: change the first n convolutions; 0: as many as 0.6 % of its bytes hold. Left out: the "
            "recipe's, else 0.",
        ),
    ] = None,
    target: Annotated[
        Target | None,
        typer.Option(help="--model: match its output, or its shallow part alone. Left out: the recipe's, else auto."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="--model: a first look, in minutes.")] = False,
    mean: Annotated[str, typer.Option(help="--model: it takes (x * scale - mean) / std; one number or R,G,B.")] = "0",
    std: Annotated[str, typer.Option(help="--model: see --mean.")] = "1",
    scale: Annotated[float, typer.Option(help="--model: see --mean; 255 where it takes 0…255.")] = 1.0,
    bgr: Annotated[bool, typer.Option("--bgr", help="--model: it takes blue, green, red.")] = False,
    every: Annotated[int, typer.Option(min=1, help="--model: every n-th frame of a video.")] = 10,
    limit: Annotated[int, typer.Option(min=1, help="--model: at most so many pictures.")] = 1000,
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
    if (model is None) != (images is None):
        raise InputError("a model of your own needs both --model and --images")
    for name in _FROM_LABELS if model is not None else _OWN_MODEL:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option} goes {'without' if model is not None else 'with'} --model; leave one of them out"
            )
    if model is not None and images is not None:
        _adopt(
            Sources(model, images, more_images, names, labels, size, every, limit),
            (mean, std, scale, bgr),
            recipe,
            {"layers": layers, "target": None if target is None else target.value},
            work=work or Path("runs/adopt"),
            out=out,
            threads=threads,
            quick=quick,
        )
        return
    with require("train"):
        import torch

        from rws.edge.bundle.bundle import Bundle
        from rws.training.build.build import Build
        from rws.training.build.recipe import load_recipe
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = load_recipe(recipe or "cifar10_vgg16")
    workshop = Build(
        chosen,
        data or chosen.data.source,
        work or Path("runs/build"),
        size=size,
        device=device,
        onto=None if onto is None else Bundle.load(onto),
        progress=_print_progress,
    )
    workshop.run(job or ())
    if not job:
        workshop.bundle(out)
        typer.echo(f"wrote {out}; try: rws inspect {out}")


class Sources(NamedTuple):
    """Where the parts of an adopted model come from; see the options of `rws build`."""

    model: str
    images: str
    more: str | None
    names: Path | None
    labels: bool
    size: int | None
    every: int
    limit: int


def _adopt(
    sources: Sources,
    preprocessing: tuple[str, str, float, bool],
    recipe: str | None,
    settings: dict[str, Any],
    *,
    work: Path,
    out: Path,
    threads: int | None,
    quick: bool,
) -> None:
    with require("train"):
        import torch

        from rws.training.adopt.adoption import Adoption, AdoptRecipe, load_adopt_recipe
        from rws.training.adopt.model import Preprocessing, adopt_model, load_classifier
        from rws.training.data.pictures import load_labelled, load_pictures, read_names
    if threads is not None:
        torch.set_num_threads(threads)
    mean, std, scale, bgr = preprocessing
    wanted = Preprocessing(scale, _numbers("--mean", mean), _numbers("--std", std), bgr)
    adopted = adopt_model(load_classifier(sources.model, sources.size), wanted, sources.size)
    for change in adopted.changes:
        typer.echo(f"model: {change}")
    classes = None if sources.names is None else read_names(sources.names)
    labels, sequential = None, False
    if sources.labels:
        found = load_labelled(sources.images, adopted.size, classes or adopted.classes, limit=sources.limit)
        pictures, labels, classes = found.pixels, found.labels, list(found.classes)
    else:
        pictures, sequential = load_pictures(
            sources.images, adopted.size, every=sources.every, limit=sources.limit, keep=work
        )
    more = None
    if sources.more is not None:
        limit = 10 * sources.limit
        more = load_pictures(sources.more, adopted.size, every=sources.every, limit=limit, keep=work).pixels
    chosen = AdoptRecipe() if recipe is None else load_adopt_recipe(Path(recipe))
    chosen = replace(chosen, **{key: value for key, value in settings.items() if value is not None})
    workshop = Adoption(
        adopted,
        pictures,
        chosen.quick() if quick else chosen,
        work,
        classes=classes,
        labels=labels,
        more=more,
        sequential=sequential,
        name=Path(sources.model).stem.replace(":", "-"),
        progress=_print_progress,
    )
    typer.echo(
        f"model: {adopted.size} px, {adopted.classes} classes; trains the first {workshop.layers} convolutions "
        f"({workshop.share:.2f} % of the model's bytes a signature), target {workshop.target}; {len(pictures)} pictures"
    )
    if workshop.why_shallow:
        typer.echo(f"model: its shallow part is trained alone, which wins less back: {workshop.why_shallow}")
    workshop.bundle(out)
    typer.echo(f"wrote {out}; try: rws run SOURCE --bundle {out}")


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} {text}: expected a number, or three with commas") from error


def _print_progress(record: dict[str, Any]) -> None:
    values = "  ".join(f"{key} {value}" for key, value in record.items() if key not in ("job", "seconds"))
    typer.echo(f"{record['job']:32s} {record['seconds']:8.1f} s  {values}")


def _print_epoch(name: str, record: dict[str, Any]) -> None:
    typer.echo(f"{name:20s} epoch {record['epoch']}  loss {record['loss']}")


def extract(
    std: Annotated[
        Path, typer.Option(help="Standard model: .onnx, or a checkpoint (.pt, .safetensors) with --recipe.")
    ],
    out: Annotated[Path, typer.Option(help="Signature file to write.")],
    way: Annotated[Way, typer.Option(help="From robust models (the paper), or tuned on images.")] = Way.residual,
    robust: Annotated[list[str] | None, typer.Option(help="residual: CORRUPTION=FILE, one a robust model.")] = None,
    init: Annotated[
        Path | None, typer.Option(help="residual: init of std and robust; left out: std itself (R = robust - std).")
    ] = None,
    projection: Annotated[
        str, typer.Option(help="residual: per_tensor (the authors'), whole or plain.")
    ] = "per_tensor",
    data: Annotated[str | None, typer.Option(help="tuned: clean images; labels are not needed.")] = None,
    corruption: Annotated[
        list[str] | None, typer.Option(help="tuned: which corruption, once for each; left out: all 19.")
    ] = None,
    severity: Annotated[float, typer.Option(min=0.5, max=5, help="tuned: severity of the training images.")] = 5.0,
    layers: Annotated[int, typer.Option(min=1, help="The shallowest n layers.")] = 5,
    bits: Annotated[int, typer.Option(help="4, 8 or 16.")] = 8,
    per: Annotated[str, typer.Option(help="One scale per channel or per tensor.")] = "channel",
    recipe: Annotated[str | None, typer.Option(help="Recipe that names the checkpoints' architecture.")] = None,
    classes: Annotated[int, typer.Option(min=2, help="Number of classes of the checkpoints.")] = 10,
    report: Annotated[Path | None, typer.Option("--json", help="Write the norms here.")] = None,
) -> None:
    """Make signatures for a model that is trained already.

    residual: the projection residual of robust models (Cai et al. 2023). tuned: the shallow layers trained on corrupted
    images, without labels. `rws build` calibrates alpha; a signature file alone holds none.

    \b
    Examples:
        rws extract --std std.onnx --init init.onnx --robust fog=fog.onnx --robust snow=snow.onnx --out my.safetensors
        rws extract --recipe cifar10_vgg16 --init init.pt --std std.pt --robust fog=robust-fog.pt --out fog.safetensors
        rws extract --way tuned --recipe cifar10_vgg16 --std std.pt --data photos/ --corruption fog --out f.safetensors
    """
    with require("train"):
        import torch

        from rws.training.build.recipe import load_recipe
        from rws.training.corruptions import CORRUPTIONS
        from rws.training.data.images import load_images
        from rws.training.models.architectures import shallow_tensors
        from rws.training.models.checkpoints import folded_model, folded_weights
        from rws.training.models.fit import Corrupted
        from rws.training.signatures.methods import residual_signature, tuned_signature
    from rws.edge.common.files import check_target
    from rws.edge.common.provenance import write_json
    from rws.edge.signatures.signature_set import SignatureSet, shallow_sha256

    for target in (out, report):
        if target is not None:
            check_target(target)
    deltas = {}
    if way is Way.residual:
        if not robust:
            raise InputError("--way residual needs --robust CORRUPTION=FILE, once for each robust model")
        clean, tensors = folded_weights(std, layers, recipe, classes)
        base = clean if init is None else folded_weights(init, layers, recipe, classes)[0]
        for item in robust:
            name, _, file = item.partition("=")
            if not file:
                raise InputError(f"--robust {item!r} is not CORRUPTION=FILE")
            weights, _ = folded_weights(Path(file), layers, recipe, classes)
            deltas[name] = residual_signature(base, clean, weights, tensors, projection)
    else:
        if data is None or recipe is None:
            raise InputError("--way tuned needs --data with clean images, and --recipe for the model's architecture")
        settings = load_recipe(recipe)
        model = folded_model(std, recipe, classes)
        tensors = shallow_tensors(model, layers)
        clean = {name: parameter.detach() for name, parameter in model.named_parameters()}
        images = load_images(data, "train")
        for name in corruption or CORRUPTIONS:
            deltas[name] = tuned_signature(
                model,
                images,
                Corrupted(name, severity),
                tensors,
                settings.tuned,
                seed=settings.seed,
                report=partial(_print_epoch, name),
            )
    arrays = {name: {tensor: delta.numpy() for tensor, delta in parts.items()} for name, parts in deltas.items()}
    clean_hash = shallow_sha256({tensor: clean[tensor].numpy() for tensor in tensors})
    SignatureSet.from_deltas(arrays, bits, per, clean_hash=clean_hash).save(out)  # type: ignore[arg-type]
    if report is not None:
        norms = {name: {t: float(torch.linalg.norm(d)) for t, d in parts.items()} for name, parts in deltas.items()}
        write_json(report, {"tensors": tensors, "norm": norms})
    typer.echo(f"wrote {out}: {len(deltas)} signatures over {len(tensors)} tensors, {bits} bits per {per}")
