"""Public architectures as ONNX files, with random weights: what they compute does not matter here."""

import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from rws.edge.common.extras import require
from rws.errors import InputError

OPSET = 17
SIZE = 128  # pixels, unless a module has a fixed one
TORCHVISION = (
    "deeplabv3_mobilenet_v3_large densenet121 efficientnet_b0 googlenet lraspp_mobilenet_v3_large mnasnet0_5 "
    "mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet50 "
    "shufflenet_v2_x1_0 squeezenet1_1"
)
TIMM = (
    "convnext_atto deit_tiny_patch16_224 dla46_c edgenext_xx_small efficientvit_b0 ese_vovnet19b_dw fastvit_t8 "
    "ghostnet_050 hardcorenas_a lcnet_050 levit_128s mobilenetv4_conv_small mobileone_s0 mobilevit_xxs pit_ti_224 "
    "repvgg_a0 rexnet_100 semnasnet_075 starnet_s1 tf_efficientnet_lite0 tinynet_e xcit_nano_12_p16_224"
)
DEFAULT = tuple(f"torchvision/{name}" for name in TORCHVISION.split()) + tuple(f"timm/{name}" for name in TIMM.split())


def export(spec: str, folder: Path, seed: int) -> Path:
    """Write `torchvision/NAME` or `timm/NAME` into a folder, unless it is there; an .onnx file is taken as it is.

    `NAME@dynamo` is for torch's newer exporter. Detectors of torchvision take one image without a batch axis.
    """
    if spec.endswith(".onnx"):
        return Path(spec)
    library, _, exported = spec.partition("/")
    name, _, exporter = exported.partition("@")
    path = folder / f"{library}_{exported}.onnx"
    if path.exists():
        return path
    torch.manual_seed(seed)
    detects = False
    if library == "torchvision":
        from rws.edge.onnx.torchvision_compat import torchvision

        segments = name in torchvision.models.list_models(torchvision.models.segmentation)
        detects = name in torchvision.models.list_models(torchvision.models.detection)
        weights = {"weights_backbone": None} if segments or detects else {}
        module = torchvision.models.get_model(name, weights=None, **weights)
    elif library == "timm":
        with require("timm"):
            import timm  # type: ignore[import-not-found]  # no dependency of ours
        module = timm.create_model(name, pretrained=False)
    else:
        raise InputError(f"model {spec!r}: expected torchvision/NAME, timm/NAME or an .onnx file")
    own = getattr(module, "default_cfg", {})
    size = own["input_size"][1] if own.get("fixed_input_size") else SIZE
    if not detects:
        _randomise(module, size)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        image = ([torch.rand(3, size, size)],) if detects else (torch.rand(1, 3, size, size),)
        how = (
            {"dynamo": False, "opset_version": OPSET}
            if exporter != "dynamo"
            else {"dynamo": True, "external_data": False}
        )
        torch.onnx.export(module.eval(), image, path, input_names=["image"], verbose=False, **how)
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
