from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from rws.benchmarks.baselines.all_models import AllModels
from rws.benchmarks.baselines.base import Fixed
from rws.benchmarks.baselines.batchnorm import NormsOfTypes, adapt_norms
from rws.benchmarks.baselines.cost import Sample, measure_cost, measure_memory, time_methods
from rws.benchmarks.baselines.models import AllCorrupted, AugMixed, BaselineModels, folded_weights, unfold
from rws.benchmarks.baselines.outputs import Lame, Recentred, laplacian, neighbours
from rws.benchmarks.baselines.registry import BASELINES, COMPARED, make_baseline, make_baselines
from rws.benchmarks.baselines.tent import Sar, Tent
from rws.benchmarks.common.memory import can_measure
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import MODEL, ORACLE
from rws.edge.bundle.options import ModelOptions
from rws.errors import FormatError, InputError, RwsError
from rws.training.build.recipe import load_recipe
from rws.training.corruptions import CORRUPTIONS, corrupt, corrupt_mixed, seeds_for
from rws.training.data.images import Images
from rws.training.models.architectures import ModelSpec, build_model, fold_batchnorm
from rws.training.models.fit import FitRecipe
from support.command_line import CLASSES

SPEC = replace(load_recipe("cifar10").model, mirrored=False)
QUICK = FitRecipe(epochs=1, batch_size=16, learning_rate=0.01, precision="fp32")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(clear) -> Images:
    pixels = torch.from_numpy(clear[0]).permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.from_numpy(clear[1].astype(np.int64)), CLASSES)


@pytest.fixture(scope="module")
def unfolded(images) -> nn.Module:
    """The model of `cifar10` with its BatchNorm back; a test must not change it."""
    module = build_model(SPEC, len(CLASSES))
    return unfold(module, folded_weights(Bundle.load("cifar10").read(MODEL)), images)


@pytest.fixture
def own(unfolded) -> nn.Module:
    """A copy that a test may change."""
    module = build_model(SPEC, len(CLASSES)).eval()
    module.load_state_dict(unfolded.state_dict())
    return module


@pytest.fixture(scope="module")
def foggy(images) -> np.ndarray:
    """64 frames under fog of severity 5, as a model takes them."""
    index = torch.arange(64) % len(images)
    return (corrupt(images.pixels[index], "fog", 5.0, seeds_for(0, 64)).float() / 255).numpy()


def logits_of(module: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


def test_the_unfolded_model_is_the_bundles(own, images, foggy):
    own.mirrored = True
    model = Bundle.load("cifar10").model(ModelOptions(threads=1))
    clean = images.pixels.numpy() / np.float32(255)
    for x in (clean, foggy):
        np.testing.assert_allclose(logits_of(own, x), model.predict(x)[0], atol=1e-4)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in own.modules()) == 6


def test_unfolding_brings_back_the_original_batchnorm(images, foggy):
    torch.manual_seed(0)
    original = build_model(ModelSpec(width=0.1), len(CLASSES))
    for layer in original.modules():
        if isinstance(layer, nn.BatchNorm2d):
            signs = torch.randn_like(layer.weight).sign()
            layer.weight.data = signs * torch.empty_like(layer.weight).uniform_(0.3, 2)
            nn.init.normal_(layer.bias)
            layer.momentum = 1.0
    x = images.pixels.float() / 255
    with torch.no_grad():
        original.train()(x)  # leaves the statistics of these images behind
    weights = {name: p.detach() for name, p in fold_batchnorm(original).named_parameters()}
    weights |= {name: buffer for name, buffer in original.named_buffers() if name.startswith("normalise")}
    back = unfold(build_model(ModelSpec(width=0.1), len(CLASSES)), weights, images)
    source = logits_of(original.eval(), foggy)
    np.testing.assert_allclose(logits_of(back, foggy), source, atol=1e-4)
    # Adapted to other images it still is the original adapted to them, which a wrong γ or β would not be.
    adapted, expected = logits_of(back.train(), foggy), logits_of(original.train(), foggy)
    np.testing.assert_allclose(adapted, expected, atol=0.02)
    assert np.abs(expected - source).max() > 0.5
    for ours, theirs in zip(back.modules(), original.modules(), strict=True):
        if isinstance(ours, nn.BatchNorm2d):
            np.testing.assert_allclose(ours.weight.detach(), theirs.weight.detach().abs(), rtol=0.02, atol=1e-2)
            np.testing.assert_allclose(ours.bias.detach(), theirs.bias.detach(), atol=1e-2)


def test_a_network_that_pools_before_its_norms_is_unfolded_too(images, foggy):
    torch.manual_seed(0)
    spec = ModelSpec("airbench", width=0.25)
    original = build_model(spec, len(CLASSES)).train()
    for layer in original.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.bias)
            layer.momentum = 1.0
    with torch.no_grad():
        original(images.pixels.float() / 255)
    weights = {name: p.detach() for name, p in fold_batchnorm(original).named_parameters()}
    weights |= {name: buffer for name, buffer in original.named_buffers() if name.startswith("normalise")}
    back = unfold(build_model(spec, len(CLASSES)), weights, images)
    np.testing.assert_allclose(logits_of(back, foggy), logits_of(original.eval(), foggy), atol=1e-4)
    adapted = logits_of(adapt_norms(back, 0), foggy)
    np.testing.assert_allclose(adapted, logits_of(original.train(), foggy), atol=0.02)


def test_what_cannot_be_unfolded_is_refused(images):
    weights = folded_weights(Bundle.load("cifar10").read(MODEL))
    with pytest.raises(InputError, match="has no BatchNorm"):
        unfold(build_model(ModelSpec(width=0.1, batch_norm=False), 10), weights, images)
    with pytest.raises(FormatError, match=r"has no tensor features\.0\.weight \(6, 3, 3, 3\)"):
        unfold(build_model(ModelSpec(width=0.1), 10), weights, images)


def test_adapted_batchnorm_lies_between_source_and_batch(own, unfolded, foggy):
    def adapted(prior: float) -> np.ndarray:
        module = build_model(SPEC, len(CLASSES)).eval()
        module.load_state_dict(unfolded.state_dict())
        return logits_of(adapt_norms(module, prior), foggy)

    np.testing.assert_allclose(adapted(1e9), logits_of(unfolded, foggy), atol=1e-3)
    np.testing.assert_array_equal(adapted(0), logits_of(own.train(), foggy))
    between = adapted(16)
    assert np.abs(between - adapted(0)).max() > 0.1
    assert np.abs(between - logits_of(unfolded, foggy)).max() > 0.1


def test_the_prior_counts_as_images():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(2).eval()
    norm.running_mean.copy_(torch.tensor([1.0, -1.0]))
    norm.running_var.copy_(torch.tensor([4.0, 0.5]))
    x = torch.randn(8, 2, 5, 5) * 3 + 2
    adapted = adapt_norms(nn.Sequential(norm), 16)(x)
    mean = (16 * norm.running_mean + 8 * x.mean((0, 2, 3))) / 24
    variance = (16 * norm.running_var + 8 * x.var((0, 2, 3), correction=0)) / 24
    expected = (x - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
    torch.testing.assert_close(adapted, expected)


def sample_of(x: np.ndarray, kind: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return x, np.full(len(x), kind, np.int64), np.full(len(x), 5, np.float32)


def test_tent_lowers_the_entropy_through_affine_parameters_alone(own, foggy):
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    affine = {
        f"{name}.{kind}"
        for name, layer in own.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    tent = Tent("tent", own)

    def entropy() -> float:
        with torch.no_grad():
            share = own(torch.from_numpy(foggy)).softmax(1)
        return float(-(share * share.log()).sum(1).mean())

    first, answers = entropy(), tent.classify(*sample_of(foggy))
    for _ in range(4):
        tent.classify(*sample_of(foggy))
    assert entropy() < first - 0.02
    after = {name.replace(".source", ""): tensor for name, tensor in own.state_dict().items()}
    assert {name for name in before if not torch.equal(before[name], after[name])} == affine
    tent.reset()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert entropy() == first
    # Adam restarts as well: the same frames give the same answers.
    np.testing.assert_array_equal(tent.classify(*sample_of(foggy)), answers)
    once = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    tent.reset()
    tent.classify(*sample_of(foggy))
    assert all(torch.equal(once[name], tensor) for name, tensor in own.state_dict().items())


def test_tents_first_step_has_the_published_size_or_one_in_proportion(own, foggy):
    tent = Tent("tent", own)
    for scaled, batch, expected in ((False, 1, 1e-3), (False, 64, 1e-3), (True, 1, 5e-6), (True, 64, 3.2e-4)):
        tent._scaled = scaled
        tent.reset()
        before = [parameter.detach().clone() for parameter in tent._adapted]
        tent.classify(*sample_of(foggy[:batch]))
        steps = torch.cat([(p.detach() - b).abs() for p, b in zip(tent._adapted, before, strict=True)])
        # Adam's first step is the rate, in the direction of the gradient.
        assert float(steps.max()) == pytest.approx(expected, rel=0.05)


def test_statistics_of_a_single_value_are_refused():
    layers = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten())
    x = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    for method in (Fixed("bn_batch", adapt_norms(layers.eval(), 0)), Tent("tent", nn.Sequential(nn.BatchNorm2d(3)))):
        small = x if method.name == "bn_batch" else x[:, :, :1, :1]
        with pytest.raises(InputError, match=r"bn_batch, tent, tent_scaled and sar .*--batch 64"):
            method.classify(*sample_of(small[:1]))
    assert Fixed("bn_batch", layers).classify(*sample_of(x)).shape == (2,)


def test_sar_moves_the_first_norms_by_sure_frames_alone(own, foggy, monkeypatch):
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    sar = Sar("sar", own)

    def changed() -> set[str]:
        after = {name.replace(".source", ""): tensor for name, tensor in own.state_dict().items()}
        return {name for name in before if not torch.equal(before[name], after[name])}

    answers = sar.classify(*sample_of(foggy))
    norms = [name for name, layer in own.named_modules() if name.endswith("source")]
    assert changed() == {f"{name.replace('.source', '')}.{kind}" for name in norms[:-1] for kind in ("weight", "bias")}
    sar.reset()
    assert changed() == set()
    np.testing.assert_array_equal(sar.classify(*sample_of(foggy)), answers)
    sar.reset()
    monkeypatch.setattr("rws.benchmarks.baselines.tent.COLLAPSED", 1.0)  # the entropy of sure answers is below it
    sar.classify(*sample_of(foggy))
    assert changed() == set()
    assert sar._mean is None
    monkeypatch.setattr("rws.benchmarks.baselines.tent.COLLAPSED", 0.0)
    monkeypatch.setattr("rws.benchmarks.baselines.tent.RELIABLE", 0.0)  # no answer is sure
    sar.classify(*sample_of(foggy))
    assert changed() == set()


def test_neo_takes_a_shift_of_all_features_out():
    torch.manual_seed(0)
    head, features = nn.Linear(6, 4), torch.rand(32, 6)
    clean = head(features).argmax(1).numpy()
    shifted = (features + torch.tensor([3.0, -2.0, 0.0, 5.0, 1.0, -4.0])).numpy()
    neo = Recentred("neo", nn.Sequential(nn.Flatten(), head), features.mean(0))
    kinds = sample_of(shifted[:, :, None, None])
    assert (Fixed("std", nn.Sequential(nn.Flatten(), head)).classify(*kinds) != clean).mean() > 0.3
    np.testing.assert_array_equal(neo.classify(*kinds), clean)
    halves = [neo.classify(*(part[start : start + 16] for part in kinds)) for start in (0, 16)]
    np.testing.assert_array_equal(np.concatenate(halves)[16:], clean[16:])  # by then all have been seen once more
    neo.reset()
    assert neo.classify(*(part[:1] for part in kinds)) == int(head(features.mean(0)).argmax())


def test_lame_draws_an_unsure_answer_to_its_neighbours():
    features = torch.tensor([[1.0, 0.01 * place] for place in range(7)] + [[0.01 * place, 1.0] for place in range(7)])
    log_shares = torch.tensor([[0.9, 0.1]] * 6 + [[0.45, 0.55]] + [[0.1, 0.9]] * 6 + [[0.55, 0.45]]).log()
    affinity = neighbours(features)
    assert (affinity.sum(1) == 5).all()
    assert not affinity.diagonal().any()
    assert laplacian(log_shares, affinity).argmax(1).tolist() == [0] * 7 + [1] * 7
    # An answer at the end of a chain changes after as many steps as the chain is long.
    chain = torch.diag(torch.full((7,), 4.0), -1)
    sure = torch.tensor([[0.99, 0.01], *[[0.4, 0.6]] * 7]).log()
    assert laplacian(sure, chain).argmax(1).tolist() == [0] * 8
    one = torch.tensor([[0.45, 0.55]]).log()
    torch.testing.assert_close(laplacian(one, neighbours(features[:1])), one.exp())


def test_a_model_without_a_linear_layer_has_no_features_to_correct():
    with pytest.raises(InputError, match="no linear layer"):
        Lame("lame", nn.Flatten())


def test_norms_of_types_take_the_statistics_of_the_named_type(unfolded, own, foggy, images):
    def observe_batch(x: np.ndarray) -> np.ndarray:
        joint = np.zeros((len(x), 11), np.float32)
        joint[: len(x) // 2, 3] = joint[len(x) // 2 :, 0] = 1  # the first half is fog, the rest clean
        return joint

    oracle = SimpleNamespace(corruptions=("fog", "snow"), observe_batch=observe_batch)
    manifest = SimpleNamespace(files={ORACLE: SimpleNamespace(bytes=1000, sha256="0" * 64)})
    bundle = SimpleNamespace(oracle=lambda threads: oracle, manifest=manifest)
    fog = CORRUPTIONS.index("fog")
    keys = [key for key in own.state_dict() if key.endswith(("running_mean", "running_var"))]
    statistics = [{key: own.state_dict()[key] * (1.5 if kind == fog else 3) for key in keys} for kind in range(19)]
    clean = logits_of(unfolded, foggy).argmax(1)
    other = build_model(SPEC, len(CLASSES)).eval()
    other.load_state_dict({**unfolded.state_dict(), **statistics[fog]})
    foggy_answers = logits_of(other, foggy).argmax(1)
    assert (clean != foggy_answers).mean() > 0.1
    by_truth = NormsOfTypes("bn_types_perfect", own, statistics)
    types = np.array([fog, -1] * 32)
    answers = by_truth.classify(foggy, types, np.where(types < 0, 0, 5).astype(np.float32))
    np.testing.assert_array_equal(answers, np.where(types < 0, clean, foggy_answers))
    own.load_state_dict(unfolded.state_dict())
    by_oracle = NormsOfTypes("bn_types", own, statistics, bundle)
    answers = by_oracle.classify(*sample_of(foggy, kind=3))
    np.testing.assert_array_equal(answers, np.concatenate([foggy_answers[:32], clean[32:]]))
    assert by_oracle.identity != by_truth.identity
    assert by_oracle.carried_bytes == by_truth.carried_bytes + 1000


def test_augmix_depends_on_the_seeds_alone(images):
    pixels, seeds = images.pixels[:16], seeds_for(3, 16)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    found = AugMixed()(pixels, seeds)
    assert torch.equal(torch.rand(1), expected)  # the global generator is left alone
    assert found.dtype == torch.uint8
    assert (found != pixels).flatten(1).any(1).float().mean() > 0.9
    assert torch.equal(AugMixed()(pixels[4:8], seeds[4:8]), found[4:8])


def test_all_models_asks_the_model_of_the_ground_truth_type():
    class Constant(nn.Module):
        def __init__(self, answer: int) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.eye(30)[answer])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.logits.expand(len(x), -1)

    method = AllModels(Constant(0), [Constant(1 + index) for index in range(len(CORRUPTIONS))])
    types = np.array([3, -1, 18, 3, 0])
    answers = method.classify(np.zeros((5, 3, 8, 8), np.float32), types, np.full(5, 5, np.float32))
    np.testing.assert_array_equal(answers, types + 1)
    assert method.carried_bytes == 20 * Fixed("one", Constant(0)).carried_bytes
    with pytest.raises(InputError, match="a model for each of the 19"):
        AllModels(Constant(0), [Constant(1)])


def test_augmentation_shows_all_types_and_severities(images):
    count = 4000
    pixels = images.pixels[:1].expand(count, -1, -1, -1)
    seeds = seeds_for(3, count)
    seen: dict[str, torch.Tensor] = {}

    def spy(given, types, severities, drawn):
        seen.update(types=types, severities=severities)
        return corrupt_mixed(given[:4], types[:4], severities[:4], drawn[:4])

    augment = AllCorrupted()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rws.benchmarks.baselines.models.corrupt_mixed", spy)
        augment(pixels, seeds)
    shares = torch.bincount(seen["types"] + 1, minlength=20) / count
    assert float((shares - 1 / 20).abs().max()) < 0.02
    full = seen["severities"] == 5
    assert float(full.float().mean()) == pytest.approx(0.5, abs=0.05)
    rest = seen["severities"][~full]
    assert float(rest.min()) >= 1
    assert float(rest.max()) < 5
    assert float(rest.mean()) == pytest.approx(3, abs=0.15)
    for kind in (0, 7, 18):
        chosen = seen["types"] == kind
        assert 0.3 < float(full[chosen].float().mean()) < 0.7
    assert torch.equal(augment(pixels[:32], seeds[:32]), augment(pixels[:32], seeds[:32]))


@pytest.fixture(scope="module")
def trained(built, image_folder, tmp_path_factory):
    """A tiny bundle, the folder of its baselines' models, and what was reported while they were trained."""
    bundle, work, lines = Bundle.load(built[0]), tmp_path_factory.mktemp("baselines"), []
    models = BaselineModels(
        bundle, str(image_folder), work, augmented=QUICK, progress=lambda record: lines.append(record)
    )
    models.train_all()
    return bundle, work, lines


def test_models_are_trained_once_and_kept(trained, image_folder):
    bundle, work, lines = trained
    assert [line["job"] for line in lines if "done" in line] == [
        "augmented",
        "augmix",
        *(f"robust-{name}" for name in CORRUPTIONS),
    ]
    again = BaselineModels(bundle, str(image_folder), work, augmented=QUICK, progress=pytest.fail)
    again.train_all()
    model = bundle.model(ModelOptions(threads=1))
    x = np.random.default_rng(0).random((4, 3, 32, 32), np.float32)
    np.testing.assert_allclose(logits_of(again.unfolded(), x), model.predict(x)[0], atol=1e-4)
    assert not torch.equal(again.robust("fog").features[0].weight, again.unfolded().features[0].weight)
    with pytest.raises(InputError, match="made from another recipe"):
        BaselineModels(bundle, str(image_folder), work).augmented()


@pytest.mark.parametrize("provenance", [{}, {"recipe": None}, {"recipe": {"steps": 400, "layers": 12}}])
def test_a_bundle_without_the_recipe_of_its_classifier_is_refused(provenance, tmp_path):
    bundle = SimpleNamespace(path="adopted", manifest=SimpleNamespace(provenance=provenance))
    with pytest.raises(InputError, match="adopted does not say by which recipe it was built"):
        BaselineModels(bundle, None, tmp_path)


def test_without_images_nothing_is_trained(trained, tmp_path):
    with pytest.raises(InputError, match="rws bench baselines"):
        make_baselines(trained[0], tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def models(trained) -> BaselineModels:
    return BaselineModels(trained[0], None, trained[1], augmented=QUICK)


@pytest.mark.parametrize("name", [*BASELINES, *COMPARED])
def test_every_method_answers_at_batch_1_and_64(name, trained, models, foggy):
    method = make_baseline(name, models)
    types = np.arange(64) % 20 - 1
    severities = np.where(types < 0, 0, 5).astype(np.float32)
    for batch in (1, 64):
        method.reset()
        answers = method.classify(foggy[:batch], types[:batch], severities[:batch])
        assert answers.shape == (batch,)
        assert answers.dtype == np.int64
        assert 0 <= answers.min() <= answers.max() < len(CLASSES)
        method.reset()
        np.testing.assert_array_equal(method.classify(foggy[:batch], types[:batch], severities[:batch]), answers)
    assert len(method.identity) == 64


def test_on_the_same_engine_ours_answers_as_in_the_replay(trained, models, foggy):
    bundle = trained[0]
    model = bundle.model(ModelOptions(threads=1))
    for name, mix in (("std", {}), ("std_unfolded", {}), ("always", dict.fromkeys(CORRUPTIONS, 1 / 19))):
        model.apply(mix)
        answers = make_baseline(name, models).classify(*sample_of(foggy))
        assert (answers == model.predict(foggy)[0].argmax(1)).mean() > 0.98
    with pytest.raises(InputError, match="unknown baseline 'best'"):
        make_baseline("best", models)


def test_times_are_ratios_to_the_baseline(trained, models, foggy):
    sample = Sample(foggy, np.full(64, 9), np.full(64, 5, np.float32))
    make = {name: lambda name=name: make_baseline(name, models) for name in ("std", "tent")}
    found = time_methods(make, sample, 1, repeats=1, rounds=2)
    assert found["std"]["ratio"] == 1
    assert found["tent"]["ratio"] > 1
    assert found["tent"]["low"] <= found["tent"]["ratio"] <= found["tent"]["high"]
    with pytest.raises(InputError, match="a batch of 65 of 64 frames"):
        time_methods(make, sample, 65)


@pytest.mark.slow
def test_the_cost_has_a_row_for_each_method_and_batch(trained, foggy, monkeypatch):
    bundle, work, _ = trained
    monkeypatch.setattr(
        "rws.benchmarks.baselines.cost.ENGINES",
        {"torch": ("std", "sar", "tent", "trained"), "onnx": ("std", "trained")},
    )
    monkeypatch.setattr("rws.benchmarks.baselines.cost.can_measure", lambda: False)
    sample = Sample(foggy, np.full(64, 9), np.full(64, 5, np.float32))
    rows = measure_cost(bundle, work, sample, (1, 32), ("tent",), repeats=1, rounds=1)["rows"]
    assert [(row["engine"], row["method"], row["batch"]) for row in rows] == [
        *(("torch", name, 1) for name in ("std", "tent", "trained")),
        *(("onnx", name, 1) for name in ("std", "trained")),
        *(("torch", name, 32) for name in ("std", "tent")),
    ]
    std, tent, trained_row = rows[:3]
    assert std["carried"] < tent["carried"] < 2 * std["carried"]
    assert trained_row["carried"] == sum(entry.bytes for entry in bundle.manifest.files.values())


@pytest.mark.slow
@pytest.mark.skipif(not can_measure(), reason="only Linux counts a process's memory so")
def test_memory_is_that_of_a_fresh_process(trained, monkeypatch):
    found = measure_memory("torch", "tent", trained[0], trained[1], 64)
    # A batch of 64 leaves at least the outputs of the first two convolutions behind for the backward pass.
    assert found["peak"] > 2 * 64 * 6 * 32 * 32 * 4
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(RwsError, match="'tent' failed: it ended with 1"):
        measure_memory("torch", "tent", trained[0], trained[1], 64)
