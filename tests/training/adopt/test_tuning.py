import pytest
import torch
from torch.nn import functional as F

from rws.training.adopt.tuning import Tuned, recalibrated


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers).eval()


class Pair(torch.nn.Module):
    """A network with a tuple of outputs, as converted ones have."""

    def __init__(self, layers: torch.nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.layers(x),)


def test_recalibration_gives_each_patched_channel_its_clean_mean_and_spread_back():
    layers = network()
    tensors = dict(layers.named_parameters())
    clean = torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    faded = 0.3 * clean + 0.5
    deltas = recalibrated(Pair(layers), tensors, clean, faded)
    assert list(deltas) == list(tensors)
    patched = {f"layers.{name}": tensors[name] + delta for name, delta in deltas.items()}
    first = F.conv2d(faded, patched["layers.0.weight"], patched["layers.0.bias"])
    torch.testing.assert_close(first, layers[0](clean), atol=5e-3, rtol=0)  # fading is affine: it is undone
    half = recalibrated(Pair(layers), tensors, clean, faded, 0.5)
    torch.testing.assert_close(half["0.weight"], deltas["0.weight"] / 2)
    nothing = recalibrated(Pair(layers), tensors, clean, clean)
    assert max(float(delta.abs().max()) for delta in nothing.values()) < 1e-4


def test_only_the_named_convolutions_are_recalibrated():
    layers = network()
    tensors = {name: tensor for name, tensor in layers.named_parameters() if name.startswith("0.")}
    x = torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    assert set(recalibrated(Pair(layers), tensors, x, x.square())) == {"0.weight", "0.bias"}


@pytest.mark.parametrize("start", [{}, {"0.weight": torch.ones(4, 3, 3, 3), "0.bias": torch.ones(4)}])
def test_a_tuned_network_begins_at_its_start(start):
    layers = network()
    tensors = {name: tensor for name, tensor in layers.named_parameters() if name.startswith("0.")}
    tuned = Tuned(Pair(layers), {name: tensors[name] for name in ("0.weight", "0.bias")}, start)
    for name, delta in tuned.deltas().items():
        torch.testing.assert_close(delta, start.get(name, torch.zeros_like(delta)))
