import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracle import Belief, Oracle
from training.corruptions import CORRUPTIONS
from training.data import Images
from training.oracle_fit import (
    LEVELS,
    OracleNetwork,
    OracleRecipe,
    draw_severities,
    export_oracle,
    fit_oracle,
    fit_temperature,
    joint_target,
    oracle_logits,
)


@given(kind=st.integers(-1, 18), severity=st.floats(0, 5, width=32))
def test_the_target_has_the_severity_it_stands_for(kind, severity):
    target = joint_target(torch.tensor([kind]), torch.tensor([0.0 if kind < 0 else severity]))[0]
    belief = Belief(CORRUPTIONS, LEVELS, target.numpy())
    assert belief.joint.sum() == pytest.approx(1, abs=1e-5)
    assert belief.expected_severity == pytest.approx(0 if kind < 0 else severity, abs=1e-4)
    others = np.delete(belief.probability, [0, kind + 1])
    assert not others.any()


def test_severities_are_whole_where_no_others_exist():
    types = torch.tensor([CORRUPTIONS.index("saturate")] * 50 + [CORRUPTIONS.index("fog")] * 50 + [-1] * 10)
    severities = draw_severities(types, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(severities[:50], severities[:50].round())
    assert not torch.equal(severities[50:100], severities[50:100].round())
    assert severities[50:100].min() >= 0.3
    assert torch.equal(severities[100:], torch.zeros(10))


def test_the_exported_network_gives_the_same_calibrated_belief():
    torch.manual_seed(0)
    network = OracleNetwork((8, 8)).eval()
    oracle = Oracle(export_oracle(network, 1.7, 32), CORRUPTIONS, LEVELS, threads=1)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    expected = (oracle_logits(network, pixels) / 1.7).softmax(1).numpy()
    found = oracle.observe_batch((pixels.numpy() / np.float32(255)).astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_temperature_recovers_an_overconfident_scale():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    target = torch.nn.functional.one_hot(labels, 5).float()
    assert fit_temperature(3 * logits, target) == pytest.approx(3, rel=0.15)


def test_a_short_training_lowers_the_loss(clear):
    pixels, labels = clear
    images = Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels), tuple("ab"))
    losses: list[float] = []
    recipe = OracleRecipe(epochs=6, batch_size=32, widths=(8, 16), precision="fp32")
    fit_oracle(images, recipe, report=lambda record: losses.append(record["loss"]))
    assert losses[-1] < losses[0]
