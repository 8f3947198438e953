"""`rws extract`: signatures for a model that exists."""

from enum import Enum
from pathlib import Path
from typing import Annotated

from typer import Option

from rws.edge.cli.parameters import JsonOption
from rws.edge.common.extras import require
from rws.terminal import say

Method = Enum("Method", {"residual": "residual", "tuned": "tuned"})


def extract(
    std: Annotated[Path, Option(help="Standard model: .onnx, or a checkpoint (.pt, .safetensors) with --recipe.")],
    out: Annotated[Path, Option(help="Signature file to write.")],
    method: Annotated[Method, Option(help="From robust models (the paper), or tuned on images.")] = Method.residual,
    robust: Annotated[list[str] | None, Option(help="residual: CORRUPTION=FILE, a robust model; repeatable.")] = None,
    init: Annotated[
        Path | None, Option(help="residual: init of std and robust. Default: std itself (R = robust - std).")
    ] = None,
    projection: Annotated[str, Option(help="residual: per_tensor (as the authors do), whole or plain.")] = "per_tensor",
    data: Annotated[str | None, Option(help="tuned: clean images; labels are not needed.")] = None,
    corruption: Annotated[
        list[str] | None, Option(help="tuned: only this corruption; repeatable. Default: all 19.")
    ] = None,
    severity: Annotated[float, Option(min=0.5, max=5, help="tuned: severity of the training images.")] = 5.0,
    layers: Annotated[int, Option(min=1, help="The shallowest n layers.")] = 5,
    bits: Annotated[int, Option(help="4, 8 or 16.")] = 8,
    per: Annotated[str, Option(help="One scale per channel or per tensor.")] = "channel",
    recipe: Annotated[str | None, Option(help="Recipe that names the checkpoints' architecture.")] = None,
    classes: Annotated[int, Option(min=2, help="Number of classes of the checkpoints.")] = 10,
    report: JsonOption = None,
) -> None:
    """Make signatures for a model that exists.

    residual: the projection residual of robust models (Cai et al. 2023). tuned: the shallow layers trained on corrupted
    images, without labels. A signature file holds no alpha; `rws train --onto` calibrates it.

    \b
    Examples:
        rws extract --std std.onnx --init init.onnx --robust fog=fog.onnx --robust snow=snow.onnx --out my.safetensors
        rws extract --recipe cifar10 --init init.pt --std std.pt --robust fog=robust-fog.pt --out fog.safetensors
        rws extract --method tuned --recipe cifar10 --std std.pt --data photos/ --out my.safetensors
    """
    with require("train"):
        from rws.training.build.extract import ExtractOptions, run_extract

    sources = (std, out, method.value, tuple(robust or ()), init, projection, data, tuple(corruption or ()), severity)
    run_extract(ExtractOptions(*sources, layers, bits, per, recipe, classes, report), say)
