"""The one evaluator: answers of a bundle's model to frames under any mix, and what its oracle believes of them."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.live.base import PatchableModel
from rws.edge.preprocess import InputSpec
from rws.oracle.belief import CLEAN, Belief
from rws.oracle.classifier import Oracle
from rws.oracle.policy import ReferencePolicy
from rws.records import Mix
from rws.training.data.images import Images
from rws.training.evaluation.frames import Frames, Layers, make_frames, shuffled
from rws.training.models.fit import to_input

BATCH = 50  # frames that a network takes at once: larger batches leave the CPU's cache and are slower

MixKey = tuple[tuple[str, float], ...]
Progress = Callable[[str], None]


def silent(line: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class EvaluationOptions:
    """What the evaluations of a bundle have in common; limits are numbers of images per cell, None: all.

    Thresholds are chosen by `validation_limit` images; `clean_limit` holds for each part. `progress` gets a line of
    text per step.
    """

    limit: int | None = None
    validation_limit: int = 100
    clean_limit: int | None = None
    seed: int = 0
    threads: int | None = 1
    progress: Progress = silent


DEFAULTS = EvaluationOptions()


def as_input(pixels: Tensor, spec: InputSpec | None = None) -> NDArray[Any]:
    """Convert uint8 images (N, 3, H, W), RGB, to what a model takes; see `to_input`."""
    return np.ascontiguousarray(to_input(pixels.cpu(), spec).numpy())


def mix_key(mix: Mapping[str, float]) -> MixKey:
    """Return a mix as a key of a dictionary."""
    return tuple(sorted(mix.items()))


def observe(oracle: Oracle, pixels: Tensor) -> NDArray[np.float32]:
    """Return the oracle's joint probabilities, float32 (N, 1 + C·S), of each image, uint8 (N, 3, H, W), on its own."""

    def seen(part: Tensor) -> NDArray[Any]:
        if oracle.view is None:
            return as_input(part)
        return np.stack([oracle.view.take(image) for image in part.cpu().permute(0, 2, 3, 1).contiguous().numpy()])

    return np.concatenate([oracle.observe_batch(seen(part)) for part in torch.split(pixels, BATCH)])


def beliefs_of(oracle: Oracle, frames: Frames) -> list[Belief]:
    """Return what the oracle believes of each frame on its own."""
    return [Belief(oracle.corruptions, oracle.levels, joint) for joint in observe(oracle, frames.pixels)]


def ground_truth_mixes(policy: ReferencePolicy, frames: Frames) -> list[Mix]:
    """Return the mix of each frame, chosen by the first corruption of its cell and that corruption's severity."""
    return frames.spread([policy.mix(*(layers[0] if layers else (CLEAN, 0.0))) for layers in frames.cells])


def averaged_mix(names: Sequence[str]) -> Mix:
    """Return all signatures averaged."""
    return {name: 1 / len(names) for name in names}


def by_mix(mixes: Sequence[Mix]) -> Mapping[MixKey, list[int]]:
    """Return the places of each mix."""
    groups: dict[MixKey, list[int]] = defaultdict(list)
    for index, mix in enumerate(mixes):
        groups[mix_key(mix)].append(index)
    return groups


def classify(
    model: PatchableModel,
    pixels: Tensor,
    mixes: Sequence[Mix],
    frames: NDArray[np.int64] | None = None,
    spec: InputSpec | None = None,
) -> NDArray[np.int64]:
    """Return the class of images, int64 (K,), each under its own mix; those of one mix go through the model together.

    Pixels are uint8 (N, 3, H, W), RGB; `frames`, int64 (K,), say which image each mix is for, None: each once, K = N;
    `spec` what the model takes of them, None: float32, 0…1.
    The mix of the last group stays in effect.
    """
    classes = np.empty(len(mixes), np.int64)
    for key, members in by_mix(mixes).items():
        model.apply(dict(key))
        for part in torch.split(torch.tensor(members), BATCH):
            shown = part if frames is None else torch.from_numpy(frames)[part]
            classes[part.numpy()] = model.predict(as_input(pixels[shown], spec))[0].argmax(1)
    return classes


def outputs_of(model: PatchableModel, pixels: Tensor, spec: InputSpec | None = None) -> tuple[NDArray[Any], ...]:
    """Return a model's outputs for images, uint8 (N, 3, H, W), RGB, under its mix in effect; batch first."""
    parts = [model.predict(as_input(part, spec)) for part in torch.split(pixels, BATCH)]
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


def percent_right(model: PatchableModel, pixels: Tensor, labels: Tensor, spec: InputSpec | None = None) -> float:
    """Return the accuracy of a classifier under its mix in effect, percent."""
    return 100 * float((outputs_of(model, pixels, spec)[0].argmax(1) == labels.cpu().numpy()).mean())


class Evaluator:
    """Runs frames through a patchable model under given mixes; each frame runs once under each mix."""

    def __init__(self, model: PatchableModel, frames: Frames, spec: InputSpec | None = None) -> None:
        self.model, self.frames, self._spec = model, frames, spec
        self._known: dict[MixKey, dict[int, int]] = defaultdict(dict)

    def answers(self, mixes: Sequence[Mix]) -> NDArray[np.int64]:
        """Return the class of each frame under its own mix, int64 (N,)."""
        return self._answers([mix_key(mix) for mix in mixes], range(len(mixes)))

    def right(self, mixes: Sequence[Mix]) -> NDArray[np.bool_]:
        """Return whether each frame is classified right under its own mix, bool (N,)."""
        return np.equal(self.answers(mixes), self.frames.labels)

    def right_under(self, mix: Mix, chosen: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """Return whether the chosen frames, int64 (K,), or all of them, are right under one mix, bool (K,)."""
        frames = np.arange(len(self.frames)) if chosen is None else chosen
        return np.equal(self._answers([mix_key(mix)] * len(frames), frames.tolist()), self.frames.labels[frames])

    def _answers(self, keys: Sequence[MixKey], frames: Sequence[int]) -> NDArray[np.int64]:
        wanted = dict.fromkeys(zip(keys, frames, strict=True))
        missing = [(key, frame) for key, frame in wanted if frame not in self._known[key]]
        if missing:
            shown = np.array([frame for _, frame in missing])
            classes = classify(self.model, self.frames.pixels, [dict(key) for key, _ in missing], shown, self._spec)
            for (key, frame), answer in zip(missing, classes.tolist(), strict=True):
                self._known[key][frame] = answer
        return np.array([self._known[key][frame] for key, frame in zip(keys, frames, strict=True)], np.int64)


def prepare(
    bundle: Bundle, images: Images, cells: Sequence[Layers], options: EvaluationOptions, purpose: str = "test"
) -> tuple[Evaluator, list[Belief]]:
    """Return an evaluator of shuffled images, corrupted as `cells` say, and the oracle's beliefs of them."""
    order = shuffled(images, None, options.seed)
    limit = options.validation_limit if purpose == "validation" else options.limit
    frames = make_frames(order.first(limit), cells, options.seed, order.first(options.clean_limit), purpose=purpose)
    evaluator = Evaluator(bundle.model(ModelOptions(threads=options.threads)), frames, bundle.manifest.input)
    return evaluator, beliefs_of(bundle.oracle(options.threads), frames)
