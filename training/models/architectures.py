"""Classifiers with their input normalisation inside, and where their shallow layers are."""

import copy
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from pydantic.dataclasses import dataclass
from safetensors.torch import load
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from rws.edge.common.files import open_regular
from rws.edge.common.schema import STRICT
from rws.errors import FormatError, InputError, first_line

_LARGEST = 2**34  # bytes of a file of weights
VGG16_STAGES = (2, 2, 3, 3, 3)
VGG16_WIDTHS = (64, 128, 256, 512, 512)
STEM, AIRBENCH_WIDTHS = 24, (64, 256, 256)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True, config=STRICT)
class ModelSpec:
    """Which classifier to build.

    Args:
        architecture: `vgg16`, `airbench`, or the name of any torchvision classifier (`resnet50`, `mobilenet_v2`, …).
        width: multiplier of the channel counts of VGG-16 and Airbench, or of a torchvision ResNet's blocks (not of its
            stem).
        widths: channel counts of VGG-16's five stages (empty: 64, 128, 256, 512, 512 times `width`), or of Airbench's
            blocks (empty: 64, 256, 256 times `width`).
        small_input: for a torchvision ResNet, a 3x3 stem of stride 1 without pooling, as usual at 32 and 64 px.
        mirrored: Airbench answers, but in training, with the mean for an image and its mirror image, at twice the time.
        mean, std: channel statistics of the training images, RGB, range 0…1.
        weights: a state dict (`.pt`, `.safetensors`), or the name of a set of torchvision's (`IMAGENET1K_V1`,
            downloaded). Tensors whose name and shape fit are taken, the others start at random. Empty: all do.
    """

    architecture: str = "vgg16"
    width: float = 1.0
    widths: tuple[int, ...] = ()
    batch_norm: bool = True
    small_input: bool = True
    mirrored: bool = False
    mean: tuple[float, ...] = CIFAR_MEAN
    std: tuple[float, ...] = CIFAR_STD
    weights: str = ""


class Normalise(nn.Module):
    """(x − mean) / std per channel; float32 (N, 3, H, W) RGB 0…1 in, the same shape out."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.tensor(mean).view(1, 3, 1, 1))
        self.std = nn.Buffer(torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch."""
        return (x - self.mean) / self.std


def _widths(spec: ModelSpec, default: tuple[int, ...]) -> tuple[int, ...]:
    widths = spec.widths or tuple(round(width * spec.width) for width in default)
    if len(widths) != len(default) or min(widths) < 1:
        raise InputError(f"{spec.architecture} needs {len(default)} positive widths, got {widths}")
    return widths


class VGG16(nn.Module):
    """Simonyan & Zisserman 2015 for small images as in Cai et al. 2023: 13 convolutions, a global mean, one layer."""

    def __init__(self, spec: ModelSpec, classes: int) -> None:
        super().__init__()
        widths = _widths(spec, VGG16_WIDTHS)
        layers: list[nn.Module] = []
        channels = 3
        for convolutions, width in zip(VGG16_STAGES, widths, strict=True):
            for _ in range(convolutions):
                layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not spec.batch_norm))
                layers += [nn.BatchNorm2d(width)] if spec.batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.normalise = Normalise(spec.mean, spec.std)
        self.features = nn.Sequential(*layers[:-1])  # no pooling after the last stage
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch."""
        return cast(Tensor, self.classifier(self.pool(self.features(self.normalise(x))).flatten(1)))


class _Layer(nn.Module):
    """A convolution, 2 x 2 maxima if it is to `halve`, BatchNorm and ReLU.

    BatchNorm does not scale. So `norm_first`, as it is folded, changes nothing; after the maxima it has fewer numbers.
    """

    def __init__(self, before: int, after: int, halve: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.norm, self.pool = nn.BatchNorm2d(after), nn.MaxPool2d(2) if halve else nn.Identity()
        self.norm_first = False
        self.norm.weight.requires_grad_(False)
        with torch.no_grad():
            nn.init.dirac_(self.conv.weight[:before])  # it begins as a copy of what it is given, and random filters

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.relu(self.pool(self.norm(x)) if self.norm_first else self.norm(self.pool(x)))


class Airbench(nn.Module):
    """A stem and three blocks of two convolutions for small images, after Jordan 2024 (arXiv 2404.00498).

    GELU and the faster rate of biases are left out. The stem is not trained, see `whiten`.
    """

    def __init__(self, spec: ModelSpec, classes: int) -> None:
        super().__init__()
        widths = _widths(spec, AIRBENCH_WIDTHS)
        layers: list[nn.Module] = []
        for before, after in pairwise((STEM, *widths)):
            layers += [_Layer(before, after, halve=True), _Layer(after, after, halve=False)]
        self.normalise, self.stem = Normalise(spec.mean, spec.std), nn.Conv2d(3, STEM, 2).requires_grad_(False)
        self.features = nn.Sequential(*layers)
        self.pool, self.classifier = nn.AdaptiveMaxPool2d(1), nn.Linear(widths[-1], classes, bias=False)
        self.mirrored = spec.mirrored

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch."""
        both = self.mirrored and not self.training
        x = torch.cat([x, x.flip(-1)]) if both else x
        found = self.pool(self.features(F.relu(self.stem(self.normalise(x))))).flatten(1)
        found = found.unflatten(0, (2, -1)).mean(0) if both else found
        return cast(Tensor, self.classifier(found)) / 9

    @torch.no_grad()
    def whiten(self, pixels: Tensor) -> None:
        """Make the stem's filters, and their negatives, those that decorrelate 2 x 2 pixels.

        `pixels`: of images, uint8 (N, 3, H, W), RGB.
        """
        patches = F.unfold(self.normalise(pixels.float() / 255), 2).transpose(1, 2).flatten(0, 1).double()
        share, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (share + 5e-4).sqrt()).T.reshape(-1, 3, 2, 2)
        self.stem.weight.copy_(torch.cat([filters, -filters]))
        nn.init.zeros_(self.stem.get_parameter("bias"))


_OWN: Mapping[str, type[VGG16] | type[Airbench]] = {"vgg16": VGG16, "airbench": Airbench}


def build_model(spec: ModelSpec, classes: int) -> nn.Module:
    """Build a classifier that takes float32 (N, 3, H, W), RGB, 0…1, not normalised, and gives logits (N, classes).

    Raises InputError if torchvision has no such classifier, it gives no plain logits, or the weights do not fit.
    """
    own = _OWN.get(spec.architecture)
    if spec.mirrored and own is not Airbench:
        raise InputError(f"mirrored is for airbench, not {spec.architecture}")
    network = own(spec, classes) if own else _torchvision_classifier(spec, classes)
    if spec.weights:
        _take_weights(network, spec)
    return network if own else nn.Sequential(Normalise(spec.mean, spec.std), network)


def _torchvision_classifier(spec: ModelSpec, classes: int) -> nn.Module:
    from rws.edge.onnx.torchvision_compat import torchvision

    if spec.architecture not in torchvision.models.list_models(module=torchvision.models):
        raise InputError(f"torchvision has no classifier {spec.architecture!r}; see torchvision.models.list_models()")
    network: nn.Module = torchvision.models.get_model(spec.architecture, weights=None, num_classes=classes)
    if spec.width != 1:
        network = _narrow_resnet(network, spec, classes)
    if spec.small_input and isinstance(network, torchvision.models.ResNet):
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    if hasattr(network, "aux_logits"):
        raise InputError(f"{spec.architecture} has auxiliary outputs in training; take another classifier")
    return network


def _narrow_resnet(network: nn.Module, spec: ModelSpec, classes: int) -> nn.Module:
    from rws.edge.onnx.torchvision_compat import torchvision

    if not isinstance(network, torchvision.models.ResNet):
        raise InputError(f"width {spec.width} is for VGG-16 and torchvision's ResNets, not {spec.architecture}")

    class Narrow(torchvision.models.ResNet):  # type: ignore[misc]
        def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
            return cast(nn.Sequential, super()._make_layer(block, round(planes * spec.width), *args, **kwargs))

    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    narrow = Narrow(type(network.layer1[0]), [len(stage) for stage in stages])
    narrow.fc = nn.Linear(narrow.inplanes, classes)
    return narrow


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors` or `.pt` (also a checkpoint of `rws train`), never unpickling code.

    Raises InputError, FormatError if there is no such file, or it does not hold a state dict.
    """
    if not path.is_file():
        raise InputError(f"no file {path}")
    try:
        with open_regular(path, _LARGEST) as file:
            safe = path.suffix == ".safetensors"
            state: Any = load(file.read()) if safe else torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # what a damaged file makes torch and its unpickler raise has no base in common
        raise FormatError(f"{path}: holds no weights that can be read ({first_line(error)})") from error
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FormatError(f"{path}: holds no state dict; save model.state_dict()")
    return state


def _take_weights(network: nn.Module, spec: ModelSpec) -> None:
    if Path(spec.weights).suffix in (".pt", ".safetensors"):
        found = read_state_dict(Path(spec.weights))
    else:
        from rws.edge.onnx.torchvision_compat import torchvision

        try:
            found = torchvision.models.get_model_weights(spec.architecture)[spec.weights].get_state_dict()
        except (KeyError, ValueError, OSError) as error:
            reason = f": neither a .pt or .safetensors file nor torchvision's {spec.architecture}"
            if isinstance(error, OSError):
                reason = f" could not be downloaded ({error}); give a file instead"
            raise InputError(f"weights {spec.weights!r}{reason}") from error
    if isinstance(network, VGG16):
        found = _in_order(network, found)
    take_fitting(network, found, f"weights {spec.weights}")


def take_fitting(network: nn.Module, found: Mapping[str, Tensor], source: str) -> None:
    """Give a network the tensors whose name and shape fit; the others (a head for other classes, say) stay.

    Raises InputError if none fits; it begins with `source`.
    """
    own = network.state_dict()
    fitting = {name: tensor for name, tensor in found.items() if name in own and own[name].shape == tensor.shape}
    if not fitting:
        raise InputError(f"{source}: no tensor fits the network, which has {next(iter(own))}, …")
    network.load_state_dict(fitting, strict=False)


def _in_order(network: VGG16, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Convolutions are matched by their order. A narrower network takes the filters with the largest L1 norm (Li et al.
    # 2017, "Pruning Filters for Efficient ConvNets"), scaled so that their outputs keep their variance.
    places = [re.fullmatch(r"features\.(\d+)\.weight", name) for name, tensor in found.items() if tensor.ndim == 4]
    numbers = sorted(int(place[1]) for place in places if place)
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    own = {f"{name}.weight": layer.weight.shape for name, layer in layers}
    if all(own.get(f"features.{number}.weight") == found[f"features.{number}.weight"].shape for number in numbers):
        return dict(found)
    taken: dict[str, Tensor] = {}
    inputs = torch.arange(3)
    for number, (name, layer) in zip(numbers, layers, strict=False):
        weight = found[f"features.{number}.weight"]
        if len(weight) < layer.out_channels or weight.shape[1] < len(inputs):
            break
        scale = (weight.shape[1] / len(inputs)) ** 0.5
        weight = weight[:, inputs] * scale
        strongest = weight.abs().sum((1, 2, 3)).topk(layer.out_channels).indices.sort().values
        taken[f"{name}.weight"] = weight[strongest]
        if layer.bias is not None and f"features.{number}.bias" in found:
            taken[f"{name}.bias"] = found[f"features.{number}.bias"][strongest]
        inputs = strongest
    return taken


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode with every BatchNorm folded into its convolution; parameter names are kept."""
    copied = copy.deepcopy(model.eval().float())
    for layer in copied.modules():
        if isinstance(layer, _Layer):
            layer.norm_first = True
    return fuse(copied, inplace=True)


def shallow_tensors(folded: nn.Module, layers: int = 5) -> tuple[str, ...]:
    """Return the names of the weights and biases of the shallowest `layers` layers of a folded model, in forward order.

    A layer is a convolution; in a torchvision ResNet a block (stem, residual blocks), as in Cai et al. 2023.
    Raises InputError if the model has fewer layers, or its convolutions still carry BatchNorm.
    """
    parameters = dict(folded.named_parameters())
    convolutions = [name for name, module in folded.named_modules() if isinstance(module, nn.Conv2d)]
    if any(isinstance(module, nn.BatchNorm2d) for module in folded.modules()):
        reason = "could not be folded into a convolution; signatures live in folded weights"
        raise InputError(f"BatchNorm is left that {reason}")
    blocks = group_layers(convolutions)
    if not 1 <= layers <= len(blocks):
        raise InputError(f"the model has {len(blocks)} layers, cannot take the shallowest {layers}")
    names = [f"{name}.{kind}" for block in blocks[:layers] for name in block for kind in ("weight", "bias")]
    return tuple(name for name in names if name in parameters)


def group_layers(convolutions: Sequence[str]) -> list[list[str]]:
    """Return the names of convolutions in forward order, those of one residual block (`layer1.0.…`) together."""
    blocks: dict[str, list[str]] = {}
    for name in convolutions:
        block = re.search(r"(^|.*\.)layer\d+\.\d+(?=\.)", name)
        blocks.setdefault(block.group(0) if block else name, []).append(name)
    return list(blocks.values())
