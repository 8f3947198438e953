import torch

from rws.training.signatures.deltas import DELTAS, composed


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(4, 3, 3, 3, generator=generator), "b": torch.randn(4, generator=generator)}


def test_composition_is_linear():
    a, b = weights(1), weights(2)
    both = composed([(a, 0.5), (b, 2.0)])
    torch.testing.assert_close(both["a"], 0.5 * a["a"] + 2 * b["a"])


def test_deltas_round_trip():
    for name, delta in DELTAS.decode(DELTAS.encode(weights(3))).items():
        torch.testing.assert_close(delta, weights(3)[name], rtol=0, atol=0)
