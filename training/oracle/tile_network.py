"""The network of an oracle that sees tiles: uint8 tiles of a frame to logits over clean and (corruption, level)."""

from collections.abc import Mapping
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
from rws.training.oracle.network import SHARPNESS

FILTERS, WIDTHS, FRAME_WIDTHS = 16, (32, 64, 96), (16, 24, 32)  # those of tiles are of the oracle of small images
HIDDEN = 128


class Trunk(nn.Module):
    """Tiles, uint8 (N, 3, S, S), RGB, to mean and log variance of the channels of all convolutions but the first.

    As in `OracleNetwork`, from which it can take its weights, but without BatchNorm.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.front = nn.Conv2d(3, FILTERS, 3, padding=1)
        pairs = enumerate(pairwise((FILTERS, *widths)))
        self.stages = nn.ModuleList(
            nn.Conv2d(*pair, 3, padding=1) if place else nn.Conv2d(*pair, 4, 2, padding=1) for place, pair in pairs
        )
        self.features = 2 * sum(widths)

    def forward(self, x: Tensor) -> Tensor:
        """Return the statistics, float32 (N, `features`)."""
        maps, found = F.softsign(self.front((x.float() - 127.5) * (SHARPNESS / 255))), []
        for place, stage in enumerate(self.stages):
            maps = F.relu(stage(F.max_pool2d(maps, 2) if place else maps))
            mean, square = (values.mean((2, 3), keepdim=True).flatten(1) for values in (maps, maps * maps))
            found += [mean, ((square - mean * mean).clamp(min=0) + 1e-4).log()]
        return torch.cat(found, 1)


class TileNetwork(nn.Module):
    """uint8 tiles (N, T, 3, S, S), RGB, the first one the whole frame, to logits (N, 1 + C·S) over the joint states.

    The tiles of a frame share a trunk: what counts is the mean of their statistics, and how they differ.
    """

    def __init__(self, states: int) -> None:
        super().__init__()
        self.tiles, self.frame = Trunk(WIDTHS), Trunk(FRAME_WIDTHS)
        count = 2 * self.tiles.features + self.frame.features
        self.norm, self.drop = nn.BatchNorm1d(count, affine=False), nn.Dropout(0.1)
        self.hidden, self.head = nn.Linear(count, HIDDEN), nn.Linear(HIDDEN + count, states)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch."""
        each = self.tiles(x[:, 1:].flatten(0, 1)).unflatten(0, (-1, x.shape[1] - 1))
        mean = each.mean(1)
        spread = ((each * each).mean(1) - mean * mean).clamp(min=0).add(1e-4).sqrt()
        found = self.drop(self.norm(torch.cat([mean, spread, self.frame(x[:, 0])], 1)))
        logits: Tensor = self.head(torch.cat([F.relu(self.hidden(found)), found], 1))
        return logits

    def load_exported(self, content: bytes) -> None:
        """Take the weights of an exported oracle of this kind, whose calibration is in its last layer."""
        found = _arrays(content)
        self.load_state_dict({name: found.get(name, tensor) for name, tensor in self.state_dict().items()})

    def load_small(self) -> None:
        """Give the trunk of the tiles the weights of the oracle of `cifar10`, which has seen small images only."""
        found = _arrays(Bundle.load(CIFAR10_BUNDLE).read(ORACLE))
        front = next(array for array in found.values() if tuple(array.shape) == tuple(self.tiles.front.weight.shape))
        state = {"front.weight": front / SHARPNESS, "front.bias": found["front.bias"]}
        for place in range(len(self.tiles.stages)):
            state[f"stages.{place}.weight"] = found[f"stages.{place}.0.weight"]
            state[f"stages.{place}.bias"] = found[f"stages.{place}.0.weight_bias"]
        self.tiles.load_state_dict(state)


def _arrays(network: bytes) -> Mapping[str, Tensor]:
    """Return the weights of an exported oracle by their names in torch."""
    tensors = onnx.load_model_from_string(network).graph.initializer
    arrays: dict[str, NDArray[np.generic]] = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
    kept = {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
    return {
        name.removesuffix(".half").removeprefix("network."): torch.from_numpy(array.astype(np.float32))
        for name, array in kept.items()
    }


def with_pooling(network: bytes) -> bytes:
    """Return the same ONNX network with GlobalAveragePool for the means of maps: ONNX Runtime is faster with it."""
    model = onnx.load_model_from_string(network)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "ReduceMean" and np.array_equal(constants.get(node.input[-1], []), [2, 3]):
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]
    return bytes(model.SerializeToString())
