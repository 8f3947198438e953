"""`rws build` and `rws extract`: from images, or from checkpoints, to signatures that a device can carry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edge.extras import require
from oracle.errors import InputError


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
            help="Only these jobs, no bundle: init, std, oracle, tuned, residual, gain. Jobs may run side by side."
        ),
    ] = None,
) -> None:
    """Build a bundle from clean labelled images: model, 19 signatures, oracle, policy.

    \b
    Examples:
        rws build --data ~/data/cifar10 --out bundle             # the bundled default, anew
        rws build --data my_photos/ --size 64 --out my_bundle
        rws build --data ~/data/cifar10 --job oracle             # one part, in a process of its own
    """
    with require("train"):
        import torch

        from training.build import Build
        from training.recipe import load_recipe
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = load_recipe(recipe)
    workshop = Build(chosen, data or chosen.data.source, work, size=size, device=device, progress=_print_progress)
    workshop.run(job or ())
    if not job:
        workshop.bundle(out)
        typer.echo(f"wrote {out}; try: rws inspect {out}")


def _print_progress(record: dict[str, Any]) -> None:
    values = "  ".join(f"{key} {value}" for key, value in record.items() if key not in ("job", "seconds"))
    typer.echo(f"{record['job']:32s} {record['seconds']:8.1f} s  {values}")


def extract(
    std: Annotated[
        Path, typer.Option(help="Standard model: .onnx, or a checkpoint (.pt, .safetensors) with --recipe.")
    ],
    robust: Annotated[list[str], typer.Option(help="CORRUPTION=FILE, once for each robust model.")],
    out: Annotated[Path, typer.Option(help="Signature file to write.")],
    init: Annotated[
        Path | None,
        typer.Option(help="Init that std and robust continue from; left out: std itself (R = robust - std)."),
    ] = None,
    layers: Annotated[int, typer.Option(help="The shallowest n layers.")] = 5,
    bits: Annotated[int, typer.Option(help="4, 8 or 16.")] = 8,
    per: Annotated[str, typer.Option(help="One scale per channel or per tensor.")] = "channel",
    projection: Annotated[str, typer.Option(help="per_tensor (the authors'), whole or plain.")] = "per_tensor",
    recipe: Annotated[str | None, typer.Option(help="Recipe that names the checkpoints' architecture.")] = None,
    classes: Annotated[int, typer.Option(help="Number of classes of the checkpoints.")] = 10,
    report: Annotated[Path | None, typer.Option("--json", help="Write the norms here.")] = None,
) -> None:
    """Extract signatures from trained models (projection residual, Cai et al. 2023).

    \b
    Examples:
        rws extract --std std.onnx --init init.onnx --robust fog=fog.onnx --robust snow=snow.onnx --out my.safetensors
        rws extract --recipe cifar10_vgg16 --init init.pt --std std.pt --robust fog=robust-fog.pt --out fog.safetensors
    """
    with require("train"):
        import torch

        from edge.signatures import SignatureSet, shallow_sha256
        from training.checkpoints import folded_weights
        from training.signatures import residual_signature
    std_weights, tensors = folded_weights(std, layers, recipe, classes)
    init_weights = std_weights if init is None else folded_weights(init, layers, recipe, classes)[0]
    deltas = {}
    for item in robust:
        name, _, file = item.partition("=")
        if not file:
            raise InputError(f"--robust {item!r} is not CORRUPTION=FILE")
        weights, _ = folded_weights(Path(file), layers, recipe, classes)
        signature = residual_signature(init_weights, std_weights, weights, tensors, projection)
        deltas[name] = {tensor: delta.numpy() for tensor, delta in signature.items()}
    clean_hash = shallow_sha256({tensor: std_weights[tensor].numpy() for tensor in tensors})
    SignatureSet.from_deltas(deltas, bits, per, clean_hash=clean_hash).save(out)  # type: ignore[arg-type]
    norms = {name: {t: float(torch.from_numpy(d).norm()) for t, d in parts.items()} for name, parts in deltas.items()}
    if report is not None:
        report.write_text(json.dumps({"tensors": tensors, "norm": norms}, indent=1))
    typer.echo(f"wrote {out}: {len(deltas)} signatures over {len(tensors)} tensors, {bits} bits per {per}")
