import shutil

import numpy as np
import pytest
import torch

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.errors import InputError
from rws.oracle.policy import ReferencePolicy
from rws.training.corruptions import CORRUPTIONS, corrupt
from rws.training.data.images import Images
from rws.training.evaluation.evaluator import Evaluator, beliefs_of, classify, ground_truth_mixes, percent_right
from rws.training.evaluation.frames import load_splits, make_frames, shuffled, single_cells, subset
from rws.training.evaluation.sets import EvaluationSet


@pytest.fixture(scope="module")
def bundle():
    return Bundle.load("cifar10")


@pytest.fixture(scope="module")
def splits(bundle, image_folder):
    return load_splits(bundle, str(image_folder))


def test_the_splits_are_those_of_the_build(bundle, splits):
    assert len(splits.validation) == (len(splits.train) + len(splits.validation)) // 10
    assert splits.test.classes == bundle.manifest.classes
    both = torch.cat([splits.train.pixels, splits.validation.pixels]).flatten(1)
    assert len(both.unique(dim=0)) == len(splits.test.pixels.flatten(1).unique(dim=0))


def test_images_of_other_classes_are_refused(bundle, image_folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(image_folder / split / "frog", tmp_path / split / "toad")
    with pytest.raises(InputError, match="class folder 'airplane' is missing; the bundle knows airplane"):
        load_splits(bundle, str(tmp_path))


def test_frames_are_corrupted_layer_by_layer(splits):
    images = splits.test.first(5)
    cells = ((), (("fog", 3.0),), (("fog", 3.0), ("snow", 5.0)), (("snow", 5.0), ("fog", 3.0)))
    frames = make_frames(images, cells, seed=2, clean=splits.test.first(9))
    assert np.bincount(frames.cell).tolist() == [9, 5, 5, 5]
    assert torch.equal(frames.pixels[:9], splits.test.pixels[:9])
    np.testing.assert_array_equal(frames.labels[frames.where([1])], images.labels.numpy())
    np.testing.assert_array_equal(frames.image[frames.where([2])], np.arange(5))
    fog, both, swapped = (frames.pixels[frames.where([cell])] for cell in (1, 2, 3))
    alone = make_frames(images, single_cells((3,), ("fog",)), seed=2)
    assert torch.equal(alone.pixels, fog)
    assert not torch.equal(both, swapped)
    # The second layer is snow over the fog, with its own draws.
    assert not torch.equal(both, corrupt(fog, "snow", 5.0, torch.zeros(5, dtype=torch.int64)))
    assert not torch.equal(make_frames(images, cells, seed=3).pixels[5:10], fog)


def test_a_cell_for_every_corruption_and_severity():
    assert single_cells((1, 5))[:2] == ((("gaussian_noise", 1.0),), (("gaussian_noise", 5.0),))
    assert len(set(single_cells((1, 2, 3, 4, 5)))) == 5 * len(CORRUPTIONS)


def test_the_evaluator_agrees_with_the_model_frame_by_frame(bundle, splits):
    model = bundle.model(ModelOptions(threads=1))
    frames = make_frames(splits.test.first(4), ((), *single_cells((5,), ("fog", "snow"))))
    mixes = [({}, {"fog": 0.5}, {"snow": 1.0, "fog": 0.25}, {"snow": 1.0})[index % 4] for index in range(len(frames))]
    alone = []
    for index, mix in enumerate(mixes):
        model.apply(mix)
        x = frames.pixels[index : index + 1].numpy() / np.float32(255)
        alone.append(int(model.predict(x.astype(np.float32))[0].argmax()) == frames.labels[index])
    evaluator = Evaluator(model, frames)
    for _ in range(2):  # the second time from memory
        np.testing.assert_array_equal(evaluator.right(mixes), alone)
    np.testing.assert_array_equal(evaluator.right_under({"fog": 0.5}, np.array([5, 1])), [alone[5], alone[1]])
    np.testing.assert_allclose(frames.per_cell(np.arange(12)), [1.5, 5.5, 9.5])


def test_beliefs_are_the_oracles(bundle, splits):
    frames = make_frames(splits.test.first(3), single_cells((5,), ("glass_blur",)))
    oracle = bundle.oracle(threads=1)
    for index, belief in enumerate(beliefs_of(oracle, frames)):
        alone = oracle.observe(frames.pixels[index].numpy().astype(np.float32) / np.float32(255))
        np.testing.assert_allclose(belief.joint, alone.joint, atol=1e-5)


def test_subsets_are_seeded():
    images = Images(torch.arange(60, dtype=torch.uint8).view(20, 3, 1, 1), torch.arange(20), ("a",))
    first, again, other = (shuffled(images, limit, seed).labels for limit, seed in ((8, 1), (None, 1), (8, 2)))
    assert torch.equal(first, again[:8])
    assert sorted(again.tolist()) == list(range(20))
    assert not torch.equal(first, other)
    assert torch.equal(subset(images, 8, 1).labels, first.sort().values)
    assert subset(images, 20, 1) is images


def test_each_image_is_classified_under_its_own_mix(bundle, splits):
    model, pixels = bundle.model(ModelOptions(threads=1)), splits.test.pixels[:6]
    x = pixels.numpy() / np.float32(255)
    mixes = [{}, {"fog": 1.0}, {}, {"contrast": 0.5}, {"fog": 1.0}, {"fog": 1.0, "snow": 0.5}]
    shown = np.array([5, 4, 3, 2, 1, 0])
    found, reversed_ = classify(model, pixels, mixes), classify(model, pixels, mixes, shown)
    for place, mix in enumerate(mixes):
        model.apply(mix)
        assert found[place] == model.predict(x[place])[0].argmax()
        assert reversed_[place] == model.predict(x[shown[place]])[0].argmax()


def test_a_frame_runs_once_under_each_mix(bundle, splits):
    class Counting:
        """Counts the frames that go through a model."""

        def __init__(self, model) -> None:
            self._model, self.frames = model, 0
            self.apply = model.apply

        def predict(self, x):
            self.frames += len(x)
            return self._model.predict(x)

    model = Counting(bundle.model(ModelOptions(threads=1)))
    frames = make_frames(splits.test.first(5), single_cells((5,), ("fog",)))
    evaluator = Evaluator(model, frames)
    evaluator.answers([{}, {}, {"fog": 1.0}, {"fog": 1.0}, {}])
    evaluator.right([{}] * 5)
    evaluator.right_under({"fog": 1.0})
    assert model.frames == 10


def test_a_set_gives_the_accuracy_of_the_model_as_it_is_patched(bundle, splits):
    model = bundle.model(ModelOptions(threads=1))
    made = EvaluationSet("fog", 5, splits.test.first(60))
    mixes = ground_truth_mixes(ReferencePolicy(bundle.table, "perfect"), made.frames)
    assert {tuple(mix) for mix in mixes} == {("fog",)}
    model.apply(mixes[0])
    accuracy = percent_right(model, made.images.pixels, made.images.labels)
    assert accuracy == pytest.approx(100 * Evaluator(model, made.frames).right(mixes).mean())
