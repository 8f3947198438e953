import numpy as np
import pytest
import torch

from rws.training.corruptions import CORRUPTIONS
from rws.training.data.images import Images
from rws.training.oracle.fit import fit_oracle, oracle_batches
from rws.training.oracle.sampling import LEVELS, OracleRecipe, training_prior


def test_a_short_training_lowers_the_loss(clear):
    pixels, labels = clear
    images = Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels), tuple("ab"))
    losses: list[float] = []
    recipe = OracleRecipe(epochs=6, batch_size=32, widths=(8, 16), precision="fp32")
    fit_oracle(images, recipe, report=lambda record: losses.append(record["loss"]))
    assert losses[-1] < losses[0]


def test_the_prior_is_what_the_batches_hold(clear):
    pixels, labels = clear
    images = Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels), tuple("ab"))
    recipe, kinds = OracleRecipe(batch_size=64, pair_share=0.1), ("fog", "gaussian_noise")
    prior = training_prior(recipe, corruptions=kinds)
    assert prior.shape == (1 + 2 * len(LEVELS),)
    assert prior.sum() == pytest.approx(1, abs=1e-4)
    targets = [batch[1] for epoch in range(40) for batch in oracle_batches(images, recipe, epoch, 0, kinds)]
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
