"""What is understood of a model before anything is trained: its preprocessing, tried on images, and a few lines."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import onnx
from numpy.typing import NDArray

from rws.edge.live.session import LiveSession
from rws.edge.live.sessions import random_feeds
from rws.edge.onnx.graph import shallow_tensors
from rws.edge.preprocess import preprocess
from rws.errors import UsageError
from rws.training.adopt.graph import Preprocessing, Runner
from rws.training.adopt.model import ImportedModel
from rws.training.adopt.outputs import by_ultralytics
from rws.training.adopt.trainable import layers_within, signature_bytes

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_USUAL = (
    Preprocessing(),
    Preprocessing(255),
    Preprocessing(1, IMAGENET_MEAN, IMAGENET_STD),
    Preprocessing(1, (0.5,), (0.5,)),
    Preprocessing(255, (127.0,), (128.0,)),
    Preprocessing(255, (123.68, 116.78, 103.94)),
)
_FEWEST, _MOST, _SECONDS = 8, 64, 40.0
_STANDARD_ERRORS = 2.0  # by which a mean must exceed zero to be clear
_ALIKE = 0.02  # mean difference of probabilities that does no harm


@dataclass(frozen=True)
class _Trial:
    preprocessing: Preprocessing
    evidence: NDArray[np.float64]  # (N, D)
    score: NDArray[np.float64]  # (N,)


def find_preprocessing(model: ImportedModel, images: NDArray[np.uint8]) -> tuple[Preprocessing, str]:
    """Try the usual preprocessings on clean images; return the best, and in a line how it compares.

    The score of one is how much an image and its mirror image agree on what is seen, beyond what any two images do: a
    wrong range may make a model surer of itself, but not more consistent.

    Args:
        model: as it takes images without any preprocessing.
        images: uint8 (N, H, W, 3), RGB; more than 64 are not used.
    Raises UsageError, which names the options, if none is clearly better than the others.
    """
    proto = onnx.load_model_from_string(model.onnx)
    if by_ultralytics(proto):
        return Preprocessing(), f"{Preprocessing()}, as Ultralytics exports take it"
    options = "say with --scale, --mean, --std and --bgr what the model takes (--scale 1: RGB 0…1)"
    if model.task.name == "raw" and len(model.shapes[0]) != 1:
        raise UsageError(f"model: the task raw has no score by which a preprocessing could be chosen: {options}")
    run = Runner(proto)
    x = np.stack([preprocess(image, model.input)[0] for image in images[:_MOST]])
    candidates = list(_candidates(model))
    step = model.batch or 1
    start = perf_counter()
    run(np.repeat(x[:1], step, axis=0))
    each = (perf_counter() - start) / step
    x = x[: max(_FEWEST, int(_SECONDS / (2 * len(candidates) * max(each, 1e-6))))]
    trials = sorted((_try(model, run, x, candidate) for candidate in candidates), key=lambda trial: -trial.score.mean())
    best, *others = trials
    said = ", ".join(f"{trial.preprocessing} {trial.score.mean():.3f}" for trial in trials[:4])
    if not _clearly(best.score):
        raise UsageError(f"model: sees no difference between {len(x)} images, whatever the preprocessing: {options}")
    for other in others:
        alike = np.abs(best.evidence - other.evidence).sum(1).mean() < _ALIKE
        if not alike and not _clearly(best.score - other.score):
            found = f"{best.preprocessing} and {other.preprocessing} do not differ clearly on {len(x)} images"
            raise UsageError(f"model: {found} (scores: {said}): {options}")
    return best.preprocessing, f"{best.preprocessing} (scores on {len(x)} images: {said})"


def _clearly(gain: NDArray[np.float64]) -> bool:
    return bool(gain.mean() > _STANDARD_ERRORS * gain.std(ddof=1) / np.sqrt(len(gain)) and gain.mean() > 1e-6)


def _candidates(model: ImportedModel) -> Iterator[Preprocessing]:
    for bgr in (False, True) if model.input.colour == "RGB" else (False,):
        for usual in _USUAL[:1] if model.input.dtype == "uint8" else _USUAL:
            mean, std = (values[:: -1 if bgr else 1] for values in (usual.mean, usual.std))
            if model.input.colour != "RGB":
                mean, std = (float(np.mean(mean)),), (float(np.mean(std)),)
            yield replace(usual, mean=mean, std=std, bgr=bgr)


def _try(model: ImportedModel, run: Runner, x: NDArray[np.generic], how: Preprocessing) -> _Trial:
    axis = 1 if model.input.layout == "NCHW" else 3
    values = how.apply(x, axis)
    plain, mirrored = (_evidence(model, run, part) for part in (values, np.flip(values, 3 if axis == 1 else 2)))
    return _Trial(how, plain, (plain * (mirrored - mirrored.mean(0))).sum(1))


def _evidence(model: ImportedModel, run: Runner, x: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return what a model sees in each image, wherever it is in it: float64 (N, D)."""
    step = model.batch or 1
    filled = np.concatenate([x, np.repeat(x[-1:], -len(x) % step, axis=0)])
    parts = [run(filled[start : start + step])[0] for start in range(0, len(filled), step)]
    return np.stack([_seen(model, output) for output in np.concatenate(parts)[: len(x)].astype(np.float64)])


def _seen(model: ImportedModel, output: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for one image the probability of each class, how much of what is seen it is, or a direction (`raw`)."""
    task = model.task
    if task.name == "raw":
        return np.asarray(output / max(float(np.linalg.norm(output)), 1e-12))
    if task.name == "multilabel":
        return np.asarray(0.5 * (1 + np.tanh(0.5 * output)))
    if task.name in ("classify", "segment"):
        powers = np.exp(output - output.max(0))
        return np.asarray((powers / powers.sum(0)).reshape(len(output), -1).mean(1))
    scores = _scores(task.head, output)
    return scores / max(float(scores.sum()), 1e-9)


def _scores(head: str, output: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the score of the surest box of each class."""
    if head == "nms":
        scores = np.zeros(4096)
        np.maximum.at(scores, output[:, 5].astype(int).clip(0, 4095), output[:, 4])
        return scores
    rows = output.reshape(len(output), -1).T if head in ("fastestdet", "yolov8") else output
    if head == "yolov8":
        return np.asarray(rows[:, 4:].max(0))
    objectness = rows[:, 0] if head == "fastestdet" else rows[:, 4]
    return np.asarray((objectness[:, None] * rows[:, 5:]).max(0))


def understood(model: ImportedModel, preprocessing: str, layers: int = 0) -> list[str]:
    """Return in a few lines what is understood of a model, after a test that its weights can be changed here.

    Raises StrategyUnavailableError if they cannot. `layers`: how many convolutions are to be patched; 0: see
    `layers_within`.
    """
    proto = onnx.load_model_from_string(model.onnx)
    layers = layers or layers_within(proto)
    spec = model.input
    feeds = random_feeds(proto, (spec.height, spec.width))
    session = LiveSession(proto, tensors=shallow_tensors(proto, layers), provider="cpu", sample=feeds)
    convolutions = sum(node.op_type == "Conv" for node in proto.graph.node)
    share = 100 * signature_bytes(proto, layers) / len(model.onnx)
    head = f", head {model.task.head}" if model.task.head else ""
    outputs = ", ".join(f"{name} {shape}" for name, shape in zip(model.outputs, model.shapes, strict=True))
    named = "unknown" if model.classes is None else f"{', '.join(model.classes[:3])}, …"
    facts: Mapping[str, str] = {
        "input": f"{spec.height}x{spec.width}, {spec.colour} 0…{spec.high}, {spec.dtype} {spec.layout}, fit {spec.fit}",
        "preprocessing": preprocessing,
        "task": f"{model.task.name}{head}: {model.reason}",
        "outputs": outputs if len(outputs) <= 300 else f"{outputs[:300]}, …",
        "classes": "" if model.class_count is None else f"{model.class_count}, names: {named}",
        "batch": "free" if model.batch is None else f"{model.batch} images, which could not be made free",
        "layers": f"the first {layers} of {convolutions} convolutions, about {share:.2f} % of the model per signature",
        "weights": session.description,
    }
    return [f"{name}: {fact}" for name, fact in facts.items() if fact] + [f"changed: {text}" for text in model.changes]
