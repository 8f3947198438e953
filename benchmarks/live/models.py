"""Public architectures as ONNX files, with random weights: what they compute does not matter here."""

import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from rws.edge.common.extras import require
from rws.errors import InputError

OPSET = 17
_SIZES = {"inception_v3": 299}
TORCHVISION = (
    "convnext_tiny deeplabv3_mobilenet_v3_large densenet121 efficientnet_b0 googlenet inception_v3 "
    "lraspp_mobilenet_v3_large mnasnet1_0 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf "
    "regnet_y_400mf resnet18 resnet50 shufflenet_v2_x1_0 squeezenet1_1 swin_t"
)
TIMM = (
    "deit_tiny_patch16_224 dla34 edgenext_xx_small efficientformer_l1 fastvit_t8 ghostnet_100 hrnet_w18_small "
    "levit_128s mixer_s32_224 mobileone_s0 mobilevit_s poolformer_s12 repvgg_a0 rexnet_100 tinynet_e"
)
DEFAULT = tuple(f"torchvision/{name}" for name in TORCHVISION.split()) + tuple(f"timm/{name}" for name in TIMM.split())


def export(spec: str, folder: Path, seed: int) -> Path:
    """Write `torchvision/NAME` or `timm/NAME` into a folder; returns the file. An .onnx file is taken as it is."""
    if spec.endswith(".onnx"):
        return Path(spec)
    library, _, name = spec.partition("/")
    torch.manual_seed(seed)
    if library == "torchvision":
        from rws.edge.onnx.torchvision_compat import torchvision

        segments = name in torchvision.models.list_models(torchvision.models.segmentation)
        weights = {"weights_backbone": None} if segments else {}
        module = torchvision.models.get_model(name, weights=None, **weights)
    elif library == "timm":
        with require("timm"):
            import timm  # type: ignore[import-not-found]  # no dependency of ours
        module = timm.create_model(name, pretrained=False)
    else:
        raise InputError(f"model {spec!r}: expected torchvision/NAME, timm/NAME or an .onnx file")
    size = _SIZES.get(name, 224)
    _randomise(module, size)
    path = folder / f"{library}_{name}.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        image = (torch.rand(1, 3, size, size),)
        torch.onnx.export(module.eval(), image, path, dynamo=False, opset_version=OPSET, input_names=["image"])
    onnx.checker.check_model(path)
    return path


def _randomise(module: nn.Module, size: int) -> None:
    """Give weights that start as zeros other values, and BatchNorm the statistics of real activations."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1 and not parameter.any():
                nn.init.normal_(parameter, 0, 0.02)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
                layer.momentum = 1.0
        module.train()(torch.rand(4, 3, size, size))
