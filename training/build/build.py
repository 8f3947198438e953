"""From clean images to a bundle, as jobs that each make one file in the work folder, or find it there.

A build that was stopped resumes; several processes that share the folder can each take some of the jobs.
"""

import copy
import hashlib
import json
import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.edit import BundleParts, write_bundle
from rws.edge.bundle.manifest import MODEL
from rws.edge.live.base import PatchableModel
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.live.torch_model import TorchModel
from rws.edge.preprocess import InputSpec
from rws.edge.signatures.quantization import Bits, Per
from rws.edge.signatures.signature_set import SignatureSet, shallow_sha256
from rws.errors import InputError, UsageError, check_known, first_line
from rws.oracle.policy import GainTable
from rws.training.build.recipe import Recipe, check_recipe
from rws.training.corruptions import CORRUPTIONS
from rws.training.data.images import Images, fitted, load_images, split_train_validation
from rws.training.evaluation.evaluator import percent_right
from rws.training.evaluation.gain import check_signed, count_answers, measure_gain
from rws.training.jobs.driver import HERE, Where, do_jobs
from rws.training.jobs.graph import Graph, Job, Work
from rws.training.jobs.progress import Progress, TimeLeft, job_log
from rws.training.jobs.seeds import derive_seed
from rws.training.jobs.store import ARRAYS, SCORED, STATE, Codec, Entry, Store, T
from rws.training.models.architectures import (
    Airbench,
    ModelSpec,
    build_model,
    fold_batchnorm,
    shallow_tensors,
    take_fitting,
)
from rws.training.models.export import export_onnx, narrowed, rounded
from rws.training.models.fit import Corrupted, FitRecipe, accuracy, channels_last, fit, predict
from rws.training.models.loop import Plan
from rws.training.oracle.calibration import OracleScores, calibrate_on_images, export_oracle, weigh_clean
from rws.training.oracle.fit import fit_oracle, stored_oracle
from rws.training.oracle.sampling import LEVELS, training_prior
from rws.training.signatures.deltas import DELTAS, Deltas
from rws.training.signatures.residual import residual_signature
from rws.training.signatures.tuned import TuneRecipe, tuned_signature

JOBS = ("init", "std", "oracle", "tuned", "residual", "gain", "augmented")
BUILD_VERSION = 1  # raise it when the same recipe and images give other files


class Build:
    """The jobs of one build.

    Args:
        source: image folder or data set name; its `train` split is used, never its test split.
        size: side that images are resized to, in pixels; None takes them as they are.
        onto: a bundle whose model and signatures are kept: only the oracle and the gain table are made.
        ancestor: another build, whose init (but its head) this one's begins from, so that signatures fit both.
        progress: called with {job, seconds, …} after each epoch or part of a job.
    Raises InputError if the device is not there, or the bundle has a signature for an unknown corruption. Jobs raise it
    where `work` holds files of another build, or the images do not fit the bundle.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: str,
        work: Path,
        *,
        size: int | None = None,
        device: str = "cpu",
        onto: Bundle | None = None,
        ancestor: "Build | None" = None,
        progress: Progress | None = None,
    ) -> None:
        if onto is not None:
            check_signed(onto.signatures.names)
            recipe, size = _as_the_bundle_was_split(recipe, onto), size or onto.manifest.input.height
        self.recipe, self.source, self.work, self.size = recipe, source, work, size
        self.onto, self.ancestor = onto, ancestor
        try:
            self.device = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"device {device!r} cannot be used ({first_line(error)}); take cpu") from error
        work.mkdir(parents=True, exist_ok=True)
        self._store, self.time_left = Store(work, "refuse"), TimeLeft()
        self._report = partial(job_log, work, progress=progress, left=self.time_left)

    @cached_property
    def _splits(self) -> tuple[Images, Images]:
        part = self.recipe.data
        images, classes, cache = part.images or None, part.classes or None, self.work / "images"
        data = load_images(
            self.source, "train", size=self.size, cache=cache, images=images, classes=classes, seed=self.recipe.seed
        )
        height, width = data.pixels.shape[2:]
        if height != width:
            raise InputError(f"{self.source}: images are {width}x{height}, training takes square ones; give --size")
        if self.onto is not None:
            data = fitted(data, self.onto.manifest.classes, self.onto.manifest.input.height, self.source)
        count = min(part.validation, len(data) // 10)
        if count < 1:
            raise InputError(f"{self.source}: {len(data)} images, a tenth of which are for validation; give 10 or more")
        train, validation = split_train_validation(data, count, self.recipe.seed)
        return train.to(self.device), validation.to(self.device)

    @property
    def train(self) -> Images:
        """The images that models, signatures and the oracle learn from."""
        return self._splits[0]

    @property
    def validation(self) -> Images:
        """The images that calibration and the gain table are measured on."""
        return self._splits[1]

    @cached_property
    def _data_digest(self) -> str:
        return self.train.digest()

    def identity(self) -> Any:
        """Return everything that decides the trainings: images, recipe and ancestors, as plain JSON data."""
        ancestor = self.ancestor and self.ancestor.identity()
        return json.loads(json.dumps([BUILD_VERSION, self._data_digest, asdict(self.recipe), ancestor]))

    def _entry(self, name: str, codec: Codec[T], *depends_on: Any) -> Entry[T]:
        identity = {"version": BUILD_VERSION, "images": self._data_digest, "seed": self.recipe.seed, "of": depends_on}
        return self._store.entry(name, identity, codec)

    @property
    def _trained(self) -> ModelSpec:
        return replace(self.recipe.model, mirrored=False)

    def new_model(self) -> nn.Module:
        """Return the untrained init: a new classifier, or the ancestor's body under a new head."""
        torch.manual_seed(self.recipe.seed)
        model = build_model(self._trained, len(self.train.classes))
        if isinstance(model, Airbench) and not self.recipe.model.weights:
            model.whiten(self.train.pixels[:: max(1, len(self.train) // 5000)].cpu())
        if self.ancestor is not None:
            head = next(name for name, layer in reversed([*model.named_modules()]) if isinstance(layer, nn.Linear))
            found = self.ancestor.init().state_dict()
            body = {name: tensor for name, tensor in found.items() if not name.startswith(f"{head}.")}
            take_fitting(model, body, f"the ancestor {self.ancestor.recipe.name}")
        return model

    def _fit(
        self, job: str, model: nn.Module, recipe: FitRecipe, corrupted: Corrupted, seed: int, *origin: Any
    ) -> nn.Module:
        entry = self._entry(f"{job}.pt", STATE, self._trained, recipe, corrupted, *origin)

        def make() -> Mapping[str, torch.Tensor]:
            report = self._report(job, kinds={"steps": _kind_of_fit(recipe, corrupted)})
            how = partial(fit, corrupted=corrupted, seed=seed, checkpoint=entry.checkpoint, report=report)
            how(model, self.train, recipe)
            standard = corrupted.name is None or corrupted.share < 1
            scores = {"validation_accuracy": round(accuracy(model, self.validation), 2)} if standard else {}
            report({"done": True, **scores})
            return model.state_dict()

        state = entry.get(make)
        self.time_left.finish(job)
        channels_last(model, self.device).load_state_dict(state)
        return model.eval()

    def init(self) -> nn.Module:
        """Train the standard model that all others continue from, or load it."""
        model = self.new_model()
        shallow_tensors(fold_batchnorm(model), self.recipe.signatures.layers)  # refuses too few before the training
        return self._fit("init", model, self.recipe.init, self._standard, self.recipe.seed, *self._ancestors())

    @property
    def _standard(self) -> Corrupted:
        """What a standard model sees."""
        share = self.recipe.corrupted_share
        return Corrupted("all", (1.0, 5.0), share) if share else Corrupted()

    def _ancestors(self) -> list[Any]:
        before = self.ancestor
        return [] if before is None else [before.recipe.init, before._data_digest, *before._ancestors()]

    def continued(self, job: str, start: nn.Module, recipe: FitRecipe, corrupted: Corrupted, *origin: Any) -> nn.Module:
        """Train another model on this build's images, from a copy of `start`; `origin`: what `start` was made from."""
        model, seed = copy.deepcopy(start), derive_seed(self.recipe.seed, "continued training")
        return self._fit(job, model, recipe, corrupted, seed, *origin, *self._ancestors())

    def _continue(self, job: str, recipe: FitRecipe, corrupted: Corrupted) -> nn.Module:
        init, first = self.init(), self.recipe.signatures.fold_first
        return self.continued(job, fold_batchnorm(init) if first else init, recipe, corrupted, self.recipe.init, first)

    def std(self) -> nn.Module:
        """Train θ_std: the init, continued on the same images."""
        return self._continue("std", self.recipe.continued, self._standard)

    def robust(self, corruption: str) -> nn.Module:
        """Train θ_r: the init, continued on images with one corruption."""
        corrupted = Corrupted(corruption, self.recipe.signatures.severity)
        return self._continue(f"robust-{corruption}", self.recipe.robust, corrupted)

    def augmented(self) -> nn.Module:
        """Train one model for everything: the init, continued on images with one of all corruptions each."""
        return self._continue("augmented", self.recipe.augmented, Corrupted("all", self.recipe.signatures.severity))

    @cached_property
    def folded(self) -> nn.Module:
        """θ_std with BatchNorm folded, its deep weights rounded as they are stored: what is deployed and patched."""
        model = fold_batchnorm(self.std())
        shallow = shallow_tensors(model, self.recipe.signatures.layers)
        for name, weight in model.named_parameters():
            if name not in shallow and weight.dim() > 1:
                weight.data = rounded(weight.data, self.recipe.stored)
        return model

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """The tensors that signatures patch."""
        return shallow_tensors(self.folded, self.recipe.signatures.layers)

    def method_name(self, method: str) -> str:
        """Return what a method's files are called: `tuned-<target>` is `tuned` if that is the recipe's own target."""
        return "tuned" if method == f"tuned-{self.recipe.tuned.target}" else method

    def signature(self, method: str, corruption: str) -> Deltas:
        """Return the float32 signature by `residual`, `tuned`, or `tuned-<target>`: the same with another target."""
        settings, method, tune = self.recipe.signatures, self.method_name(method), self.recipe.tuned
        kind, _, target = method.partition("-")
        if target:
            tune = check_recipe(TuneRecipe, {"target": target}, f"signature method {method}", tune)
        made_by = tune if kind == "tuned" else [self.recipe.init, self.recipe.robust, settings.projection]
        corrupted, job = Corrupted(corruption, settings.severity), f"signature-{method}-{corruption}"
        entry = self._entry(
            f"{job}.safetensors", DELTAS, shallow_sha256(self.clean_tensors()), corrupted, made_by, self.recipe.stored
        )

        def make() -> Deltas:
            report = self._report(job, kinds={"steps": f"{method} step"})
            if kind == "tuned":
                seed = derive_seed(self.recipe.seed, "signature training")
                how = (self.folded, self.train, corrupted, self.tensors, tune)
                deltas = tuned_signature(*how, seed=seed, checkpoint=entry.checkpoint, report=report)
            else:
                models = (fold_batchnorm(self.init()), self.folded, fold_batchnorm(self.robust(corruption)))
                init, std, robust = (dict(model.named_parameters()) for model in models)
                deltas = residual_signature(init, std, robust, self.tensors, settings.projection)
            report({"done": True})
            return deltas

        deltas = entry.get(make)
        self.time_left.finish(job)
        return deltas

    def clean_tensors(self) -> dict[str, np.ndarray]:
        """Return the clean shallow tensors, float32, by name, in order."""
        parameters = dict(self.folded.named_parameters())
        return {name: parameters[name].detach().cpu().numpy() for name in self.tensors}

    def signatures(self, method: str | None = None, bits: Bits | None = None, per: Per | None = None) -> SignatureSet:
        """Return all signatures, quantised; default: as the recipe says. Those of the bundle built onto, if any."""
        if self.onto is not None:
            return self.onto.signatures
        settings = self.recipe.signatures
        made = {name: self.signature(method or settings.method, name) for name in CORRUPTIONS}
        deltas = {name: {tensor: exact[tensor].numpy() for tensor in self.tensors} for name, exact in made.items()}
        clean_hash = shallow_sha256(self.clean_tensors())
        return SignatureSet.from_deltas(deltas, bits or settings.bits, per or settings.per, clean_hash=clean_hash)

    def oracle(self) -> tuple[bytes, OracleScores]:
        """Return the oracle as ONNX bytes, and its scores on validation images."""
        recall = self.recipe.calibration.clean_recall
        made = self._entry("oracle.npz", SCORED, self.recipe.oracle, recall).get(self._make_oracle)
        self.time_left.finish("oracle")
        return made

    def _make_oracle(self) -> tuple[bytes, OracleScores]:
        report, recipe = self._report("oracle", kinds={"steps": "oracle step"}), self.recipe.oracle
        seed = self.recipe.seed
        network = stored_oracle(self._store, "oracle.pt", self.train, recipe, seed=seed, report=report)
        recall = self.recipe.calibration.clean_recall
        calibration, scores = calibrate_on_images(network, self.validation.pixels.cpu(), recipe, recall, seed)
        report({"done": True, **scores})
        return export_oracle(network, calibration, self.train.size), scores

    @cached_property
    def _network(self) -> bytes:
        if self.onto is not None:
            return self.onto.read(MODEL)
        deployed = self.folded
        if self.recipe.model.mirrored:  # what is trained is not: that would take twice as long
            deployed = fold_batchnorm(build_model(replace(self.recipe.model, weights=""), len(self.train.classes)))
            deployed.load_state_dict(self.folded.state_dict())
        exported = export_onnx(deployed, self.train.size, keep=self.tensors)
        return narrowed(exported, self.recipe.stored, self.tensors)

    def _patchable(self) -> PatchableModel:
        signatures = self.signatures()
        if self.device.type == "cpu":
            return OnnxModel(self._network, signatures, signatures.tensors, "cpu", torch.get_num_threads())
        return TorchModel.from_onnx(self._network, signatures, signatures.tensors, str(self.device))

    def gain(self) -> GainTable:
        """Measure the gain table of the shipped signatures, or load it."""
        signatures, recipe, seed = self.signatures(), self.recipe.calibration, self.recipe.seed
        inputs = [hashlib.sha256(content).hexdigest() for content in (self._network, signatures.to_bytes())]
        entry, names = self._entry("gain.npz", ARRAYS, recipe, *inputs), signatures.names

        data = self.validation

        def score(model: PatchableModel, pixels: Tensor) -> float:
            return percent_right(model, pixels, data.labels[: len(pixels)])

        def make() -> Mapping[str, NDArray[Any]]:
            model, report = self._patchable(), self._report("gain", kinds={"answers": "answer"})
            table = measure_gain(model, names, data.pixels, recipe, score, seed=seed, report=report)
            report({"done": True})
            return table.to_arrays()

        return GainTable.from_arrays(entry.get(make), CORRUPTIONS, LEVELS)

    def _provenance(self) -> dict[str, Any]:
        """What made the model and the signatures is that of the bundle built onto."""
        found = {
            "recipe": asdict(self.recipe),
            "data": {"source": Path(self.source).name, "train": self.train.digest(), "images": len(self.train)},
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            "machine": {"processor": platform.machine(), "device": self.device.type},
        }
        if self.onto is not None:
            before = self.onto.manifest.provenance
            made = {name: found["recipe"][name] for name in ("oracle", "calibration", "stream")}
            found["recipe"] = {**found["recipe"], **before.get("recipe", {}), **made}
            model = {name: before[name] for name in ("data", "versions") if name in before}
            found["model"] = before.get("model", model)
        return found

    def bundle(self, out: Path) -> None:
        """Write the bundle folder, atomically."""
        table = self.gain()
        oracle, oracle_scores = self.oracle()
        prior = weigh_clean(training_prior(self.recipe.oracle), oracle_scores["clean_weight"])
        own = table.accuracy[len(LEVELS) :: len(LEVELS)]  # at the highest level of each corruption
        perfect = [row[table.own(name)].max() for name, row in zip(CORRUPTIONS, own, strict=True)]
        parts = BundleParts(
            name=self.recipe.name if self.onto is None else self.onto.manifest.name,
            classes=self.train.classes,
            input=InputSpec(self.train.size, self.train.size, "RGB"),
            model=self._network,
            signatures=self.signatures(),
            oracle=oracle,
            table=table,
            policy=self.recipe.stream.policy_settings(),
            filter=self.recipe.stream.filter_settings([round(share, 7) for share in prior.tolist()]),
            provenance=self._provenance(),
            measured={
                "split": "validation",
                "ta": round(float(table.accuracy[0, 0]), 2),
                "ra_std_severity_5": round(float(np.mean([row[0] for row in own])), 2),
                "ra_perfect_severity_5": round(float(np.mean(perfect)), 2),
                "oracle": oracle_scores,
            },
        )
        write_bundle(out, parts)

    def graph(self, kinds: Collection[str] = ()) -> Graph:
        """Return the jobs of some kinds and all that they need; UsageError for an unknown kind.

        `kinds`: of `JOBS`, `robust`, `tuned-<target>`; none: what `bundle` needs.
        """
        return {name: job for kind in self._kinds(kinds) for name, job in self._jobs(kind).items()}

    def _kinds(self, kinds: Collection[str]) -> Collection[str]:
        made = () if self.onto is not None else ("std", self.recipe.signatures.method)
        check_known("job", [kind for kind in kinds if not kind.startswith("tuned-")], (*JOBS, "robust"))
        return kinds or (*made, "oracle", "gain")

    def _jobs(self, kind: str) -> dict[str, Job]:
        """Return the jobs of a kind after those they need."""
        if kind in ("init", "oracle"):
            return {kind: Job(getattr(self, kind))}
        if kind in ("std", "augmented"):
            return self._jobs("init") | {kind: Job(getattr(self, kind), ("init",))}
        if kind == "robust":
            robust = {f"robust-{name}": Job(partial(self.robust, name), ("init",)) for name in CORRUPTIONS}
            return self._jobs("init") | robust
        if kind == "gain":
            before = {} if self.onto is not None else self._jobs(self.recipe.signatures.method)
            return before | {"gain": Job(self.gain, tuple(before))}
        before = self._jobs("std") | (self._jobs("robust") if kind == "residual" else {})
        for name in CORRUPTIONS:
            after = ("std", f"robust-{name}") if kind == "residual" else ("std",)
            before[f"signature-{kind}-{name}"] = Job(partial(self.signature, kind, name), after)
        return before

    def run(self, kinds: Collection[str] = (), where: Where = HERE) -> None:
        """Do the jobs of some kinds that are not done, as `graph` and `do_jobs` have it."""
        graph = self.graph(kinds)
        self.plan(self._kinds(kinds))
        onto = self.onto and self.onto.path.absolute()
        arguments = (self.recipe, self.source, self.work, self.size, str(self.device), onto, tuple(kinds))
        do_jobs(graph, Work(open_graph, arguments, self.work), where)

    def plan(self, kinds: Collection[str]) -> None:
        """Plan what is made, so that records say how long it takes: some of `JOBS`, `robust`, `tuned-<target>`."""
        recipe, corrupted = self.recipe, Corrupted("all", self.recipe.signatures.severity)
        signatures = [self.method_name(kind) for kind in kinds if kind.startswith(("tuned", "residual"))]
        fits = {"augmented": (recipe.augmented, corrupted)} if "augmented" in kinds else {}
        if {"robust", "residual"} & set(kinds):
            fits |= {f"robust-{name}": (recipe.robust, corrupted) for name in CORRUPTIONS}
        if "std" in kinds or signatures:
            fits["std"] = (recipe.continued, self._standard)
        if "init" in kinds or fits:
            fits["init"] = (recipe.init, self._standard)
        untrained = build_model(replace(self._trained, weights=""), len(self.train.classes)).to(self.device).eval()
        for job, (how, seen) in fits.items():
            self._plan_steps(job, _kind_of_fit(how, seen), how, partial(fit, untrained, corrupted=seen))
        model = fold_batchnorm(untrained)
        tensors = shallow_tensors(model, recipe.signatures.layers)
        for method, name in product({*signatures} - {"residual"}, CORRUPTIONS):
            tune = partial(tuned_signature, model, corrupted=corrupted, tensors=tensors)
            self._plan_steps(f"signature-{method}-{name}", f"{method} step", recipe.tuned, tune)
        if "oracle" in kinds:
            self._plan_steps("oracle", "oracle step", recipe.oracle, fit_oracle)
        if "gain" in kinds:
            signed = CORRUPTIONS if self.onto is None else self.onto.signatures.names
            clean, one = count_answers(recipe.calibration, len(self.validation), len(signed))
            probe = partial(predict, model, sample := self.validation.pixels[:100])
            self.time_left.plan("gain", "answer", clean + len(CORRUPTIONS) * one, probe, len(sample))

    def _plan_steps(self, job: str, kind: str, recipe: Any, made: Callable[..., object]) -> None:
        steps = Plan.over(len(self.train), recipe.epochs, recipe.batch_size, recipe.warmup, "").steps
        one = {"data": self.train.first(recipe.batch_size), "recipe": replace(recipe, epochs=1)}
        self.time_left.plan(job, kind, steps, partial(made, **one))


def open_graph(
    recipe: Recipe,
    source: str,
    work: Path,
    size: int | None,
    device: str,
    onto: Path | None,
    kinds: Collection[str],
) -> Graph:
    """Open the graph of a build in another process."""
    kept = None if onto is None else Bundle.load_classifier(onto)
    return Build(recipe, source, work, size=size, device=device, onto=kept).graph(kinds)


def _kind_of_fit(recipe: FitRecipe, corrupted: Corrupted) -> str:
    """Return the kind of a step: what it costs depends on the batch and on whether images are corrupted."""
    return f"step of {recipe.batch_size} {'corrupted' if corrupted.name else 'clean'}"


def _as_the_bundle_was_split(recipe: Recipe, bundle: Bundle) -> Recipe:
    """Return a recipe with the bundle's seed and split: no image that its model has learnt from is for validation."""
    before = bundle.manifest.provenance.get("recipe", {})
    data = {key: before["data"][key] for key in ("validation", "images", "classes") if key in before.get("data", {})}
    part = {"seed": before.get("seed", recipe.seed), "data": data}
    return check_recipe(Recipe, part, f"provenance of bundle {bundle.manifest.name}", recipe)
