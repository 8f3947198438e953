"""The network of an oracle that sees tiles: uint8 tiles of a frame to logits over clean and (corruption, level)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import CIFAR10_BUNDLE
from rws.edge.bundle.manifest import ORACLE
from rws.edge.onnx.graph import read_model
from rws.training.oracle.network import SHARPNESS

FILTERS, WIDTHS = 16, (32, 64, 96)  # as in the oracle of small images
COLOURS = 4  # mixtures of red, green and blue
RANKS = (16, 16, 32)  # whole blocks of 16 channels: a part of one is no faster in ONNX Runtime
HIDDEN = 128
SCALES = {"colour": 4.0, "front": SHARPNESS}  # from white to black, of what a convolution of pixels takes


class Trunk(nn.Module):
    """Tiles, uint8 (N, 3, S, S), RGB, to mean and log variance of colours and of the later convolutions' channels.

    As in `OracleNetwork`, from which it takes its weights; but each convolution is one to few channels and one of a
    pixel to many, which costs a third (Jaderberg et al. 2014, BMVC, Sec. 2.1), and there is no BatchNorm.
    """

    def __init__(self) -> None:
        super().__init__()
        self.colour, self.front = nn.Conv2d(3, COLOURS, 1), nn.Conv2d(3, FILTERS, 3)
        stages = zip(pairwise((FILTERS, *WIDTHS)), RANKS, (4, 3, 3), (2, 1, 1), strict=True)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, rank, size, stride, 1, bias=False), nn.Conv2d(rank, after, 1))
            for (before, after), rank, size, stride in stages
        )
        self.features = 2 * (COLOURS + sum(WIDTHS))

    def forward(self, x: Tensor) -> Tensor:
        """Return the statistics, float32 (N, `features`)."""
        pixels = x.float()
        # The front looks at differences, and cuts them off: how bright and colourful a tile is, it does not say.
        found = [_scaled(self.colour, F.avg_pool2d(pixels, 4), SCALES["colour"])]
        maps = F.hardtanh(_scaled(self.front, pixels, SCALES["front"]))
        for place, stage in enumerate(self.stages):
            maps = F.relu(stage(F.max_pool2d(maps, 2) if place else maps))
            found.append(maps)
        mean = torch.cat([maps.mean((2, 3), keepdim=True).flatten(1) for maps in found], 1)
        square = torch.cat([(maps * maps).mean((2, 3), keepdim=True).flatten(1) for maps in found], 1)
        return torch.cat([mean, ((square - mean * mean).clamp(min=0) + 1e-4).log()], 1)

    def load(self, front: tuple[Tensor, Tensor], stages: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take weight and bias of the convolutions of a trunk that has whole ones, as near as the ranks allow."""
        state = {**self.state_dict(), "front.weight": front[0], "front.bias": front[1]}
        for place, ((weight, bias), rank) in enumerate(zip(stages, RANKS, strict=True)):
            left, share, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
            root = share[:rank].sqrt()
            state[f"stages.{place}.0.weight"] = (root[:, None] * right[:rank]).view(rank, *weight.shape[1:])
            state[f"stages.{place}.1.weight"] = (left[:, :rank] * root)[:, :, None, None]
            state[f"stages.{place}.1.bias"] = bias
        self.load_state_dict(state)


def _scaled(convolution: nn.Conv2d, pixels: Tensor, scale: float) -> Tensor:
    """Return a convolution of pixels, 0…255, as if they went from −`scale`/2 to `scale`/2; at no cost when exported."""
    weight = convolution.weight * (scale / 255)
    shift = -127.5 * weight.sum((1, 2, 3))
    return F.conv2d(pixels, weight, shift if convolution.bias is None else shift + convolution.bias)


class TileNetwork(nn.Module):
    """uint8 tiles (N, T, 3, S, S), RGB, the first one the whole frame, to logits (N, 1 + C·S) over the joint states.

    All share a trunk: what counts is the statistics of the whole frame, the mean of those of its tiles, and how they
    differ.
    """

    def __init__(self, states: int) -> None:
        super().__init__()
        self.trunk = Trunk()
        count = 3 * self.trunk.features
        self.norm, self.drop = nn.BatchNorm1d(count, affine=False), nn.Dropout(0.1)
        self.hidden, self.head = nn.Linear(count, HIDDEN), nn.Linear(HIDDEN + count, states)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch."""
        each = self.trunk(x.flatten(0, 1)).unflatten(0, (-1, x.shape[1]))
        frame, tiles = each[:, 0], each[:, 1:]
        mean = tiles.mean(1)
        spread = ((tiles * tiles).mean(1) - mean * mean).clamp(min=0).add(1e-4).sqrt()
        found = self.drop(self.norm(torch.cat([frame, mean, spread], 1)))
        # As head([relu(hidden(found)), found]), in one large product and a small one: a tenth of the network's time.
        of_hidden, direct = self.head.weight[:, :HIDDEN], self.head.weight[:, HIDDEN:]
        both = F.linear(found, torch.cat([self.hidden.weight, direct]), F.pad(self.hidden.bias, (0, len(direct))))
        return F.linear(F.relu(both[:, :HIDDEN]), of_hidden, self.head.bias) + both[:, HIDDEN:]

    def load_exported(self, content: bytes) -> None:
        """Take the weights of an exported oracle of this kind, whose calibration is in its last layer."""
        found = dict(_arrays(content))
        convolutions = [
            node.input for node in onnx.load_model_from_string(content).graph.node if node.op_type == "Conv"
        ]
        for name, scale in SCALES.items():
            shape = getattr(self.trunk, name).weight.shape
            weight, bias = next((found[x[1]], found[x[2]]) for x in convolutions if found[x[1]].shape == shape)
            found[f"trunk.{name}.weight"] = weight / (scale / 255)
            found[f"trunk.{name}.bias"] = bias + 127.5 * weight.sum((1, 2, 3))
        padded = (HIDDEN + len(self.head.bias),)  # see `forward`
        found["hidden.bias"] = next(array for array in found.values() if tuple(array.shape) == padded)[:HIDDEN]
        self.load_state_dict({name: found.get(name, tensor) for name, tensor in self.state_dict().items()})

    def load_small(self) -> None:
        """Give the trunk the weights of the CIFAR-10 bundle's oracle, which has seen small images only."""
        found = _arrays(Bundle.load(CIFAR10_BUNDLE).read(ORACLE))
        front = next(array for array in found.values() if tuple(array.shape) == tuple(self.trunk.front.weight.shape))
        places = range(len(self.trunk.stages))
        stages = [(found[f"stages.{place}.0.weight"], found[f"stages.{place}.0.weight_bias"]) for place in places]
        self.trunk.load((front / SHARPNESS, found["front.bias"]), stages)


def _arrays(network: bytes) -> Mapping[str, Tensor]:
    """Return the weights of an exported oracle by their names in torch."""
    tensors = read_model(network).graph.initializer
    arrays: dict[str, NDArray[np.generic]] = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
    kept = {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
    return {name.removeprefix("network."): torch.from_numpy(array.astype(np.float32)) for name, array in kept.items()}


def with_pooling(network: bytes) -> bytes:
    """Return the same ONNX network with GlobalAveragePool for the means of maps: ONNX Runtime is faster with it."""
    model = onnx.load_model_from_string(network)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "ReduceMean" and np.array_equal(constants.get(node.input[-1], []), [2, 3]):
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]
    return bytes(model.SerializeToString())
