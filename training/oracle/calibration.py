"""Calibrate an oracle on validation images, score it, and export it with its calibration inside."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rws.oracle.belief import per_type
from rws.training.corruptions import CORRUPTIONS, corrupt_mixed, seeds_for
from rws.training.jobs.seeds import derive_seed
from rws.training.models.export import export_onnx, narrowed
from rws.training.oracle.network import OracleNetwork, oracle_logits
from rws.training.oracle.sampling import LEVELS, OracleRecipe, draw_severities, draw_types, joint_target
from rws.training.oracle.tile_network import TileNetwork


class OracleScores(TypedDict, total=False):
    """What was measured of an oracle on held-out images: percentages of frames, and what `Calibration` holds.

    `type_accuracy`: type named right; `clean_recall`: of the clean ones; `corrupted_called_clean`: of the corrupted
    ones. `prior`: how often each joint state occurs in training, (1 + C·S,), clean weighed.
    """

    temperature: float
    clean_weight: float
    type_accuracy: float
    clean_recall: float
    corrupted_called_clean: float
    prior: list[float]


@dataclass(frozen=True)
class Calibration:
    """What an oracle's logits are divided by, and the odds of clean then multiplied by."""

    temperature: float = 1.0
    clean_weight: float = 1.0

    def joint(self, logits: Tensor) -> Tensor:
        """Return the calibrated probabilities, float32 (N, 1 + C·S), of logits."""
        return weigh_clean((logits / self.temperature).softmax(1), self.clean_weight)


def calibrate_oracle(logits: Tensor, targets: Tensor, clean_logits: Tensor, recall: float) -> Calibration:
    """Return the temperature that fits best, and the weight on clean that reaches a recall, of float32 (N, 1 + C·S)."""
    temperature = fit_temperature(logits, targets)
    return Calibration(temperature, fit_clean_weight((clean_logits / temperature).softmax(1), recall))


def calibrate_on_images(
    network: OracleNetwork,
    pixels: Tensor,
    recipe: OracleRecipe,
    recall: float,
    seed: int,
    corruptions: Sequence[str] = CORRUPTIONS,
) -> tuple[Calibration, OracleScores]:
    """Calibrate and score an oracle on clean validation images, each of them corrupted three times.

    `pixels`: uint8 (N, 3, H, W), RGB, on the CPU, as the network, which knows `corruptions`.
    """
    drawn = derive_seed(seed, "oracle calibration")
    generator = torch.Generator().manual_seed(drawn)
    known = torch.tensor([*(CORRUPTIONS.index(name) for name in corruptions), -1])
    three = pixels.repeat(3, 1, 1, 1)
    types = draw_types(len(three), recipe, len(corruptions), generator)
    severities = draw_severities(types, recipe, generator, corruptions)
    logits = oracle_logits(network, corrupt_mixed(three, known[types], severities, seeds_for(drawn, len(three))))
    targets = joint_target(types, severities, len(corruptions))
    found = calibrate_oracle(logits, targets, oracle_logits(network, pixels), recall)
    named = named_types(found.joint(logits))
    scores = OracleScores(
        temperature=found.temperature, clean_weight=found.clean_weight, type_accuracy=percent(named == types)
    )
    if (types < 0).any():  # of a few images perhaps none is drawn clean
        scores["clean_recall"] = percent(named[types < 0] < 0)
    return found, scores


def named_types(joint: Tensor) -> Tensor:
    """Return the most probable types, int64 (N,), −1 = clean, of probabilities (N, 1 + C·S)."""
    return torch.from_numpy(per_type(joint.numpy(), joint.shape[1] // len(LEVELS)).argmax(1)) - 1


def percent(right: Tensor) -> float:
    """Return the share of true values, in percent with two digits."""
    return round(100 * right.float().mean().item(), 2)


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """Return the temperature T that minimises the cross-entropy of softmax(logits / T) (Guo et al. 2017, Sec. 4.2)."""
    log_temperature = torch.zeros((), requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature], max_iter=50)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(logits / log_temperature.exp(), target)
        torch.autograd.backward([loss])
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]  # torch declares no types for it
    return float(log_temperature.detach().exp())


def fit_clean_weight(joint: Tensor, recall: float) -> float:
    """Return the least weight, 1 or more, on the odds of clean at which `recall` percent of clean frames are named so.

    In training clean is as rare as the recipe says; in use it is the rule, and named far more often.
    `joint`: beliefs of N clean images, float32 (N, 1 + C·S); `recall`: below 100.
    """
    # Summed by torch, not by `per_type`: their sums differ in the last bit, and exported weights depend on this one.
    strongest = joint[:, 1:].reshape(len(joint), -1, len(LEVELS)).sum(2).max(1).values
    needed = strongest / joint[:, 0].clamp(min=1e-12)
    return max(1.0, float(torch.quantile(needed.double(), recall / 100, interpolation="higher")) * (1 + 1e-6))


def weigh_clean(joint: Tensor, weight: float) -> Tensor:
    """Return distributions (…, 1 + C·S) after the odds of clean were multiplied by `weight`."""
    odds = torch.cat([joint[..., :1] * weight, joint[..., 1:]], dim=-1)
    return odds / odds.sum(-1, keepdim=True)


def export_oracle(
    network: OracleNetwork | TileNetwork, calibration: Calibration, size: int | tuple[int, int] | Tensor
) -> bytes:
    """Return ONNX bytes: `image`, float32 (N, 3, H, W), to `joint`, calibrated probabilities (N, 1 + C·S).

    The calibration goes into a copy's last layer: a frame costs nothing more. `size`: as in `export_onnx`.
    """

    class Calibrated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = copy.deepcopy(network)
            head = self.network.head
            with torch.no_grad():
                head.weight.div_(calibration.temperature)
                head.bias.div_(calibration.temperature)
                head.bias[0] += math.log(calibration.clean_weight)

        def forward(self, image: Tensor) -> Tensor:
            return torch.softmax(self.network(image), 1)

    return narrowed(export_onnx(Calibrated().cpu().eval(), size, output_name="joint"), 16)
