"""`rws build` and `rws extract`: from images, or from checkpoints, to signatures that a device can carry."""

from __future__ import annotations

from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from edge.extras import require
from oracle.errors import InputError


class Way(str, Enum):
    """How a signature is made."""

    residual = "residual"
    tuned = "tuned"


def build(
    out: Annotated[Path, typer.Option(help="Bundle folder to write.")] = Path("bundle"),
    recipe: Annotated[str, typer.Option(help="A .toml file, or the name of a recipe that ships.")] = "cifar10_vgg16",
    data: Annotated[
        str | None,
        typer.Option(help="Image folder <class>/<image> (or with train/ and test/ above it), or cifar10, cifar100."),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Resize and crop images to this side, in pixels.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for checkpoints; a stopped build goes on from it.")] = Path(
        "runs/build"
    ),
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
) -> None:
    """Build a bundle from clean labelled images: model, 19 signatures, oracle, policy.

    \b
    Examples:
        rws build --data ~/data/cifar10 --out bundle             # the bundled default, anew
        rws build --data my_photos/ --size 64 --out my_bundle
        rws build --data ~/data/cifar10 --job oracle             # one part, in a process of its own
        rws build --onto my_bundle --data my_photos/ --out calibrated
    """
    with require("train"):
        import torch

        from edge.bundle import Bundle
        from training.build import Build
        from training.recipe import load_recipe
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = load_recipe(recipe)
    workshop = Build(
        chosen,
        data or chosen.data.source,
        work,
        size=size,
        device=device,
        onto=None if onto is None else Bundle.load(onto),
        progress=_print_progress,
    )
    workshop.run(job or ())
    if not job:
        workshop.bundle(out)
        typer.echo(f"wrote {out}; try: rws inspect {out}")


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

        from training.checkpoints import folded_model, folded_weights
        from training.corruptions import CORRUPTIONS
        from training.data import load_images
        from training.fit import Corrupted
        from training.models import shallow_tensors
        from training.recipe import load_recipe
        from training.signatures import residual_signature, tuned_signature
    from edge.provenance import write_json
    from edge.signatures import SignatureSet, shallow_sha256
    from edge.sinks import check_target

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
