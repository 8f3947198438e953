import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rws.errors import InputError
from rws.oracle.belief import Belief
from rws.oracle.classifier import Oracle
from rws.training.corruptions import CORRUPTIONS, WHOLE_SEVERITIES
from rws.training.data.images import Images
from rws.training.oracle.fit import (
    LEVELS,
    Draw,
    OracleNetwork,
    OracleRecipe,
    draw,
    draw_severities,
    export_oracle,
    fit_clean_weight,
    fit_oracle,
    fit_temperature,
    joint_target,
    oracle_batches,
    oracle_logits,
    training_prior,
    weigh_clean,
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
    recipe = OracleRecipe(minimum_severity=0.3, whole_share=0)
    severities = draw_severities(types, recipe, torch.Generator().manual_seed(0))
    assert torch.equal(severities[:50], severities[:50].round())
    assert not torch.equal(severities[50:100], severities[50:100].round())
    assert severities[50:100].min() >= 0.3
    assert torch.equal(severities[100:], torch.zeros(10))


def test_the_exported_network_gives_the_same_calibrated_belief():
    torch.manual_seed(0)
    network = OracleNetwork(9, (8, 8)).eval()
    oracle = Oracle(export_oracle(network, 1.7, 32), CORRUPTIONS, LEVELS, threads=1)
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
        Oracle(export_oracle(network, 1.3, 32, weight), CORRUPTIONS, LEVELS, threads=1).observe_batch(x)
        for weight in (1.0, 6.0)
    )
    np.testing.assert_allclose(weighed, weigh_clean(torch.from_numpy(plain), 6.0), atol=2e-3)


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


def drawn(**settings: float) -> Draw:
    return draw(20_000, OracleRecipe(**settings), CORRUPTIONS, torch.Generator().manual_seed(0))


def test_shares_of_clean_paired_and_whole_are_kept():
    found = drawn(clean_share=0.2, pair_share=0.25, whole_share=0.5)
    assert (found.types < 0).float().mean() == pytest.approx(0.2, abs=0.01)
    assert (found.second_types >= 0).float().mean() == pytest.approx(0.8 * 0.25, abs=0.01)
    assert not (found.second_types[found.types < 0] >= 0).any()
    assert not (found.second_types == found.types)[found.types >= 0].any()
    free = torch.tensor([index for index, name in enumerate(CORRUPTIONS) if name not in WHOLE_SEVERITIES])
    severities = found.severities[torch.isin(found.types, free)]
    # A real severity above 5 is cut to 5, which is whole: a ninth of them.
    assert (severities == severities.round()).float().mean() == pytest.approx(0.5 + 0.5 / 9, abs=0.02)


def test_two_corruptions_share_the_target():
    found = drawn(pair_share=1.0, clean_share=0.1)
    per_type = found.target[:, 1:].reshape(len(found.target), len(CORRUPTIONS), len(LEVELS)).sum(2)
    paired = found.types >= 0
    assert torch.allclose(per_type[paired, found.types[paired]], torch.tensor(0.5))
    assert torch.allclose(per_type[paired, found.second_types[paired]], torch.tensor(0.5))
    assert torch.allclose(found.target.sum(1), torch.tensor(1.0))


def test_the_prior_is_what_the_batches_hold(clear):
    pixels, labels = clear
    images = Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels), tuple("ab"))
    recipe, kinds = OracleRecipe(batch_size=64, pair_share=0.1), ("fog", "gaussian_noise")
    prior = training_prior(recipe, corruptions=kinds)
    assert prior.shape == (1 + 2 * len(LEVELS),)
    assert prior.sum() == pytest.approx(1, abs=1e-4)
    targets = [batch.target for epoch in range(40) for batch in oracle_batches(images, recipe, epoch, 0, kinds)]
    np.testing.assert_allclose(torch.cat(targets).mean(0), prior, atol=0.03)


def test_an_oracle_of_fewer_corruptions_never_draws_the_others(clear, monkeypatch):
    pixels, labels = clear
    images = Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels), tuple("ab"))
    seen: set[str] = set()

    def corrupt_mixed(pixels, types, severities, seeds):
        seen.update(CORRUPTIONS[index] for index in types.unique().tolist() if index >= 0)
        return pixels

    monkeypatch.setattr("rws.training.oracle.fit.corrupt_mixed", corrupt_mixed)
    known = [name for name in CORRUPTIONS if name != "fog"]
    recipe = OracleRecipe(epochs=20, batch_size=32, widths=(8,), pair_share=0.5)
    network = fit_oracle(images, recipe, corruptions=known)
    assert seen == set(known)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 1 + 18 * len(LEVELS))


@pytest.mark.parametrize(
    "settings", [{"clean_share": 0}, {"pair_share": 1.5}, {"minimum_severity": 5}, {"filters": 4}, {"widths": ()}]
)
def test_a_recipe_out_of_range_is_refused(settings):
    with pytest.raises(InputError):
        OracleRecipe(**settings)
