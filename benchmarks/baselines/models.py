"""The models of the baselines, all fine-tuned from the bundle's classifier with its BatchNorm back.

One robust model per corruption, and one model trained with all corruptions as augmentation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from rws.benchmarks.baselines.outputs import Split
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import MODEL
from rws.edge.onnx.graph import read_model
from rws.edge.onnx.torchvision_compat import torchvision
from rws.errors import FormatError, InputError
from rws.training.build.build import Build
from rws.training.build.recipe import DataRecipe, Recipe, SignatureRecipe, check_recipe
from rws.training.corruptions import CORRUPTIONS, corrupt_mixed, seeds_for
from rws.training.data.images import Images
from rws.training.jobs.progress import Progress, TimeLeft, job_log
from rws.training.jobs.seeds import derive_seed
from rws.training.jobs.store import STATE, Store
from rws.training.models.architectures import ModelSpec, build_model
from rws.training.models.fit import Corrupted, FitRecipe, fit, full_batches, predict, to_input
from rws.training.models.loop import Plan

MODELS_VERSION = 1
"""Raise it when the same recipe and images give other models."""

COUNTED = 10_000
"""Training images that statistics are taken over."""

AUGMENTED = FitRecipe(epochs=24, batch_size=128, learning_rate=0.1, warmup=0.1, label_smoothing=0.05)


@dataclass(frozen=True)
class AllCorrupted(Corrupted):
    """Every corruption as augmentation: one image in 20 stays clean, the others share the 19 types equally.

    Half of them are at `severity` (that of the evaluation), half at a real one, uniform from 1 to there.
    """

    name: str | None = "all"
    severity: float = 5.0

    def __call__(self, pixels: Tensor, seeds: Tensor) -> Tensor:
        """Corrupt uint8 (N, 3, H, W); the draw depends only on the seeds, int64 (N,)."""
        types = seeds % (1 + len(CORRUPTIONS)) - 1
        # The seeds are hashes already: other bits of theirs serve as a coin and as a uniform number.
        uniform = ((seeds >> 16) % 65536).float() / 65536
        full = (seeds >> 40) % 2 == 0
        severities = torch.where(full, self.severity, 1 + (self.severity - 1) * uniform)
        return corrupt_mixed(pixels, types, severities, seeds)


@dataclass(frozen=True)
class AugMixed(Corrupted):
    """AugMix (Hendrycks et al. 2020, arXiv 1912.02781) as torchvision has it, without the Jensen-Shannon loss.

    As in the paper, operations that are among the corruptions of the test are left out.
    """

    name: str | None = "augmix"

    def __call__(self, pixels: Tensor, seeds: Tensor) -> Tensor:
        """Mix each of uint8 (N, 3, H, W) with chains of simple operations; the draw depends only on the seeds (N,)."""
        mix = torchvision.transforms.AugMix(all_ops=False)
        found = []
        with torch.random.fork_rng(devices=[]):
            for image, seed in zip(pixels, seeds.tolist(), strict=True):
                torch.manual_seed(seed)
                found.append(mix(image))
        return torch.stack(found)


def folded_weights(model: bytes) -> dict[str, Tensor]:
    """Return the initialisers of an ONNX model by name, float32."""
    graph = read_model(model).graph
    return {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}


def unfold(module: nn.Module, weights: dict[str, Tensor], images: Images) -> nn.Module:
    """Give a network whose BatchNorm was folded into its convolutions the BatchNorm back, in eval mode.

    Folding makes a convolution w and a BatchNorm (γ, β, m, s²) one convolution w' = w·γ/√(s²+ε), b' = β − m·γ/√(s²+ε).
    Here each convolution keeps w' and no bias, m and s² are those of what the BatchNorm is given over the images, every
    layer fed by the folded network, and γ = √(s²+ε), β = m + b'. In eval mode that is the folded network. As BatchNorm
    cancels any scale of a channel, it also is the original network, up to the estimate of the running statistics and
    the sign of γ: adapting the statistics or γ and β does what it does to the original.

    Args:
        module: the network with BatchNorm after each convolution; its tensors are overwritten.
        weights: the folded network's, by name (`<convolution>.weight`, `<convolution>.bias`, …).
        images: clean training images.

    Raises:
        FormatError: if the module has tensors that the folded network does not have, or of another shape.
        InputError: if there is no BatchNorm to give back.
    """
    pairs = _pairs(module)
    if not pairs:
        raise InputError("the model has no BatchNorm after its convolutions; baselines that adapt it need one")
    state = module.state_dict()
    norms = {name for _, name in pairs}
    for name in [name for name in state if name.rpartition(".")[0] not in norms]:
        if name not in weights or weights[name].shape != state[name].shape:
            shape = tuple(state[name].shape)
            raise FormatError(f"the bundle's model has no tensor {name} {shape}; build the bundle again")
        state[name] = weights[name]
    for convolution, norm in pairs:
        epsilon = _norm(module, norm).eps
        state[f"{norm}.bias"] = weights[f"{convolution}.bias"]
        state[f"{norm}.running_mean"] = torch.zeros_like(state[f"{norm}.running_mean"])
        # For now each BatchNorm only adds the bias: the network is the folded one while its outputs are summed up.
        state[f"{norm}.weight"] = torch.ones_like(state[f"{norm}.weight"])
        state[f"{norm}.running_var"] = torch.full_like(state[f"{norm}.running_var"], 1 - epsilon)
    module.load_state_dict(state)
    mean, variance = _statistics(module, [norm for _, norm in pairs], images)
    for convolution, norm in pairs:
        layer = _norm(module, norm)
        layer.running_mean, layer.running_var = mean[norm].float(), variance[norm].float()
        layer.weight.data = (layer.running_var.double() + layer.eps).sqrt().float()
        layer.bias.data = (mean[norm] + weights[f"{convolution}.bias"].double()).float()
    return module.eval()


def _norm(module: nn.Module, name: str) -> nn.BatchNorm2d:
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.BatchNorm2d)
    return layer


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    named = [(name, layer) for name, layer in module.named_modules() if not list(layer.children())]
    return [
        (name, after)
        for (name, layer), (after, follower) in pairwise(named)
        if isinstance(layer, nn.Conv2d) and isinstance(follower, nn.BatchNorm2d)
    ]


def _statistics(module: nn.Module, norms: list[str], images: Images) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    # Mean and (biased) variance of what each BatchNorm normalises, over the images, float64 (C,).
    sums, squares, count = dict[str, Tensor](), dict[str, Tensor](), dict[str, int]()

    def add(name: str, given: Tensor) -> None:
        flat = given.transpose(0, 1).flatten(1).double()
        sums[name] = sums.get(name, 0) + flat.sum(1)
        squares[name] = squares.get(name, 0) + flat.square().sum(1)
        count[name] = count.get(name, 0) + flat.shape[1]

    handles = [
        module.get_submodule(name).register_forward_pre_hook(lambda _layer, given, name=name: add(name, given[0]))
        for name in norms
    ]
    predict(module, images.pixels, batch_size=500)
    for handle in handles:
        handle.remove()
    mean = {name: sums[name] / count[name] for name in norms}
    return mean, {name: (squares[name] / count[name] - mean[name].square()).clamp(min=0) for name in norms}


def _recipe_of(bundle: Bundle) -> Recipe:
    # The oracle's part may be of another version and is left out.
    stored = bundle.manifest.provenance.get("recipe")
    parts = {"data": DataRecipe, "model": ModelSpec, "robust": FitRecipe, "signatures": SignatureRecipe}
    if not isinstance(stored, dict) or not {"name", "seed", *parts} <= stored.keys():
        raise InputError(f"{bundle.path} does not say by which recipe it was built; use a bundle of `rws train`")
    # Of the signatures only the severity is needed; bundles of before also have keys that are unknown today.
    signatures = {key: value for key, value in dict(stored["signatures"]).items() if key == "severity"}
    stored = {**stored, "signatures": signatures}
    parsed: dict[str, Any] = {
        name: check_recipe(schema, stored[name], f"{bundle.path} [{name}]") for name, schema in parts.items()
    }
    return Recipe(name=stored["name"], seed=stored["seed"], **parsed)


def _kind(job: str, recipe: FitRecipe) -> str:
    """Return the kind of a step: what it costs depends on the batch and on what is done to images."""
    return f"step of {recipe.batch_size} {'AugMix' if job == 'augmix' else 'corrupted'}"


class BaselineModels:
    """The baselines' models, each trained once and kept; a training that was stopped continues from its last epoch.

    Raises InputError if the bundle does not say what its classifier was built by. Its methods raise it where a model is
    missing and there is no source, or was trained by another recipe.

    Args:
        source: the images that the bundle was built from: folder or data set name. None trains nothing.
        work: folder for checkpoints. A bundle with another model gets its own folder in it.
        augmented: how to train that model; the robust ones are trained as the bundle's recipe says.
        progress: see `rws.training.jobs.progress.job_log`.
    """

    def __init__(
        self,
        bundle: Bundle,
        source: str | None,
        work: Path,
        *,
        augmented: FitRecipe = AUGMENTED,
        progress: Progress | None = None,
    ) -> None:
        self.recipe = _recipe_of(bundle)
        self.folder = work / f"{bundle.manifest.name}-{bundle.manifest.files[MODEL].sha256[:12]}"
        self.bundle, self._progress, self._source, self._work = bundle, progress, source, work
        self._augmented, self._left = augmented, TimeLeft()

    @cached_property
    def train(self) -> Images:
        """The images that the bundle's models were trained on."""
        if self._source is None:
            raise InputError(f"{self.folder} lacks models of the baselines; train them with `rws bench baselines`")
        self.folder.mkdir(parents=True, exist_ok=True)
        return Build(self.recipe, self._source, self._work, size=self.bundle.manifest.input.height).train

    @cached_property
    def _start(self) -> Mapping[str, Tensor]:
        def unfolded(images: Images, checkpoint: Path | None) -> Mapping[str, Tensor]:
            return unfold(self._network(), folded_weights(self.bundle.read(MODEL)), images).state_dict()

        return self._stored("unfolded", [], unfolded)

    def _network(self) -> nn.Module:
        return build_model(replace(self.recipe.model, weights=""), len(self.bundle.manifest.classes)).eval()

    def unfolded(self) -> nn.Module:
        """Return a new copy of the bundle's classifier with BatchNorm, in eval mode."""
        model = self._network()
        model.load_state_dict(self._start)
        return model

    def robust(self, corruption: str) -> nn.Module:
        """Return the model for one corruption: the classifier, fine-tuned with images of that corruption alone."""
        corrupted = Corrupted(corruption, self.recipe.signatures.severity)
        return self._fitted(f"robust-{corruption}", self.recipe.robust, corrupted)

    def augmented(self) -> nn.Module:
        """Return one model for everything: the classifier, fine-tuned with all corruptions as augmentation."""
        return self._fitted("augmented", self._augmented, AllCorrupted(severity=self.recipe.signatures.severity))

    def augmix(self) -> nn.Module:
        """Return one model for everything that has seen no corruption: fine-tuned as long with AugMix."""
        return self._fitted("augmix", self._augmented, AugMixed())

    def statistics(self) -> list[Mapping[str, Tensor]]:
        """Return the statistics of every BatchNorm of the classifier on images with each of `CORRUPTIONS`."""
        return [self._statistics_of(Corrupted(name, self.recipe.signatures.severity)) for name in CORRUPTIONS]

    def _statistics_of(self, corrupted: Corrupted) -> Mapping[str, Tensor]:
        def made(images: Images, _checkpoint: Path | None) -> Mapping[str, Tensor]:
            model, parts = self.unfolded(), self._counted(images)
            seeds = torch.split(seeds_for(derive_seed(self.recipe.seed, "statistics of types"), COUNTED), 500)
            pairs = zip(parts, seeds, strict=False)
            update_bn((to_input(corrupted(part, own[: len(part)])) for part, own in pairs), model)
            state = model.state_dict()
            return {key: tensor for key, tensor in state.items() if key.endswith(("running_mean", "running_var"))}

        return self._stored(f"statistics-{corrupted.name}", [repr(corrupted), COUNTED], made)

    def _counted(self, images: Images) -> tuple[Tensor, ...]:
        """Return full batches of `COUNTED` images, or of all, in random order: they lie class by class."""
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.recipe.seed))
        return tuple(images.pixels[index] for index in full_batches(order[:COUNTED], 500))

    def centre(self) -> Tensor:
        """Return the mean of the classifier's last features on clean training images, float32 (F,)."""

        def made(images: Images, _checkpoint: Path | None) -> Mapping[str, Tensor]:
            split = Split(self.unfolded())
            return {"centre": torch.cat([split(to_input(part))[0] for part in self._counted(images)]).mean(0)}

        return self._stored("centre", [COUNTED], made)["centre"]

    def _fitted(self, job: str, recipe: FitRecipe, corrupted: Corrupted) -> nn.Module:
        seed = derive_seed(self.recipe.seed, "continued training")

        def trained(images: Images, checkpoint: Path | None) -> Mapping[str, Tensor]:
            model = self.unfolded()
            report = job_log(self.folder, job, self._progress, self._left, {"steps": _kind(job, recipe)})
            fit(model, images, recipe, corrupted=corrupted, seed=seed, checkpoint=checkpoint, report=report)
            report({"done": True})
            return model.state_dict()

        model = self._network()
        model.load_state_dict(self._stored(job, [recipe, repr(corrupted), seed], trained))
        self._left.finish(job)
        return model

    def _stored(
        self, name: str, made_by: list[Any], make: Callable[[Images, Path | None], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        # Without a source, `train` refuses to have it made.
        identity = [MODELS_VERSION, self.bundle.manifest.files[MODEL].sha256, *made_by]
        entry = Store(self.folder, "refuse").entry(f"{name}.pt", identity, STATE)
        found = entry.load()
        return entry.get(partial(make, self.train, entry.checkpoint)) if found is None else found

    def train_all(self) -> None:
        """Make what is missing: the models for everything first, then one model per corruption, then the rest."""
        jobs = {f"robust-{name}": self.recipe.robust for name in CORRUPTIONS}
        jobs |= {"augmented": self._augmented, "augmix": self._augmented}
        for job, recipe in jobs.items():
            plan = Plan.over(len(self.train), recipe.epochs, recipe.batch_size, recipe.warmup, "")
            images, short = self.train.first(recipe.batch_size), replace(recipe, epochs=1)
            seen = AugMixed() if job == "augmix" else AllCorrupted()
            probe = partial(fit, self._network(), images, short, corrupted=seen)
            self._left.plan(job, _kind(job, recipe), plan.steps, probe)
        self.augmented()
        self.augmix()
        for corruption in CORRUPTIONS:
            self.robust(corruption)
        self.statistics()
        self.centre()
