import numpy as np
import pytest
import torch

from rws.oracle.classifier import Oracle
from rws.training.corruptions import CORRUPTIONS
from rws.training.oracle.calibration import Calibration, export_oracle, fit_clean_weight, fit_temperature, weigh_clean
from rws.training.oracle.network import OracleNetwork, oracle_logits
from rws.training.oracle.sampling import LEVELS


def test_the_exported_network_gives_the_same_calibrated_belief():
    torch.manual_seed(0)
    network = OracleNetwork(9, (8, 8)).eval()
    oracle = Oracle(export_oracle(network, Calibration(1.7), 32), CORRUPTIONS, LEVELS, threads=1)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    expected = (oracle_logits(network, pixels) / 1.7).softmax(1).numpy()
    found = oracle.observe_batch((pixels.numpy() / np.float32(255)).astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=2e-3)  # its weights are stored in 16 bits


@pytest.mark.parametrize("recall", [50.0, 90.0, 97.5])
def test_the_weight_on_clean_reaches_its_recall_and_no_more(recall):
    joint = torch.rand(2000, 96, generator=torch.Generator().manual_seed(0)).square().softmax(1)

    def reached(weight: float) -> float:
        weighed = weigh_clean(joint, weight)
        assert torch.allclose(weighed.sum(1), torch.tensor(1.0))
        return 100 * (weighed[:, 0] >= weighed[:, 1:].reshape(2000, 19, 5).sum(2).max(1).values).float().mean().item()

    weight = fit_clean_weight(joint, recall)
    assert reached(weight) == pytest.approx(recall, abs=0.1)
    assert reached(weight * 0.98) < recall


def test_the_exported_network_carries_the_weight_on_clean():
    torch.manual_seed(0)
    network = OracleNetwork(9, (8,)).eval()
    x = np.random.default_rng(0).random((4, 3, 32, 32), np.float32)
    plain, weighed = (
        Oracle(export_oracle(network, Calibration(1.3, weight), 32), CORRUPTIONS, LEVELS, threads=1).observe_batch(x)
        for weight in (1.0, 6.0)
    )
    np.testing.assert_allclose(weighed, weigh_clean(torch.from_numpy(plain), 6.0), atol=2e-3)


def test_temperature_recovers_an_overconfident_scale():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    target = torch.nn.functional.one_hot(labels, 5).float()
    assert fit_temperature(3 * logits, target) == pytest.approx(3, rel=0.15)
