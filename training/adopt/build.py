"""A bundle for a deployed model, from clean images without labels; each part is a file in the work folder."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import DETECTOR_BUNDLE
from rws.edge.bundle.edit import BundleParts, check_bundle_folder, write_bundle
from rws.edge.bundle.manifest import ORACLE
from rws.edge.common.provenance import provenance
from rws.edge.live.base import PatchableModel
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.onnx.graph import clean_tensors, shallow_tensors
from rws.edge.signatures.signature_set import SignatureSet, shallow_sha256
from rws.errors import InputError, OperatorError
from rws.oracle.policy import GainTable, ReferencePolicy
from rws.training.adopt.model import ImportedModel
from rws.training.adopt.recipe import AdoptRecipe
from rws.training.adopt.trainable import AnyBatch, layers_within, signature_bytes, stem, trainable
from rws.training.adopt.tuning import Tuned, recalibrated
from rws.training.corruptions import CORRUPTIONS, KNOWN, corrupt, seeds_for
from rws.training.data.clean_images import CleanImages, shrunk
from rws.training.evaluation.evaluator import as_input, outputs_of
from rws.training.evaluation.gain import CalibrationRecipe, count_answers, measure_gain
from rws.training.jobs.driver import HERE, Where, do_jobs
from rws.training.jobs.graph import Graph, Job, Work
from rws.training.jobs.progress import Progress, TimeLeft, job_log
from rws.training.jobs.seeds import derive_seed
from rws.training.jobs.store import ARRAYS, SCORED, Codec, Entry, Store, T
from rws.training.models.allocator import keep_freed_memory
from rws.training.models.fit import to_input
from rws.training.models.loop import Plan, train
from rws.training.oracle.calibration import OracleScores
from rws.training.oracle.camera import CameraTraining, probe_step
from rws.training.oracle.sampling import LEVELS
from rws.training.signatures.deltas import DELTAS, Deltas
from rws.training.signatures.tuned import match_shallow
from rws.training.tasks.base import Tensors
from rws.training.tasks.registry import make_objective

SMALLEST_CROP = 128  # pixels; smaller inputs are trained on whole
FEWEST = 16  # images
FIRST = ("gaussian_noise", "defocus_blur", "fog", "jpeg_compression")  # of them a first bundle is made
LARGEST = 2**29  # bytes of outputs that are kept
FEWEST_AT_ONCE = 8  # images of a fixed batch whose mean and spread say something

# Corruptions whose training may start at the signature of one before them.
BEGINS_FROM = {
    "shot_noise": "gaussian_noise",
    "impulse_noise": "gaussian_noise",
    "speckle_noise": "shot_noise",
    "glass_blur": "defocus_blur",
    "motion_blur": "defocus_blur",
    "zoom_blur": "motion_blur",
    "gaussian_blur": "defocus_blur",
    "pixelate": "defocus_blur",
    "elastic_transform": "glass_blur",
    "frost": "snow",
    "contrast": "fog",
    "low_light": "shot_noise",
    "rain": "snow",
    "lens_dirt": "defocus_blur",
}

# Parts of the recipe that decide a signature, next to the number of its steps.
TUNED_BY = (
    "batch_size",
    "learning_rate",
    "warmup",
    "soft",
    "temperature",
    "draws",
    "most",
    "severities",
    "recalibrate",
)

ADOPT_VERSION = 6  # raise it when the same model, images and recipe give other files


class HeldOutScores(TypedDict):
    """Agreement with the labels, or the clean model, on held-out images by the task's metric, percent.

    `clean`: of clean images; at severity 5 with no patch, and with the perfect oracle: means over the 19.
    """

    clean: float
    no_patch_severity_5: float
    perfect_severity_5: float


class AdoptionBuild:
    """The jobs of one build. A signature brings the output on corrupted images back to the model's own on clean ones.

    Args:
        images: clean images of the model's size or larger, see `CleanImages`. What counts is agreement with their
            labels, else the clean model.
        classes: names in the order of the outputs; None: the model's, else `class 0`, ….
        onto: a bundle of the same model whose signatures and gain table are kept: only its oracle is made.
        progress: called with {job, seconds, …}.
    Raises InputError if there are too few images, or sizes or numbers do not fit; OperatorError as `trainable`.
    """

    def __init__(
        self,
        model: ImportedModel,
        images: CleanImages,
        recipe: AdoptRecipe,
        work: Path,
        *,
        classes: Sequence[str] | None = None,
        name: str = "adopted",
        onto: Bundle | None = None,
        progress: Progress | None = None,
    ) -> None:
        pixels, spec = images.pixels, model.input
        if len(pixels) < FEWEST:
            found = f"found {len(pixels)} images, expected {FEWEST} or more, better a hundred"
            raise InputError(f"{found}; if it is a video, take more of its frames with a smaller --every")
        tall, wide = pixels.shape[2] / spec.height, pixels.shape[3] / spec.width
        if pixels.shape[1] != 3 or min(tall, wide) < 1 or abs(tall - wide) * spec.width > 1:
            raise InputError(f"images are {tuple(pixels.shape[1:])}, the model takes {spec.height}x{spec.width} px")
        self.classes = _checked(model.classes if classes is None else classes, model)
        self.size = (spec.height, spec.width)
        self.objective = make_objective(model.task, self.classes, self.size, recipe.soft, recipe.temperature)
        self.model, self.recipe, self.work, self.name, self.onto = model, recipe, work, name, onto
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(recipe.seed))
        if images.sequential:
            order = torch.arange(len(pixels)).flip(0)
        kept = min(recipe.held_out_most, LARGEST // self._output_bytes)
        count = max(1, min(kept, round(recipe.held_out * len(pixels))))
        self._frames, self._held_out_frames = pixels[order[count:]], pixels[order[:count]]
        self.train, self.held_out = shrunk(self._frames, self.size), shrunk(self._held_out_frames, self.size)
        self.photographs = images.photographs
        self._labels = None if images.labels is None else images.labels[order[:count]]
        self._proto = onnx.load_model_from_string(model.onnx)
        self.layers = recipe.layers or layers_within(self._proto)
        self.tensors = shallow_tensors(self._proto, self.layers)
        self._kept = None if onto is None else onto.signatures.fitted_to(self.clean)
        keep_freed_memory()
        self.why_shallow = ""
        self._aims: Tensors = ()
        self.target, self._network, self._parameters = self._trainable()
        work.mkdir(parents=True, exist_ok=True)
        self._store = Store(work, "keep")  # `--quick` and the full training share the default folder
        self._left = TimeLeft()
        kinds = {"frames": "frame", "steps": "step", "answers": "answer"}
        self._report = partial(job_log, work, progress=progress, left=self._left, kinds=kinds)

    def _trainable(self) -> tuple[str, AnyBatch, dict[str, Tensor]]:
        proto, tensors, how = self._proto, self.tensors, (self.model.input, self.model.batch)
        try:
            if self.recipe.target != "shallow":
                return ("output", *trainable(proto, tensors, *how))
        except OperatorError as error:
            if self.recipe.target == "output":
                raise
            self.why_shallow = str(error)
        return ("shallow", *trainable(stem(proto, tensors), tensors, *how))

    @property
    def _output_bytes(self) -> int:
        return 4 * sum(math.prod(shape) for shape in self.model.shapes)

    @property
    def share(self) -> float:
        """About what part of the model's bytes a signature takes, percent."""
        return 100 * signature_bytes(self._proto, self.layers) / len(self.model.onnx)

    @cached_property
    def clean(self) -> dict[str, NDArray[np.float32]]:
        """The clean shallow tensors, float32, by name, in order."""
        return clean_tensors(self._proto, self.tensors)

    @cached_property
    def reference(self) -> tuple[NDArray[Any], ...]:
        """What is right for the held-out images: the clean model's outputs, or logits of the labels."""
        if self._labels is not None:
            return (np.eye(len(self.classes), dtype=np.float32)[self._labels.numpy()],)
        return outputs_of(self._deployed(None), self.held_out, self.model.input)

    def _deployed(self, signatures: SignatureSet | None) -> OnnxModel:
        how = ("cpu", torch.get_num_threads(), "auto", self.size, self.model.outputs)
        return OnnxModel(self.model.onnx, signatures, self.tensors, *how)

    def _plan(self) -> None:
        recipe, held_out, plan = self.recipe, len(self.held_out), self._left.plan
        if self.photographs is not None:
            plan("oracle", "frame", recipe.oracle.frames)
            plan("oracle", "oracle step", recipe.oracle.steps, partial(probe_step, recipe.oracle))
        if self.onto is not None:
            return
        for name in KNOWN:
            plan(f"signature-{name}", "frame", len(self._crops(recipe.steps)))
            plan(f"signature-{name}", "step", recipe.steps)
        clean, corrupted = count_answers(recipe.calibration, held_out, len(KNOWN))
        answers = clean + len(KNOWN) * corrupted + 2 * len(CORRUPTIONS) * held_out
        sample = self.held_out[:25]
        model = self._deployed(None)
        plan("gain", "answer", answers, partial(model.predict, as_input(sample, self.model.input)), len(sample))

    @cached_property
    def _identity(self) -> list[Any]:
        digest = hashlib.sha256(self.model.onnx)
        digest.update(self._frames.numpy().tobytes())
        digest.update(self._held_out_frames.numpy().tobytes())
        return [digest.hexdigest(), self.recipe.seed]

    def _entry(self, name: str, codec: Codec[T], *depends_on: Any) -> Entry[T]:
        model_and_images, seed = self._identity
        identity = {"version": ADOPT_VERSION, "model and images": model_and_images, "seed": seed, "of": depends_on}
        return self._store.entry(name, identity, codec)

    @cached_property
    def _crop(self) -> tuple[int, int]:
        """Height and width of what is trained on: the whole image if the network takes no smaller one."""
        height, width = (int(side * self.recipe.crop) // 32 * 32 for side in self.size)
        if (height, width) == self.size or min(self.size) < SMALLEST_CROP or min(height, width) < 32:
            return self.size
        try:
            with torch.no_grad():
                found = self._network(to_input(self.train[:2, :, :height, :width], self.model.input))
        except (RuntimeError, OperatorError):
            return self.size
        fits = len(self.model.shapes[0]) > 1 or found[0].shape[1:] == self.model.shapes[0]
        return (height, width) if self.target == "shallow" or fits else self.size

    def _crops(self, steps: int) -> Tensor:
        """Which image each corrupted one is made of, and top and left of its crop: int64 (M, 3)."""
        recipe, count = self.recipe, len(self.train)
        # More than are used four times would cost more to corrupt than they teach.
        enough = max(recipe.batch_size, steps * recipe.batch_size // 4)
        made = min(max(1, min(recipe.draws, recipe.most // count)) * count, enough)
        generator = torch.Generator().manual_seed(recipe.seed)
        room = torch.tensor(self.size) - torch.tensor(self._crop) + 1
        places = torch.randint(0, 2**31, (made, 2), generator=generator) % room
        return torch.cat([torch.arange(made)[:, None] % count, places], 1)

    def _cropped(self, pixels: Tensor, crops: Tensor) -> Tensor:
        height, width = self._crop
        pairs = zip(pixels, crops[:, 1:].tolist(), strict=True)
        return torch.stack([image[:, top : top + height, left : left + width] for image, (top, left) in pairs])

    @torch.no_grad()
    def _clean_outputs(self, crops: Tensor) -> Tensors:
        outputs: Tensors = self._network(self._to_input(self._cropped(self.train[crops[:, 0]], crops)))
        return outputs

    def _aim(self, crops: Tensor) -> Callable[[Tensor], Tensors]:
        """Return a function that gives the clean network's outputs for some of these crops, by their indices."""
        if self.target == "shallow" or len(crops) * self._output_bytes > LARGEST:
            return lambda index: self._clean_outputs(crops[index])
        if not self._aims or len(self._aims[0]) < len(crops):  # fewer crops are the first of more
            parts = [self._clean_outputs(part) for part in torch.split(crops, 25)]
            self._aims = tuple(torch.cat(output) for output in zip(*parts, strict=True))
        return lambda index: tuple(output[index] for output in self._aims)

    def _to_input(self, pixels: Tensor) -> Tensor:
        return to_input(pixels, self.model.input)

    def _loss(self, student: Tensors, teacher: Tensors) -> Tensor:
        if self.target == "shallow":
            return match_shallow(student[0], teacher[0])
        return self.objective.loss(student, teacher)

    def _corrupted(self, corruption: str, crops: Tensor) -> Tensor:
        count, (low, high) = len(self.train), self.recipe.severities
        parts = []
        for draw, part in enumerate(torch.split(crops, count)):
            seeds = seeds_for(derive_seed(self.recipe.seed, "training", draw=draw), len(part))
            severity = (low + (high - low) * ((seeds >> 16) % 65536).float() / 65535).clamp(max=5)
            frames = corrupt(self._frames[part[:, 0]], corruption, severity, seeds)
            parts.append(self._cropped(shrunk(frames, self.size), part))
        return torch.cat(parts)

    def check(self) -> None:
        """Check one step before training starts: raise InputError if the loss has no gradient.

        Raises StrategyUnavailableError if the weights of the deployed model cannot be changed here.
        """
        self._deployed(None)
        if self.onto is not None:
            return
        crops = self._crops(self.recipe.steps)[:FEWEST]
        tuned, aim = Tuned(self._network, self._parameters, {}), self._clean_outputs(crops)
        loss = self._loss(tuned(self._to_input(self._corrupted(FIRST[0], crops))), aim)
        gradients: Sequence[Tensor | None] = [None]
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, list(tuned.parameters()), allow_unused=True)
        sizes = [0.0 if gradient is None else float(gradient.abs().max()) for gradient in gradients]
        if not math.isfinite(sum(sizes)) or max(sizes) == 0:
            found = "is not finite" if max(sizes) else "does not change with the weights"
            outputs = f"the loss of the task {self.model.task.name} on {', '.join(self.model.outputs)}"
            raise InputError(f"model: {outputs} {found}; name others with --output, or another --task"[:400])

    def signature(self, corruption: str) -> Deltas:
        """Return the float32 signature of one corruption; InputError if training left it at zero."""
        steps = self.recipe.steps
        settings = {key: getattr(self.recipe, key) for key in TUNED_BY} | {"steps": steps}
        made_by = [settings, self._crop, self.target, asdict(self.model.task), list(self.tensors), corruption]
        entry = self._entry(f"signature-{corruption}.safetensors", DELTAS, *made_by)
        plan = Plan(steps, max(1, steps // 10), self.recipe.warmup, repr([self._identity, *made_by]))
        made = entry.get(lambda: self._tune(corruption, plan, entry.checkpoint))
        self._left.finish(f"signature-{corruption}")
        return made

    def _tune(self, corruption: str, plan: Plan, checkpoint: Path | None) -> Deltas:
        recipe, report = self.recipe, self._report(f"signature-{corruption}")
        before = BEGINS_FROM.get(corruption)
        begun = [self.signature(before)] if before else []
        crops = self._crops(plan.steps)
        pixels, aim = self._corrupted(corruption, crops), self._aim(crops)
        report({"frames": len(pixels), "frames_left": 0})
        tuned = Tuned(self._network, self._parameters, self._start(pixels, crops, aim, begun))

        def loss_of(draw: tuple[Tensor, bool]) -> Tensor:
            index, mirrored = draw
            x = pixels[index].flip(3) if mirrored else pixels[index]
            return self._loss(tuned(self._to_input(x)), aim(index))

        train(
            tuned,
            torch.optim.Adam(tuned.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99)),
            lambda epoch: islice(self._draws(len(pixels)), *plan.steps_of(epoch)),
            loss_of,
            plan,
            checkpoint=checkpoint,
            report=report,
        )
        deltas = {name: delta.detach().contiguous() for name, delta in tuned.deltas().items()}
        if not any(delta.any() for delta in deltas.values()):
            raise InputError(f"signature {corruption!r} is zero after {plan.steps} steps; raise learning_rate or steps")
        report({"done": True})
        return deltas

    @torch.no_grad()
    def _start(self, pixels: Tensor, crops: Tensor, aim: Callable[[Tensor], Tensors], begun: list[Deltas]) -> Deltas:
        """Return the start with the smallest loss: no change, a recalibration, or a signature in `begun`."""
        count = min(len(pixels), self.recipe.recalibrate)
        if not count:
            return begun[0] if begun else {}
        index = torch.arange(count)
        x, found = self._to_input(pixels[:count]), [{}, *begun]
        if (self.model.batch or FEWEST) >= FEWEST_AT_ONCE:
            clean = self._to_input(self._cropped(self.train[crops[:count, 0]], crops[:count]))
            how = (self._network, self._parameters, clean, x)
            found += [recalibrated(*how, strength) for strength in (1.0, 0.5)]
        losses = [float(self._loss(Tuned(self._network, self._parameters, each)(x), aim(index))) for each in found]
        return found[int(np.nanargmin(losses))]

    def _draws(self, count: int) -> Iterator[tuple[Tensor, bool]]:
        """Which crops each step takes, int64, and whether they are mirrored: without end, and the same at each call."""
        generator = torch.Generator().manual_seed(derive_seed(self.recipe.seed, "signature training"))
        batch, order = min(self.recipe.batch_size, count), torch.empty(0, dtype=torch.int64)
        # A mirrored image has nearly the same classes; a map, or what the first deep layer sees, is mirrored too.
        mirror = self.target == "output" and self.model.task.name in ("classify", "multilabel")
        while True:
            if len(order) < batch:
                order = torch.randperm(count, generator=generator)
            index, order = order[:batch], order[batch:]
            yield index, mirror and bool(torch.rand((), generator=generator) < 0.5)

    def signatures(self, names: Sequence[str] = KNOWN) -> SignatureSet:
        """Return the signatures of some corruptions, quantised; those of the bundle built onto, if any."""
        if self._kept is not None:
            return self._kept
        made = {name: self.signature(name) for name in names}
        deltas = {name: {tensor: exact[tensor].numpy() for tensor in self.tensors} for name, exact in made.items()}
        recipe = self.recipe
        return SignatureSet.from_deltas(deltas, recipe.bits, recipe.per, clean_hash=shallow_sha256(self.clean))

    def gain(self, names: Sequence[str] = KNOWN) -> tuple[GainTable, HeldOutScores | None]:
        """Return the gain table, whose cells are soft agreement, and held-out scores; of some signatures None."""
        if self.onto is not None:
            measured = self.onto.manifest.measured
            kept = {key: measured[key] for key in HeldOutScores.__annotations__ if key in measured}
            return self.onto.table, cast("HeldOutScores | None", kept or None)
        signatures, recipe, job = self.signatures(names), self.recipe.calibration, "gain"
        if len(names) < len(KNOWN):
            recipe, job = recipe.quick(), "first-gain"
            recipe = replace(recipe, images=12, coarse_images=5)
        digest = hashlib.sha256(signatures.to_bytes()).hexdigest()
        labels = None if self._labels is None else self._labels.tolist()
        entry = self._entry(f"{job}.npz", ARRAYS, digest, recipe, labels, asdict(self.model.task))
        arrays = dict(entry.get(lambda: self._measure_gain(job, signatures, recipe)))
        self._left.finish(job)
        scores: HeldOutScores | None = json.loads(str(arrays.pop("scores")))
        return GainTable.from_arrays(arrays, KNOWN, LEVELS), scores

    def _measure_gain(self, job: str, signatures: SignatureSet, recipe: CalibrationRecipe) -> dict[str, NDArray[Any]]:
        report, model = self._report(job), self._deployed(signatures)

        def score(model: PatchableModel, pixels: Tensor) -> float:
            aim = [output[: len(pixels)] for output in self.reference]
            outputs = outputs_of(model, shrunk(pixels, self.size), self.model.input)
            return 100 * float(self.objective.scores(outputs, aim).mean())

        how = (model, signatures.names, self._held_out_frames, recipe, score)
        table = measure_gain(*how, corruptions=KNOWN, seed=self.recipe.seed, report=report)
        scores = self._held_out_scores(model, table) if job == "gain" else None
        report({"done": True})
        return {**table.to_arrays(), "scores": np.array(json.dumps(scores))}

    def _held_out_scores(self, model: OnnxModel, table: GainTable) -> HeldOutScores:
        policy, frames = ReferencePolicy(table, "perfect"), self._held_out_frames

        def agreement(images: Tensor) -> float:
            return self.objective.agreement(outputs_of(model, images, self.model.input), self.reference)

        model.reset()
        clean, scores = agreement(self.held_out), []
        for name in CORRUPTIONS:
            seeds = seeds_for(derive_seed(self.recipe.seed, "validation", name, 5), len(frames))
            corrupted = shrunk(corrupt(frames, name, 5, seeds), self.size)
            model.reset()
            unpatched = agreement(corrupted)
            model.apply(policy.mix(name, 5))
            scores.append([unpatched, agreement(corrupted)])
        unpatched, patched = (round(float(np.mean(reached)), 2) for reached in zip(*scores, strict=True))
        return HeldOutScores(clean=round(clean, 2), no_patch_severity_5=unpatched, perfect_severity_5=patched)

    def oracle(self) -> tuple[bytes, OracleScores]:
        """Return the oracle as ONNX bytes, the shipped one or one trained here, and what was measured of it."""
        recipe, seed, content = self.recipe.oracle, self.recipe.seed, b""
        if self.photographs is None or self.recipe.oracle_start == "shipped":
            shipped = Bundle.load(DETECTOR_BUNDLE)
            content, scores = shipped.read(ORACLE), shipped.manifest.measured["oracle"]
        if self.photographs is None:
            return content, {**scores, "prior": shipped.manifest.filter["prior"]}  # type: ignore[typeddict-item]
        entry = self._entry("oracle.npz", SCORED, recipe, self.photographs.digest, hashlib.sha256(content).hexdigest())
        report = self._report("oracle", kinds={"frames": "frame", "steps": "oracle step"})
        training = CameraTraining(self.photographs, recipe, self._store, report, seed, start=content)

        def make() -> tuple[bytes, OracleScores]:
            made = training.run()
            report({"done": True})
            return made

        found = entry.get(make)
        self._left.finish("oracle")
        return found

    def graph(self, first: bool = False) -> Graph:
        """Return the jobs of the bundle, and with `first` what a bundle of the first signatures needs."""
        oracle = {"oracle": Job(self.oracle)}
        if self.onto is not None:
            return oracle | {"gain": Job(self.gain)}
        graph: dict[str, Job] = {}
        for name in (*FIRST, *(name for name in KNOWN if name not in FIRST)):
            after = (f"signature-{BEGINS_FROM[name]}",) if name in BEGINS_FROM else ()
            graph[f"signature-{name}"] = Job(partial(self.signature, name), after)
            if first and name == FIRST[-1]:
                graph |= oracle
                graph["first-gain"] = Job(partial(self.gain, FIRST), tuple(graph))
        signatures = tuple(job for job in graph if job.startswith("signature-"))
        return graph | {"gain": Job(self.gain, signatures)} | oracle

    def bundle(self, out: Path, where: Where = HERE, work: Work | None = None) -> None:
        """Write the bundle folder, atomically; a folder that cannot be one is refused before anything is trained.

        If there is no bundle yet, one of the first signatures is written on the way; its manifest says `partial`.
        `work` opens this build's `graph` in other processes, but for the argument `first`.
        """
        check_bundle_folder(out)
        self.check()
        self._plan()
        first = not out.exists() and self.onto is None
        work = work or Work(self.graph, (), self.work)

        def did(job: str) -> None:
            if job == "first-gain":
                self._write(out, FIRST)

        do_jobs(self.graph(first), replace(work, arguments=(*work.arguments, first)), where, did)
        self._write(out, KNOWN)

    def _write(self, out: Path, names: Sequence[str]) -> None:
        signatures, (table, agreement) = self.signatures(names), self.gain(names)
        oracle, scores = self.oracle()
        found: dict[str, Any] = dict(scores)
        prior = found.pop("prior")
        before = None if self.onto is None else self.onto.manifest.provenance
        partial_of = {"partial": f"{len(names)} of {len(KNOWN)} signatures; the build goes on"}
        aim = "the clean model on the clean image" if self._labels is None else "the labels"
        parts = BundleParts(
            name=self.name,
            classes=self.classes,
            input=self.model.input,
            task=self.model.task,
            outputs=self.model.outputs,
            model=self.model.onnx,
            signatures=signatures,
            oracle=oracle,
            table=table,
            policy=self.recipe.stream.policy_settings(),
            filter=self.recipe.stream.filter_settings(prior),
            tiles=self.recipe.oracle.view,
            provenance=provenance(
                recipe=asdict(self.recipe),
                target=self.target,
                layers=self.layers,
                model_changes=list(self.model.changes),
                data={"pictures": len(self.train), "held_out": len(self.held_out), "identity": self._identity[0]},
                **({} if before is None else {"signatures": before.get("signatures", before)}),
            ),
            measured={
                **({} if len(names) == len(KNOWN) else partial_of),
                "split": "held-out images",
                "what": f"{self.objective.metric}, agreement with {aim}",
                **(agreement or {}),
                "signature_bytes": round(len(signatures.to_bytes()) / len(names)),
                "estimated_signature_bytes": signature_bytes(self._proto, self.layers),
                "oracle": found,
            },
        )
        write_bundle(out, parts)
        if len(names) < len(KNOWN):
            self._report("first-bundle")({"done": True, "signatures": len(names), "bundle": str(out)})


def _checked(classes: Sequence[str] | None, model: ImportedModel) -> tuple[str, ...]:
    count = model.class_count
    if classes is None:
        classes = model.outputs if count is None else [f"class {place}" for place in range(count)]
    if wrong := [name for name in classes if not name or not name.isprintable()]:
        raise InputError(f"class name {wrong[0]!r} is not printable text; a bundle cannot hold it")
    if count is not None and len(classes) != count:
        raise InputError(f"{len(classes)} class names, but the model gives {count} classes")
    return tuple(classes)
