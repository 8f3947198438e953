"""A bundle for a deployed classifier, from clean images without labels; each part is a file in the work folder."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rws.edge.bundle.edit import BundleParts, check_bundle_folder, write_bundle
from rws.edge.common.provenance import provenance
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.onnx.graph import clean_tensors, shallow_tensors
from rws.edge.preprocess import InputSpec
from rws.edge.signatures.signature_set import SignatureSet, shallow_sha256
from rws.errors import InputError
from rws.oracle.policy import GainTable, ReferencePolicy
from rws.records import Mix
from rws.training.adopt.model import ImportedModel
from rws.training.adopt.recipe import AdoptRecipe
from rws.training.adopt.trainable import OperatorError, layers_within, signature_bytes, stem, trainable
from rws.training.adopt.tuning import Tuned, distil
from rws.training.corruptions import CORRUPTIONS, corrupt, corrupt_mixed, seeds_for
from rws.training.data.clean_images import CleanImages
from rws.training.data.images import Images
from rws.training.evaluation.evaluator import as_input, percent_right
from rws.training.evaluation.gain import count_answers, measure_gain
from rws.training.jobs.progress import Progress, TimeLeft, job_log
from rws.training.jobs.seeds import derive_seed
from rws.training.jobs.store import ARRAYS, SCORED, Codec, Entry, Store, T
from rws.training.models.allocator import keep_freed_memory
from rws.training.models.fit import channels_last, to_input
from rws.training.models.loop import Plan, train
from rws.training.oracle.calibration import OracleScores
from rws.training.oracle.sampling import LEVELS
from rws.training.oracle.tiles import bundled_network, count_steps, fit_view_oracle, probe_step
from rws.training.signatures.deltas import DELTAS, Deltas
from rws.training.signatures.tuned import match_shallow

SMALLEST_CROP = 128  # pixels; smaller inputs are trained on whole
FEWEST = 16  # images

# Corruptions whose training starts at the signature of one before them; all others start at that of `ALL`.
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
}
ALL = "all"  # not a corruption: the start of all signatures, trained on images of which each has another corruption

# Parts of the recipe that decide a signature, next to the number of its steps.
TUNED_BY = ("common", "batch_size", "learning_rate", "warmup", "soft", "temperature", "draws", "most", "severities")

ADOPT_VERSION = 1  # raise it when the same model, images and recipe give other files


class HeldOutScores(TypedDict):
    """Agreement with the labels on held-out images, percent: clean; at severity 5 with no patch, perfect oracle."""

    clean: float
    no_patch_severity_5: float
    perfect_severity_5: float


class AdoptionBuild:
    """The jobs of one build. A signature brings the output on corrupted images back to the model's own on clean ones.

    Args:
        images: clean images of the model's size. Accuracy is agreement with their labels, else with the clean model.
        classes: names in the order of the logits; None: `class 0`, ….
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
        progress: Progress | None = None,
    ) -> None:
        pixels = images.pixels
        if len(pixels) < FEWEST:
            found = f"found {len(pixels)} images, expected {FEWEST} or more, better a hundred"
            raise InputError(f"{found}; if it is a video, take more of its frames with a smaller --every")
        if tuple(pixels.shape[1:]) != (3, model.size, model.size):
            raise InputError(f"images are {tuple(pixels.shape[1:])}, the model takes {model.size} px")
        self.classes = _checked(classes, model.classes)
        self.model, self.recipe, self.work, self.name = model, recipe, work, name
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(recipe.seed))
        if images.sequential:
            order = torch.arange(len(pixels)).flip(0)
        count = max(1, min(recipe.held_out_most, round(recipe.held_out * len(pixels))))
        self.train, self._held_out, self._more = pixels[order[count:]], pixels[order[:count]], images.more
        self._labels = None if images.labels is None else images.labels[order[:count]]
        self._proto = onnx.load_model_from_string(model.onnx)
        self.layers = recipe.layers or layers_within(self._proto)
        self.tensors = shallow_tensors(self._proto, self.layers)
        keep_freed_memory()
        self.why_shallow = ""
        self.target, self._network, self._parameters = self._trainable()
        work.mkdir(parents=True, exist_ok=True)
        self._store = Store(work, "keep")  # `--quick` and the full training share the default folder
        self._left = TimeLeft()
        kinds = {"frames": "frame", "steps": "step", "answers": "answer"}
        self._report = partial(job_log, work, progress=progress, left=self._left, kinds=kinds)

    def _trainable(self) -> tuple[str, nn.Module, dict[str, Tensor]]:
        proto, tensors, size = self._proto, self.tensors, self.model.size
        try:
            if self.recipe.target != "shallow":
                return ("output", *trainable(proto, tensors, size))
        except OperatorError as error:
            if self.recipe.target == "output":
                raise
            self.why_shallow = str(error)
        return ("shallow", *trainable(stem(proto, tensors), tensors, size))

    @property
    def share(self) -> float:
        """About what part of the model's bytes a signature takes, percent."""
        return 100 * signature_bytes(self._proto, self.layers) / len(self.model.onnx)

    @cached_property
    def clean(self) -> dict[str, NDArray[np.float32]]:
        """The clean shallow tensors, float32, by name, in order."""
        return clean_tensors(self._proto, self.tensors)

    @cached_property
    def held_out(self) -> Images:
        """The held-out images; labels are the clean model's predictions if none were given."""
        labels = self._labels
        if labels is None:
            model = self._clean_model()
            parts = [model.predict(as_input(part))[0] for part in torch.split(self._held_out, 25)]
            labels = torch.from_numpy(np.concatenate(parts).argmax(1))
        return Images(self._held_out, labels, self.classes)

    def _clean_model(self) -> OnnxModel:
        return OnnxModel(self.model.onnx, None, self.tensors, "cpu", torch.get_num_threads())

    def _plan(self) -> None:
        recipe, held_out, plan = self.recipe, len(self._held_out), self._left.plan
        for name in (ALL, *CORRUPTIONS) if recipe.common else CORRUPTIONS:
            plan(f"signature-{name}", "frame", len(self._crops))
            plan(f"signature-{name}", "step", recipe.common if name == ALL else recipe.steps)
        clean, corrupted = count_answers(recipe.calibration, held_out, len(CORRUPTIONS))
        answers, sample = clean + len(CORRUPTIONS) * (corrupted + 2 * held_out), as_input(self._held_out[:25])
        plan("gain", "answer", answers, partial(self._clean_model().predict, sample), len(sample))
        plan("oracle", "frame", recipe.oracle.frames)
        steps = count_steps(recipe.oracle, self.model.size)
        probe = partial(probe_step, channels_last(bundled_network()), recipe.oracle, self.model.size)
        plan("oracle", "oracle step", steps, probe)

    @cached_property
    def _identity(self) -> list[Any]:
        digest = hashlib.sha256(self.model.onnx)
        digest.update(self.train.numpy().tobytes())
        digest.update(self._held_out.numpy().tobytes())
        return [digest.hexdigest(), self.recipe.seed]

    def _entry(self, name: str, codec: Codec[T], *depends_on: Any) -> Entry[T]:
        return self._store.entry(name, [ADOPT_VERSION, *self._identity, *depends_on], codec)

    @cached_property
    def _crop(self) -> int:
        """Side of what is trained on: the whole image if the network takes no smaller one."""
        size = self.model.size
        crop = int(size * self.recipe.crop) // 8 * 8
        if crop >= size or size < SMALLEST_CROP:
            return size
        try:
            with torch.no_grad():
                found = self._network(torch.zeros(2, 3, crop, crop))
        except RuntimeError:
            return size
        return crop if self.target == "shallow" or found.shape == (2, self.model.classes) else size

    @cached_property
    def _crops(self) -> Tensor:
        """Where each corrupted image is cropped: top and left, int64 (draws · N, 2)."""
        draws, count = max(1, min(self.recipe.draws, self.recipe.most // len(self.train))), len(self.train)
        generator = torch.Generator().manual_seed(self.recipe.seed)
        return torch.randint(0, self.model.size - self._crop + 1, (draws * count, 2), generator=generator)

    def _cropped(self, pixels: Tensor, places: Tensor) -> Tensor:
        crop = self._crop
        pairs = zip(pixels, places.tolist(), strict=True)
        return torch.stack([image[:, top : top + crop, left : left + crop] for image, (top, left) in pairs])

    @cached_property
    def _clean_crops(self) -> Tensor:
        return torch.cat([self._cropped(self.train, places) for places in torch.split(self._crops, len(self.train))])

    @cached_property
    def _aim(self) -> Callable[[Tensor], Tensor]:
        """Gives what the clean network gives for crops, by their places among all of them; logits for `output`."""

        def clean(pixels: Tensor) -> Tensor:
            with torch.no_grad():
                return cast(Tensor, self._network(to_input(pixels)))

        if self.target == "shallow":  # it gives too much to be kept for all crops
            return lambda index: clean(self._clean_crops[index])
        logits = torch.cat([clean(part) for part in torch.split(self._clean_crops, 25)])
        return lambda index: logits[index]

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.target == "shallow":
            return match_shallow(student, teacher)
        return distil(student, teacher, self.recipe.soft, self.recipe.temperature)

    def _corrupted(self, corruption: str) -> Tensor:
        count, (low, high) = len(self.train), self.recipe.severities
        parts = []
        for draw, places in enumerate(torch.split(self._crops, count)):
            seeds = seeds_for(derive_seed(self.recipe.seed, "training", draw=draw), count)
            severity = (low + (high - low) * ((seeds >> 16) % 65536).float() / 65535).clamp(max=5)
            if corruption == ALL:
                types = torch.arange(draw, draw + count) % len(CORRUPTIONS)
                pixels = corrupt_mixed(self.train, types, severity, seeds)
            else:
                pixels = corrupt(self.train, corruption, severity, seeds)
            parts.append(self._cropped(pixels, places))
        return torch.cat(parts)

    def signature(self, corruption: str) -> Deltas:
        """Return the float32 signature of one corruption, or of `ALL`."""
        steps = self.recipe.common if corruption == ALL else self.recipe.steps
        settings = {key: getattr(self.recipe, key) for key in TUNED_BY} | {"steps": steps}
        made_by = [settings, self._crop, self.target, list(self.tensors), corruption]
        entry = self._entry(f"signature-{corruption}.safetensors", DELTAS, *made_by)
        plan = Plan(steps, max(1, steps // 10), self.recipe.warmup, repr([self._identity, *made_by]))
        made = entry.get(lambda: self._tune(corruption, plan, entry.checkpoint))
        self._left.finish(f"signature-{corruption}")
        return made

    def _tune(self, corruption: str, plan: Plan, checkpoint: Path | None) -> Deltas:
        recipe = self.recipe
        before = "" if corruption == ALL else BEGINS_FROM.get(corruption, ALL if recipe.common else "")
        tuned = Tuned(self._network, self._parameters, self.signature(before) if before else {})
        aim, report = self._aim, self._report(f"signature-{corruption}")
        pixels = self._corrupted(corruption)
        report({"frames": len(pixels), "frames_left": 0})

        def loss_of(draw: tuple[Tensor, bool]) -> Tensor:
            index, mirrored = draw
            x = pixels[index].flip(3) if mirrored else pixels[index]
            return self._loss(tuned(to_input(x)), aim(index))

        train(
            tuned,
            torch.optim.Adam(tuned.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99)),
            lambda epoch: islice(self._draws(len(pixels)), *plan.steps_of(epoch)),
            loss_of,
            plan,
            checkpoint=checkpoint,
            report=report,
        )
        report({"done": True})
        return {name: delta.detach().contiguous() for name, delta in tuned.deltas().items()}

    def _draws(self, count: int) -> Iterator[tuple[Tensor, bool]]:
        """Which crops each step takes, int64, and whether they are mirrored: without end, and the same at each call."""
        generator = torch.Generator().manual_seed(derive_seed(self.recipe.seed, "signature training"))
        batch, order = min(self.recipe.batch_size, count), torch.empty(0, dtype=torch.int64)
        while True:
            if len(order) < batch:
                order = torch.randperm(count, generator=generator)
            index, order = order[:batch], order[batch:]
            # A mirrored image has nearly the same softmax; what the first deep layer sees is mirrored too.
            yield index, self.target == "output" and bool(torch.rand((), generator=generator) < 0.5)

    @cached_property
    def signatures(self) -> SignatureSet:
        """All signatures, quantised."""
        made = {name: self.signature(name) for name in CORRUPTIONS}
        deltas = {name: {tensor: exact[tensor].numpy() for tensor in self.tensors} for name, exact in made.items()}
        recipe = self.recipe
        return SignatureSet.from_deltas(deltas, recipe.bits, recipe.per, clean_hash=shallow_sha256(self.clean))

    def gain(self) -> tuple[GainTable, HeldOutScores]:
        """Return the gain table, whose cells are mean probabilities of the label, and its held-out scores."""
        digest = hashlib.sha256(self.signatures.to_bytes()).hexdigest()
        labels = None if self._labels is None else self._labels.tolist()
        entry = self._entry("gain.npz", ARRAYS, digest, self.recipe.calibration, labels, "mean probability, no_patch")
        arrays = dict(entry.get(self._measure_gain))
        self._left.finish("gain")
        scores: HeldOutScores = json.loads(str(arrays.pop("scores")))
        return GainTable.from_arrays(arrays, CORRUPTIONS, LEVELS), scores

    def _measure_gain(self) -> dict[str, NDArray[Any]]:
        report = self._report("gain")
        model = OnnxModel(self.model.onnx, self.signatures, self.tensors, "cpu", torch.get_num_threads())
        how = (model, self.signatures.names, self.held_out, self.recipe.calibration, LEVELS)
        table = measure_gain(*how, seed=self.recipe.seed, soft=True, report=report)
        scores = self._held_out_scores(model, table)
        report({"done": True})
        return {**table.to_arrays(), "scores": np.array(json.dumps(scores))}

    def _held_out_scores(self, model: OnnxModel, table: GainTable) -> HeldOutScores:
        policy, data = ReferencePolicy(table, "perfect"), self.held_out

        def right(pixels: Tensor, mix: Mix) -> float:
            model.apply(mix)
            return percent_right(model, pixels, data.labels)

        scores = []
        for name in CORRUPTIONS:
            seeds = seeds_for(derive_seed(self.recipe.seed, "validation", name, 5), len(data))
            pixels = corrupt(data.pixels, name, 5, seeds)
            scores.append([right(pixels, {}), right(pixels, policy.mix(name, 5))])
        unpatched, patched = (round(float(np.mean(reached)), 2) for reached in zip(*scores, strict=True))
        clean = round(right(data.pixels, {}), 2)
        return HeldOutScores(clean=clean, no_patch_severity_5=unpatched, perfect_severity_5=patched)

    def oracle(self) -> tuple[bytes, OracleScores]:
        """Return the oracle as ONNX bytes, and what was measured of it on held-out images."""
        more = 0 if self._more is None else hashlib.sha256(self._more.numpy().tobytes()).hexdigest()
        entry = self._entry("oracle.npz", SCORED, self.recipe.oracle, more)
        return entry.get(lambda: self._make_oracle(entry.checkpoint))

    def _make_oracle(self, checkpoint: Path | None) -> tuple[bytes, OracleScores]:
        report = self._report("oracle", kinds={"frames": "frame", "steps": "oracle step"})
        images = self.train if self._more is None else torch.cat([self.train, self._more])
        recipe, seed = self.recipe.oracle, self.recipe.seed
        made = fit_view_oracle(images, self._held_out, recipe, seed=seed, checkpoint=checkpoint, report=report)
        report({"done": True})
        return made

    def bundle(self, out: Path) -> None:
        """Write the bundle folder, atomically; a folder that cannot be one is refused before anything is trained."""
        check_bundle_folder(out)
        self._plan()
        signatures, (table, agreement) = self.signatures, self.gain()
        oracle, scores = self.oracle()
        prior = scores.pop("prior")
        parts = BundleParts(
            name=self.name,
            classes=self.classes,
            input=InputSpec(self.model.size, self.model.size, "RGB"),
            model=self.model.onnx,
            signatures=signatures,
            oracle=oracle,
            table=table,
            policy=self.recipe.stream.policy_settings(),
            filter=self.recipe.stream.filter_settings(prior),
            provenance=provenance(
                recipe=asdict(self.recipe),
                target=self.target,
                layers=self.layers,
                model_changes=list(self.model.changes),
                data={"pictures": len(self.train), "held_out": len(self._held_out), "identity": self._identity[0]},
            ),
            measured={
                "split": "held-out images",
                "what": "agreement with the clean model on the clean image" if self._labels is None else "accuracy",
                **agreement,
                "signature_bytes": round(len(signatures.to_bytes()) / len(CORRUPTIONS)),
                "estimated_signature_bytes": signature_bytes(self._proto, self.layers),
                "oracle": scores,
            },
        )
        write_bundle(out, parts)


def _checked(classes: Sequence[str] | None, count: int) -> tuple[str, ...]:
    names = tuple(f"class {place}" for place in range(count)) if classes is None else tuple(classes)
    if wrong := [name for name in names if not name or not name.isprintable()]:
        raise InputError(f"class name {wrong[0]!r} is not printable text; a bundle cannot hold it")
    if len(names) != count:
        raise InputError(f"{len(names)} class names, but the model gives {count} logits")
    return names
