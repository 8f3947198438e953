import pytest
import torch
from pydantic import ValidationError

from rws.errors import InputError
from rws.training.corruptions import seeds_for
from rws.training.data.images import Images
from rws.training.models.architectures import ModelSpec, build_model
from rws.training.models.fit import Corrupted, FitRecipe, accuracy, batches, crop_and_flip, fit
from rws.training.oracle.sampling import OracleRecipe
from rws.training.signatures.tuned import TuneRecipe

RECIPE = FitRecipe(epochs=4, batch_size=16, learning_rate=0.02, precision="fp32")


@pytest.fixture
def images(clear) -> Images:
    pixels, labels = clear
    return Images(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels), tuple("abcdefghij")
    )


def small_model():
    torch.manual_seed(0)
    return build_model(ModelSpec(width=0.1), 10)


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_same_bytes(images, tmp_path):
    whole = fit(small_model(), images, RECIPE, corrupted=Corrupted("gaussian_noise"), seed=5)

    class Stopped(Exception):
        pass

    def stop_after_two(record):
        if record["epoch"] == 2:
            raise Stopped

    checkpoint = tmp_path / "run.pt"
    settings = {"corrupted": Corrupted("gaussian_noise"), "seed": 5, "checkpoint": checkpoint}
    with pytest.raises(Stopped):
        fit(small_model(), images, RECIPE, report=stop_after_two, **settings)
    seen: list[int] = []
    resumed = fit(small_model(), images, RECIPE, report=lambda record: seen.append(record["epoch"]), **settings)
    assert seen == [3, 4]
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_run_is_refused(images, tmp_path):
    checkpoint = tmp_path / "run.pt"
    fit(small_model(), images, FitRecipe(epochs=1, batch_size=16), checkpoint=checkpoint)
    with pytest.raises(InputError, match="another recipe"):
        fit(small_model(), images, FitRecipe(epochs=2, batch_size=16), checkpoint=checkpoint)


@pytest.mark.slow
def test_fitting_learns_the_images(images):
    model = fit(
        small_model(), images, FitRecipe(epochs=30, batch_size=16, learning_rate=0.05, crop=1, precision="fp32")
    )
    assert accuracy(model, images) > 60


def test_fewer_images_than_a_batch_make_one_batch(images):
    seen: list[dict] = []
    fit(small_model(), images.first(8), FitRecipe(epochs=2, batch_size=16, precision="fp32"), report=seen.append)
    assert [record["epoch"] for record in seen] == [1, 2]


def test_a_diverging_rate_is_refused(images):
    with pytest.raises(InputError, match="lower the learning rate"):
        fit(small_model(), images, FitRecipe(epochs=3, batch_size=16, learning_rate=1e30, warmup=0, precision="fp32"))


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 1}, {"learning_rate": 0.0}, {"precision": "fp8"}])
def test_a_recipe_that_cannot_be_followed_is_refused(wrong):
    for recipe in (FitRecipe, TuneRecipe, OracleRecipe):
        with pytest.raises(ValidationError):
            recipe(**wrong)


def test_batches_are_the_same_for_the_same_epoch_and_differ_between_epochs(images):
    def epoch(number):
        return [batch.corrupted for batch in batches(images, 16, 4, Corrupted("all", (0.0, 5.0)), number, seed=1)]

    assert all(torch.equal(a, b) for a, b in zip(epoch(0), epoch(0), strict=True))
    assert not torch.equal(epoch(0)[0], epoch(1)[0])


def test_a_share_of_the_images_is_corrupted(images):
    pixels = images.pixels[:50].repeat(8, 1, 1, 1)
    found = Corrupted("all", (1.0, 5.0), share=0.3)(pixels, seeds_for(0, len(pixels)))
    changed = (found != pixels).flatten(1).any(1)
    assert 0.2 < changed.float().mean() < 0.4


def test_cropping_keeps_real_pixels(images):
    shifted = crop_and_flip(images.pixels, 4, torch.Generator().manual_seed(0))
    assert shifted.shape == images.pixels.shape
    assert not torch.equal(shifted, images.pixels)
    for original, moved in zip(images.pixels[:8], shifted[:8], strict=True):
        assert set(moved.flatten().tolist()) <= set(original.flatten().tolist())
    untouched = {tuple(image.flatten().tolist()) for image in images.pixels}
    still = crop_and_flip(images.pixels, 0, torch.Generator().manual_seed(0))
    assert all(
        tuple(image.flatten().tolist()) in untouched or tuple(image.flip(2).flatten().tolist()) in untouched
        for image in still
    )
