"""A bundle for a classifier that is deployed already, from clean pictures alone.

    model ─► clean outputs ─► signature-<c> ─► gain ─┬─► bundle
    pictures ─► oracle ─► clean weight ──────────────┘

Each signature is the change of the shallow convolutions that brings the model's output on a corrupted picture back to
its own output on the clean one; the deep layers stay frozen. Nothing here needs a label: accuracy is agreement with
what the clean model says of the clean picture, measured on pictures that were held out. Each part is a file in the work
folder, so that a build that was stopped goes on where it was.

What makes it affordable on two cores, where a step through a large model takes a second: corrupted pictures are made a
few times, at the model's own size, and kept; of each a crop is trained on (the corruption is that of the whole picture,
the crop only costs less); what the clean model says of these crops serves all 19 signatures; and a signature begins
from that of a corruption that is like its own.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rws.edge.bundle.bundle import check_bundle_folder, write_bundle
from rws.edge.common.provenance import provenance
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.onnx.graph import clean_tensors, shallow_tensors
from rws.edge.signatures.quantization import check_code
from rws.edge.signatures.signature_set import SignatureSet, shallow_sha256
from rws.errors import FormatError, InputError
from rws.oracle.policy import GainTable, ToldPolicy
from rws.training.adopt.model import Adopted, OperatorError, layers_within, signature_bytes, stem, trainable
from rws.training.build.recipe import StreamRecipe, parse, tomllib
from rws.training.corruptions import CORRUPTIONS, corrupt, corrupt_mixed, seeds_for
from rws.training.data.images import Images
from rws.training.evaluation.evaluator import percent_right
from rws.training.evaluation.gain import CalibrationRecipe, measure_gain
from rws.training.jobs.seeds import derive_seed
from rws.training.jobs.store import ARRAYS, SCORED, Codec, Entry, Progress, Store, T
from rws.training.models.allocator import keep_freed_memory
from rws.training.models.fit import DivergedError, learning_rate_at, to_input
from rws.training.oracle.fit import LEVELS
from rws.training.oracle.tiles import ViewRecipe, fit_view_oracle
from rws.training.signatures.methods import DELTAS, Deltas

TARGETS = ("auto", "output", "shallow")

SMALLEST_CROP = 128
"""Pixels: smaller inputs are trained on whole."""

FEWEST = 16
"""Pictures."""

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
"""Corruptions whose training starts at the signature of one before them; all others start at that of `ALL`."""

ALL = "all"
"""Not a corruption: the start of all signatures, trained on pictures of which each has another corruption."""

TUNED_BY = ("common", "batch_size", "learning_rate", "warmup", "soft", "temperature", "draws", "most", "severities")
"""Parts of the recipe that decide a signature, beside the number of its steps."""

ADOPT_VERSION = 1
"""Raise it when the same model, pictures and recipe give other files."""


@dataclass(frozen=True)
class AdoptRecipe:
    """How to make signatures without labels; Adam, in units of the weights' own size, under a warm-up and a cosine.

    Args:
        seed: of everything.
        target: `output` matches the clean model's softmax on the clean picture, as it is and softened; `shallow`
            matches what its first deep layer sees (squared error), without running the deep layers; `auto` is `output`
            where the whole model can be trained through, else `shallow`.
        layers: the first so many convolutions are changed; 0: as many as take 0.6 % of the model's bytes.
        steps: of one signature.
        common: steps of what they all start from, trained on all corruptions at once; 0: the clean weights.
        batch_size, learning_rate, warmup: as in `FitRecipe`.
        soft: weight of the softened match, which tells of a picture more than its likeliest classes; see `distil`.
        temperature: that it is softened with.
        draws: corrupted versions of each picture that are made and kept.
        most: at most so many corrupted pictures in all.
        crop: part of the side of a picture that is trained on; 1: whole pictures.
        severities: the range that the training images' severities are drawn from; what is above 5 counts as 5.
        held_out: part of the pictures that nothing is trained on; at most `held_out_most` of them.
        held_out_most: see above.
        bits, per: quantisation.
        calibration: of the gain table.
        oracle: how the oracle is trained, and what part of a frame it sees.
        stream: the policy and the temporal filter. A few held-out pictures say little about the rare clean frame that
            looks corrupted, so clean gets more weight here than they ask for.
    """

    seed: int = 0
    target: str = "auto"
    layers: int = 0
    steps: int = 450
    common: int = 1200
    batch_size: int = 16
    learning_rate: float = 2e-3
    warmup: float = 0.1
    soft: float = 1.0
    temperature: float = 3.0
    draws: int = 8
    most: int = 4000
    crop: float = 5 / 7
    severities: tuple[float, float] = (2.0, 5.5)
    held_out: float = 0.2
    held_out_most: int = 500
    bits: int = 8
    per: str = "channel"
    calibration: CalibrationRecipe = field(
        default_factory=lambda: CalibrationRecipe(
            images=100, coarse_images=25, severities=(1, 3, 5), alphas=(0.5, 0.75, 1.0), neighbour_alphas=(1.0,)
        )
    )
    oracle: ViewRecipe = field(default_factory=ViewRecipe)
    stream: StreamRecipe = field(default_factory=lambda: StreamRecipe(threshold=0.2, clean_weight=8.0))

    # What `learning_rate_at` asks of a schedule.
    epochs = 1
    precision = "fp32"

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise InputError(f"target {self.target!r} is not one of {', '.join(TARGETS)}")
        if self.layers < 0 or self.steps < 1 or self.batch_size < 2 or self.draws < 1:
            raise InputError("adopt: need layers >= 0, steps >= 1, batch_size >= 2 and draws >= 1")
        if not (0 < self.crop <= 1 and 0 < self.held_out < 1):
            raise InputError("adopt: crop must lie in 0…1 and held_out inside it")
        if len(self.severities) != 2 or not 0 < self.severities[0] <= self.severities[1]:
            raise InputError(f"adopt: severities are {self.severities}, expected two, the smaller one first, above 0")
        check_code(self.bits, self.per)
        if self.soft < 0 or self.temperature <= 0:
            raise InputError("adopt: need soft >= 0 and temperature > 0")

    def quick(self) -> AdoptRecipe:
        """The same for a first look: under ten minutes for a model of EfficientNet-Lite0's size."""
        calibration = replace(self.calibration, images=25, coarse_images=10, neighbours=1, severities=(3, 5))
        return replace(
            self,
            steps=max(1, self.steps // 9),
            common=self.common // 9,
            draws=2,
            calibration=replace(calibration, alphas=(0.5, 1.0)),
            oracle=self.oracle.quick(),
        )


def load_adopt_recipe(path: Path) -> AdoptRecipe:
    """Read a TOML file with any of an `AdoptRecipe`'s settings.

    Raises:
        InputError: if there is no such file.
        FormatError: if it is not TOML, or has an unknown key or a value of the wrong type.
    """
    if not path.is_file():
        raise InputError(f"no recipe {path}; with --model, --recipe is a .toml file")
    try:
        return parse(AdoptRecipe, tomllib.loads(path.read_text()), str(path), AdoptRecipe())
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{path}: {error}") from error


def distil(found: Tensor, aim: Tensor, soft: float, temperature: float) -> Tensor:
    """Kullback-Leibler divergence between two networks' answers, plus `soft` times that of both softened.

    The softened one is scaled by the temperature's square, so that its gradient keeps its size (Hinton, Vinyals, Dean,
    "Distilling the Knowledge in a Neural Network", 2015, Sec. 2).

    Args:
        found: logits that are trained, float32 (N, classes).
        aim: logits that they shall come to.
        soft: see above.
        temperature: what logits are divided by to soften them.
    """
    return _divergence(found, aim) + soft * temperature**2 * _divergence(found / temperature, aim / temperature)


def _divergence(found: Tensor, aim: Tensor) -> Tensor:
    wanted = aim.softmax(1)
    return F.cross_entropy(found, wanted) + (wanted * aim.log_softmax(1)).sum(1).mean()


def _scale(clean: Tensor) -> Tensor:
    """What one unit of a step changes each value of a tensor by: about the size of its output channel's weights.

    With BatchNorm folded in, channels and tensors of one network differ a thousandfold; one rate for all of them, in
    their own units, either leaves the large ones where they are or throws the small ones about.
    """
    if clean.ndim < 2:
        return clean.square().mean().sqrt().clamp(min=1e-3).expand_as(clean).clone()
    size = clean.square().mean(tuple(range(1, clean.ndim)), keepdim=True).sqrt()
    return (size + 0.1 * size.mean()).clamp(min=1e-6).expand_as(clean).clone()


class Adoption:
    """The jobs of one build.

    Args:
        adopted: the classifier; see `adopt_model`.
        pictures: clean pictures, uint8 (N, 3, size, size), RGB.
        recipe: everything else that decides the result.
        work: folder for parts and the log; created.
        classes: names of the classes in the order of the logits; None: `class 0`, ….
        labels: int64 (N,): accuracy is then measured with them instead of with the clean model's predictions.
        more: other clean pictures for the oracle, of the same shape; None for none.
        sequential: the pictures follow one another, so that neighbours are alike: the last ones are held out, not any.
        name: of the bundle.
        progress: called with {job, seconds, …}.

    Raises:
        InputError: if there are too few pictures, or sizes or numbers do not fit the model.
        OperatorError: if the model cannot be trained through.
    """

    def __init__(
        self,
        adopted: Adopted,
        pictures: Tensor,
        recipe: AdoptRecipe,
        work: Path,
        *,
        classes: Sequence[str] | None = None,
        labels: Tensor | None = None,
        more: Tensor | None = None,
        sequential: bool = False,
        name: str = "adopted",
        progress: Progress | None = None,
    ) -> None:
        if len(pictures) < FEWEST:
            raise InputError(
                f"--images: found {len(pictures)} pictures, expected {FEWEST} or more, better a hundred; of a video, "
                f"take more of its frames with a smaller --every"
            )
        if tuple(pictures.shape[1:]) != (3, adopted.size, adopted.size):
            raise InputError(f"pictures are {tuple(pictures.shape[1:])}, the model takes {adopted.size} px")
        self.classes = (
            tuple(f"class {place}" for place in range(adopted.classes)) if classes is None else tuple(classes)
        )
        wrong = [name for name in self.classes if not name or not name.isprintable()]
        if wrong:
            raise InputError(f"class name {wrong[0]!r} is not printable text; a bundle cannot hold it")
        if len(self.classes) != adopted.classes:
            raise InputError(f"{len(self.classes)} class names, but the model gives {adopted.classes} logits")
        self.adopted, self.recipe, self.work, self.name, self.more = adopted, recipe, work, name, more
        self._progress = progress
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(recipe.seed))
        if sequential:
            order = torch.arange(len(pictures)).flip(0)
        count = max(1, min(recipe.held_out_most, round(recipe.held_out * len(pictures))))
        self.train, self._held_out = pictures[order[count:]], pictures[order[:count]]
        self._labels = None if labels is None else labels[order[:count]]
        self._proto = onnx.load_model_from_string(adopted.onnx)
        self.layers = recipe.layers or layers_within(self._proto)
        self.tensors = shallow_tensors(self._proto, self.layers)
        keep_freed_memory()
        self.why_shallow = ""
        self.target, self._network, self._parameters = self._trainable()
        work.mkdir(parents=True, exist_ok=True)
        self._store = Store(work, "refuse")
        self._started = time.monotonic()

    def _trainable(self) -> tuple[str, nn.Module, dict[str, nn.Parameter]]:
        if self.recipe.target != "shallow":
            try:
                return ("output", *trainable(self._proto, self.tensors, self.adopted.size))
            except OperatorError as error:
                if self.recipe.target == "output":
                    raise
                self.why_shallow = str(error)
        return ("shallow", *trainable(stem(self._proto, self.tensors), self.tensors, self.adopted.size))

    @property
    def share(self) -> float:
        """About what part of the model's bytes a signature takes, percent."""
        return 100 * signature_bytes(self._proto, self.layers) / len(self.adopted.onnx)

    @cached_property
    def clean(self) -> dict[str, np.ndarray]:
        """The clean shallow tensors, float32, by name, in order."""
        return clean_tensors(self._proto, self.tensors)

    @cached_property
    def _clean_tensors(self) -> dict[str, Tensor]:
        return {name: torch.tensor(array) for name, array in self.clean.items()}

    @cached_property
    def held_out(self) -> Images:
        """The held-out pictures; labels are the clean model's predictions where none were given."""
        labels = self._labels
        if labels is None:
            model = OnnxModel(self.adopted.onnx, None, self.tensors, "cpu", torch.get_num_threads())
            parts = [model.predict(part.numpy() / np.float32(255)).argmax(1) for part in self._held_out.split(25)]
            labels = torch.from_numpy(np.concatenate(parts))
        return Images(self._held_out, labels, self.classes)

    @cached_property
    def _identity(self) -> list[Any]:
        digest = hashlib.sha256(self.adopted.onnx)
        digest.update(self.train.numpy().tobytes())
        digest.update(self._held_out.numpy().tobytes())
        return [digest.hexdigest(), self.recipe.seed]

    def _entry(self, name: str, codec: Codec[T], *depends_on: Any) -> Entry[T]:
        """A file of the work folder, made from the model, the pictures, the seed and what else it depends on."""
        return self._store.entry(name, [ADOPT_VERSION, *self._identity, *depends_on], codec)

    def _report(self, job: str, **record: Any) -> None:
        record = {"job": job, "seconds": round(time.monotonic() - self._started, 1), **record}
        with open(self.work / "log.jsonl", "a") as handle:
            handle.write(json.dumps(record) + "\n")
        if self._progress is not None:
            self._progress(record)

    @cached_property
    def _crop(self) -> int:
        """Side of what is trained on: the whole picture where the network takes no smaller one."""
        size = self.adopted.size
        crop = int(size * self.recipe.crop) // 8 * 8
        if crop >= size or size < SMALLEST_CROP:
            return size
        try:
            with torch.no_grad():
                found = self._network(torch.zeros(2, 3, crop, crop))
        except RuntimeError:
            return size
        return crop if self.target == "shallow" or found.shape == (2, self.adopted.classes) else size

    @cached_property
    def _crops(self) -> Tensor:
        """Where each corrupted picture is cropped: top and left, int64 (draws · N, 2)."""
        draws = max(1, min(self.recipe.draws, self.recipe.most // len(self.train)))
        generator = torch.Generator().manual_seed(self.recipe.seed)
        room = self.adopted.size - self._crop + 1
        return torch.randint(0, room, (draws * len(self.train), 2), generator=generator)

    def _cropped(self, pixels: Tensor, places: Tensor) -> Tensor:
        crop = self._crop
        pairs = zip(pixels, places.tolist(), strict=True)
        return torch.stack([image[:, top : top + crop, left : left + crop] for image, (top, left) in pairs])

    @cached_property
    def _clean_crops(self) -> Tensor:
        """The same crops of the clean pictures, uint8 (draws · N, 3, crop, crop)."""
        return torch.cat([self._cropped(self.train, places) for places in self._crops.split(len(self.train))])

    @cached_property
    def _aim(self) -> Callable[[Tensor], Tensor]:
        """Gives what the clean network gives for crops, by their places among all of them; logits for `output`."""
        self._load({})
        if self.target == "output":
            with torch.no_grad():
                logits = torch.cat([self._network(to_input(part)) for part in self._clean_crops.split(25)])
            return lambda index: logits[index]
        teacher = copy.deepcopy(self._network)  # what it gives is too large to be kept for all crops

        def shallow(index: Tensor) -> Tensor:
            with torch.no_grad():
                return teacher(to_input(self._clean_crops[index]))

        return shallow

    def _loss(self, found: Tensor, aim: Tensor) -> Tensor:
        if self.target == "output":
            return distil(found, aim, self.recipe.soft, self.recipe.temperature)
        # Relative to its size, so that one learning rate serves every network.
        return F.mse_loss(found, aim) / aim.square().mean()

    def _load(self, deltas: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._clean_tensors[name])
                if name in deltas:
                    parameter += deltas[name]

    def _corrupted(self, corruption: str) -> Tensor:
        """The corrupted crops, uint8 (draws · N, 3, crop, crop)."""
        count = len(self.train)
        low, high = self.recipe.severities
        parts = []
        for draw, places in enumerate(self._crops.split(count)):
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
        """The float32 signature of one corruption, or of `ALL`."""
        recipe = self.recipe
        settings = {key: getattr(recipe, key) for key in TUNED_BY} | {"steps": self._steps(corruption)}
        made_by = [settings, self._crop, self.target, list(self.tensors), corruption]
        name = f"signature-{corruption}.safetensors"
        return self._entry(name, DELTAS, *made_by).get(lambda: self._tune(corruption))

    def _steps(self, corruption: str) -> int:
        return self.recipe.common if corruption == ALL else self.recipe.steps

    def _tune(self, corruption: str) -> Deltas:
        """Train one signature, from that of a corruption like its own."""
        recipe = self.recipe
        steps = self._steps(corruption)
        before = "" if corruption == ALL else BEGINS_FROM.get(corruption, ALL if recipe.common else "")
        start = self.signature(before) if before else {}
        began = time.monotonic()
        aim, pixels = self._aim, self._corrupted(corruption)
        scales = {name: _scale(clean) for name, clean in self._clean_tensors.items()}
        moved = {name: start[name] / scale if start else torch.zeros_like(scale) for name, scale in scales.items()}
        self._load(start)
        optimiser = torch.optim.Adam(moved.values(), lr=recipe.learning_rate, betas=(0.9, 0.99))
        generator = torch.Generator().manual_seed(derive_seed(recipe.seed, "signature training"))
        losses: list[float] = []
        batch = min(recipe.batch_size, len(pixels))
        order = torch.empty(0, dtype=torch.int64)
        for step in range(steps):
            if len(order) < batch:
                order = torch.randperm(len(pixels), generator=generator)
            index, order = order[:batch], order[batch:]
            for group in optimiser.param_groups:
                group["lr"] = learning_rate_at(recipe, step, steps)
            x = pixels[index]
            # A mirrored picture has the same softmax, all but a little; what the first deep layer sees is mirrored too.
            if self.target == "output" and torch.rand((), generator=generator) < 0.5:
                x = x.flip(3)
            loss = self._loss(self._network(to_input(x)), aim(index))
            loss.backward()
            for name, parameter in self._parameters.items():
                assert parameter.grad is not None
                moved[name].grad = parameter.grad * scales[name]
                parameter.grad = None
            optimiser.step()
            self._load({name: scales[name] * moved[name] for name in scales})
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise DivergedError(f"{corruption}, step {step + 1}: loss is {losses[-1]}; lower the learning rate")
        deltas = {name: (scales[name] * moved[name]).contiguous() for name in scales}
        took = time.monotonic() - began
        others = [name for name in CORRUPTIONS if name != corruption]
        left = sum(not (self.work / f"signature-{name}.safetensors").exists() for name in others)
        few = max(1, len(losses) // 10)
        self._report(
            f"signature-{corruption}",
            took=round(took, 1),
            loss=[round(float(np.mean(part)), 3) for part in (losses[:few], losses[-few:])],
            signatures_left=left,
            minutes_left=round(left * took / 60, 1),
        )
        return deltas

    @cached_property
    def signatures(self) -> SignatureSet:
        """All signatures, quantised."""
        deltas = {}
        for corruption in CORRUPTIONS:
            exact = self.signature(corruption)
            deltas[corruption] = {name: exact[name].numpy() for name in self.tensors}
        settings = (self.recipe.bits, self.recipe.per)
        return SignatureSet.from_deltas(deltas, *settings, clean_hash=shallow_sha256(self.clean))  # type: ignore[arg-type]

    def gain(self) -> tuple[GainTable, dict[str, float]]:
        """The gain table, and what of it was measured on held-out pictures; labels are the clean model's predictions
        where none were given.

        A cell of the table is the mean probability of the label: of so few pictures the share that is right tells too
        little. `clean`, `never_patched_severity_5` and `told_severity_5` are such shares, percent.
        """
        told = hashlib.sha256(self.signatures.to_bytes()).hexdigest()
        labels = None if self._labels is None else self._labels.tolist()
        entry = self._entry("gain.npz", ARRAYS, told, self.recipe.calibration, labels, "mean probability")
        arrays = dict(entry.get(self._measure_gain))
        scores = json.loads(str(arrays.pop("scores")))
        return GainTable.from_arrays(arrays, CORRUPTIONS, LEVELS), scores

    def _measure_gain(self) -> dict[str, np.ndarray]:
        began = time.monotonic()
        model = OnnxModel(self.adopted.onnx, self.signatures, self.tensors, "cpu", torch.get_num_threads())
        table = measure_gain(
            model,
            self.signatures.names,
            self.held_out,
            self.recipe.calibration,
            LEVELS,
            seed=self.recipe.seed,
            soft=True,
            report=lambda record: self._report("gain", **record),
        )
        scores = self._held_out_scores(model, table)
        self._report("gain", took=round(time.monotonic() - began, 1))
        return {**table.to_arrays(), "scores": np.array(json.dumps(scores))}

    def _held_out_scores(self, model: OnnxModel, table: GainTable) -> dict[str, float]:
        policy, data = ToldPolicy(table, own=True), self.held_out
        never, told = [], []
        for name in CORRUPTIONS:
            drawn = derive_seed(self.recipe.seed, "validation", name, 5)
            pixels = corrupt(data.pixels, name, 5, seeds_for(drawn, len(data)))
            for scores, mix in ((never, {}), (told, policy.choose_told(name, 5))):
                model.apply(mix)
                scores.append(percent_right(model, pixels, data.labels))
        model.reset()
        return {
            "clean": round(percent_right(model, data.pixels, data.labels), 2),
            "never_patched_severity_5": round(float(np.mean(never)), 2),
            "told_severity_5": round(float(np.mean(told)), 2),
        }

    def oracle(self) -> tuple[bytes, dict[str, Any]]:
        """The oracle as ONNX bytes, and what was measured of it on held-out pictures."""
        more = 0 if self.more is None else hashlib.sha256(self.more.numpy().tobytes()).hexdigest()
        return self._entry("oracle.npz", SCORED, self.recipe.oracle, more).get(self._make_oracle)

    def _make_oracle(self) -> tuple[bytes, dict[str, Any]]:
        began = time.monotonic()
        made, measured = fit_view_oracle(
            self.train if self.more is None else torch.cat([self.train, self.more]),
            self._held_out,
            self.recipe.oracle,
            seed=self.recipe.seed,
            report=lambda record: self._report("oracle", **record),
        )
        self._report("oracle", took=round(time.monotonic() - began, 1))
        return made, measured

    def bundle(self, out: Path) -> None:
        """Write the bundle folder, atomically; a folder that cannot be one is refused before anything is trained."""
        check_bundle_folder(out)
        signatures, (table, agreement) = self.signatures, self.gain()
        oracle, scores = self.oracle()
        prior = scores.pop("prior")
        write_bundle(
            out,
            name=self.name,
            classes=self.classes,
            input_size=(self.adopted.size, self.adopted.size),
            model=self.adopted.onnx,
            signatures=signatures,
            oracle=oracle,
            corruptions=CORRUPTIONS,
            severity_levels=LEVELS,
            policy_arrays=table.to_arrays(),
            policy=self.recipe.stream.policy_settings(),
            filter=self.recipe.stream.filter_settings(prior),
            provenance=provenance(
                recipe=asdict(self.recipe),
                target=self.target,
                layers=self.layers,
                model_changes=list(self.adopted.changes),
                data={"pictures": len(self.train), "held_out": len(self._held_out), "identity": self._identity[0]},
            ),
            measured={
                "split": "held-out pictures",
                "what": "agreement with the clean model on the clean picture" if self._labels is None else "accuracy",
                **agreement,
                "signature_bytes": round(len(signatures.to_bytes()) / len(CORRUPTIONS)),
                "estimated_signature_bytes": signature_bytes(self._proto, self.layers),
                "oracle": scores,
            },
        )
