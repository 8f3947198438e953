"""Third-party models: a bundle built from some of the images without labels, measured on others.

`std` is the model as it was received, `perfect` takes the true type's own signature at its calibrated alpha, `trained`
is the bundle's oracle and policy on single images. Agreement is with the clean model's prediction for the clean image.
Accuracy and agreement of a detector are mAP50, of a network that reads text the share of lines that are read right.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rws.benchmarks.common.interleave import timed_blocks
from rws.benchmarks.common.shares import interval
from rws.benchmarks.common.tables import Record
from rws.benchmarks.zoo.quantised import FORMS, compare_int8, quantised
from rws.benchmarks.zoo.scorers import BoxScorer, ClassScorer, Scorer, TextScorer
from rws.benchmarks.zoo.text import characters_of, make_lines
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import CIFAR10_BUNDLE
from rws.edge.bundle.manifest import MODEL, SIGNATURES
from rws.edge.bundle.options import ModelOptions
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.onnx.graph import read_model
from rws.errors import InputError, UsageError, check_known
from rws.oracle.belief import CLEAN, per_type
from rws.oracle.classifier import Oracle
from rws.oracle.policy import ReferencePolicy
from rws.records import Mix
from rws.training.adopt.build import AdoptionBuild
from rws.training.adopt.graph import Preprocessing
from rws.training.adopt.model import ImportedModel, ImportOptions, adopt_model
from rws.training.adopt.outputs import Wanted
from rws.training.adopt.recipe import AdoptRecipe, load_adopt_recipe
from rws.training.adopt.trainable import signature_bytes
from rws.training.corruptions import CORRUPTIONS
from rws.training.corruptions.frames import corrupt_frame
from rws.training.data.boxes import load_boxes
from rws.training.data.clean_images import CleanImages, fit_frames, load_clean_images, load_labelled
from rws.training.data.images import Images
from rws.training.data.names import read_names
from rws.training.data.photographs import Image, Photographs
from rws.training.evaluation.evaluator import (
    DEFAULTS,
    EvaluationOptions,
    Progress,
    as_input,
    ground_truth_mixes,
    observe,
    outputs_of,
    percent_right,
    silent,
)
from rws.training.evaluation.frames import TWO_SEVERITIES, corrupted
from rws.training.evaluation.sets import EvaluationSet, corrupted_sets
from rws.training.jobs.progress import JobLines, read_log
from rws.training.jobs.seeds import derive_seed
from rws.training.models.foreign import efficientnet_lite, load_model
from rws.training.tasks.registry import make_objective

ARMS = ("std", "trained", "perfect")


@dataclass(frozen=True)
class ZooOptions:
    """Options of all builds and measurements of the zoo.

    Args:
        names: file with the folders' names in the order of the logits, None: the folders in their own order; of a
            detector its classes, of a network that reads text phrases, of which one half is built with.
        titles: file with the bundle's names of the classes, in the same order; None: the folders' names.
        recipe: settings of `AdoptRecipe` in a TOML file; None: its own.
        limit: at most this many images in all.
        file, test: of a detector or a network that reads text: its `.onnx` file; a folder of images with label files,
            see `load_boxes`, or of photographs to write on.
        own_oracle, onto: folders of photographs and a bundle, as in `rws adopt`.
        int8: a classifier is quantised before it is adopted, in one of `quantised.FORMS`; "": it is not.
    """

    names: Path | None = None
    titles: Path | None = None
    recipe: Path | None = None
    quick: bool = False
    limit: int | None = None
    threads: int = 2
    seed: int = 0
    progress: Progress = silent
    file: Path | None = None
    test: Path | None = None
    int8: str = ""
    own_oracle: Sequence[str] = ()
    onto: Path | None = None


_LITE = ImportOptions(preprocessing=Preprocessing(scale=255, mean=(127,), std=(128,)))
_PADDLE = ImportOptions((48, 320), Preprocessing(1, (0.5,), (0.5,), bgr=True), Wanted("raw"))


@dataclass(frozen=True)
class ZooModel:
    """A model as its owner would have exported it, ONNX bytes, of some from `--file`; and what is said of it."""

    load: Callable[[Path | None], bytes]
    options: ImportOptions
    kind: Literal["classes", "boxes", "text"] = "classes"


def _file(path: Path | None) -> bytes:
    return load_model(str(path))


ZOO: Mapping[str, ZooModel] = {
    "efficientnet_lite0": ZooModel(lambda _: efficientnet_lite(0, 224), _LITE),
    "efficientnet_lite1": ZooModel(lambda _: efficientnet_lite(1, 240), _LITE),
    "efficientnet_lite2": ZooModel(lambda _: efficientnet_lite(2, 260), _LITE),
    "cifar10": ZooModel(lambda _: _file(CIFAR10_BUNDLE / MODEL), ImportOptions()),
    "fastestdet": ZooModel(_file, ImportOptions(None, Preprocessing(bgr=True), fit="stretch"), "boxes"),
    "ppocr_rec": ZooModel(_file, _PADDLE, "text"),
}


def halves(images: Images) -> tuple[Images, Images]:
    """Return the images of the build, the first and every second after it, and those of the test, the others."""
    return images.take(range(0, len(images), 2)), images.take(range(1, len(images), 2))


def measure(
    bundle: Bundle,
    test: Images,
    severities: Sequence[int] = TWO_SEVERITIES,
    options: EvaluationOptions = DEFAULTS,
    scorer: Scorer | None = None,
    whole: Sequence[Image] = (),
) -> Record:
    """Measure accuracy and agreement by arm, corruption and severity, percent; the build has not seen `test`.

    `summary` is of the 19; `summary_cameras` of all that the oracle knows, if those are more. `scorer`: None: that of a
    classifier. `whole`: the test images at their own size, uint8 (H, W, 3), RGB: they are corrupted, then fitted, as
    frames of a camera are; the oracle sees them whole.
    """
    scorer = scorer or ClassScorer(bundle)
    model, oracle = bundle.model(ModelOptions(threads=options.threads)), bundle.oracle(threads=options.threads)
    policy, truth = bundle.policy(independent=True), ReferencePolicy(bundle.table, "perfect")
    rows: list[Record] = []
    sets = _whole_sets(bundle, oracle, (whole, test), severities, options.seed)
    if not whole:
        fitted = corrupted_sets(test, severities, None, options.seed, oracle.corruptions)
        sets = ((made, observe(oracle, made.images.pixels)) for made in fitted)
    for made, joint in sets:
        frames = made.frames
        named = per_type(joint, len(oracle.corruptions)).argmax(1)
        asked = policy.mixes(joint)
        no_patch: list[Mix] = [{}] * len(frames)
        mixes = {"std": no_patch, "trained": asked, "perfect": ground_truth_mixes(truth, frames)}
        answers = {arm: scorer.answers(model, frames, chosen) for arm, chosen in mixes.items()}
        accuracy = {arm: scorer.accuracy(found, frames) for arm, found in answers.items()}
        if made.corruption == CLEAN:
            reference = answers["std"]
            changed = scorer.changed(answers["trained"], reference)
            clean: Record = {
                "accuracy": accuracy["std"],
                "accuracy_trained": accuracy["trained"],
                "changed": 100 * changed / len(frames),
                "changed_interval": interval(changed, len(frames)),
                "patched": 100 * sum(bool(mix) for mix in asked) / len(frames),
                "named_clean": _percent(named == 0),
            }
            options.progress(f"clean: {clean}")
            continue
        row = {
            "corruption": made.corruption,
            "severity": made.severity,
            "accuracy": accuracy,
            "agreement": {arm: scorer.agreement(found, reference) for arm, found in answers.items()},
            "named": _percent(named == 1 + oracle.corruptions.index(made.corruption)),
        }
        rows.append(row)
        reached = ", ".join(f"{arm} {value:.1f}" for arm, value in accuracy.items())
        options.progress(f"{made.corruption} {made.severity}: {reached}, named {row['named']:.0f}")
    of_paper = [row for row in rows if row["corruption"] in CORRUPTIONS]
    found: Record = {"clean": clean, "rows": rows, "summary": summarise(clean["accuracy"], of_paper)}
    if len(of_paper) < len(rows):
        found["summary_cameras"] = summarise(clean["accuracy"], rows)
    return found


def _whole_sets(
    bundle: Bundle, oracle: Oracle, images: tuple[Sequence[Image], Images], severities: Sequence[int], seed: int
) -> Iterator[tuple[EvaluationSet, NDArray[np.float32]]]:
    """Yield what `corrupted_sets` does, of images that are corrupted at their own size, and the oracle's beliefs."""
    (whole, test), view = images, bundle.manifest.view
    for name, severity in [(CLEAN, 0), *product(oracle.corruptions, severities)]:
        frames = list(whole)
        if severity:
            seeds = (derive_seed(seed, "whole images", name, severity, place) for place in range(len(whole)))
            frames = [corrupt_frame(image, name, severity, drawn, 0) for image, drawn in zip(whole, seeds, strict=True)]
        joint = np.concatenate([oracle.observe_batch(view.take(frame)[None]) for frame in frames])
        yield EvaluationSet(name, severity, replace(test, pixels=fit_frames(frames, bundle.manifest.input))), joint


def summarise(clean: float, rows: Sequence[Record]) -> Record:
    """Average the rows, and compare with the clean accuracy; the clean model agrees with itself on clean images."""

    def against(best: float, key: str) -> Record:
        mean = {arm: float(np.mean([row[key][arm] for row in rows])) for arm in ARMS}
        lost = best - mean["std"]
        won = {arm: 100 * (mean[arm] - mean["std"]) / lost if lost > 0 else 0.0 for arm in ("trained", "perfect")}
        return {**mean, "won_back": won}

    named = float(np.mean([row["named"] for row in rows]))
    return {"named": named, "accuracy": against(clean, "accuracy"), "agreement": against(100.0, "agreement")}


def _percent(right: NDArray[np.bool_]) -> float:
    return 100 * float(right.mean())


def compare_backends(bundle: Bundle, test: Images, mix: Mix, count: int = 32) -> dict[str, float]:
    """Return how much the logits of ONNX Runtime and Torch differ under a mix, and the share of equal predictions."""
    models = [bundle.model(ModelOptions(backend, provider="cpu")) for backend in ("onnx", "torch")]
    for model in models:
        model.apply(mix)
    spec, manifest = bundle.manifest.input, bundle.manifest
    onnx, torched = (outputs_of(model, test.first(count).pixels, spec) for model in models)
    objective = make_objective(manifest.task, manifest.classes, (spec.height, spec.width))
    return {
        "difference": max(float(np.abs(one - other).max()) for one, other in zip(onnx, torched, strict=True)),
        "largest": max(float(np.abs(output).max()) for output in onnx),
        "same_predictions": objective.agreement(onnx, torched),
    }


def frame_times(bundle: Bundle, test: Images) -> dict[str, float]:
    """Return the median milliseconds of the model, and of oracle, its view and policy; one thread, one image."""
    model, oracle, policy = bundle.model(ModelOptions(threads=1)), bundle.oracle(threads=1), bundle.policy()
    x, image = as_input(test.pixels[:1], bundle.manifest.input)[0], test.pixels[0].permute(1, 2, 0).contiguous().numpy()
    view = bundle.manifest.view
    steps: dict[str, Callable[[], object]] = {
        "model_ms": lambda: model.predict(x),
        "oracle_ms": lambda: policy.choose(oracle.observe(view.take(image))),
    }
    return {key: float(np.median(timed_blocks(step)().ms)) for key, step in steps.items()}


def sizes(bundle: Bundle) -> dict[str, float]:
    """Return the bytes of the bundle, its model, and a signature; the latter also in percent of the model."""
    files = {name: entry.bytes for name, entry in bundle.manifest.files.items()}
    signature = files[SIGNATURES] / len(bundle.signatures.names)
    return {
        "bundle_bytes": sum(files.values()),
        "model_bytes": files[MODEL],
        "signature_bytes": signature,
        "signature_percent": 100 * signature / files[MODEL],
    }


@dataclass(frozen=True)
class _Prepared:
    # The labels of a classifier's test are places in the model's logits; the class names may be unknown.
    model: ImportedModel
    build: Tensor
    test: Images
    scorer: Callable[[Bundle], Scorer]
    recipe: AdoptRecipe
    classes: list[str] | None = None
    int8: bytes = b""
    own_oracle: Sequence[str] = ()
    whole: Sequence[Image] = ()

    def adoption(self, work: Path, recipe: AdoptRecipe, **named: Any) -> AdoptionBuild:
        photographs = Photographs.load(self.own_oracle) if self.own_oracle else None
        images = CleanImages(self.build, photographs=photographs)
        return AdoptionBuild(self.model, images, recipe, work, **{"classes": self.classes} | named)


def _prepare(name: str, images: Sequence[str], options: ZooOptions) -> _Prepared:
    if name not in ZOO:
        raise InputError(f"--model {name!r} is not one of {', '.join(ZOO)}")
    zoo, file, test = ZOO[name], options.file, options.test
    torch.set_num_threads(options.threads)
    recipe = replace(AdoptRecipe() if options.recipe is None else load_adopt_recipe(options.recipe), seed=options.seed)
    if zoo.kind == "classes":
        if (file, test) != (None, None):
            raise UsageError(f"--model {name}: a classifier takes neither --file nor --test")
        if len(images) > 1:
            raise UsageError(f"--model {name}: a classifier takes one folder of --images, found {len(images)}")
        check_known("form of int8", filter(None, [options.int8]), FORMS)
        return _classifier(zoo, images[0], recipe, options)
    if options.names is None or file is None or test is None or options.int8:
        raise UsageError(f"--model {name} needs --file, --test and --names, and takes no --int8")
    names, content = read_names(options.names), zoo.load(file)
    boxes = zoo.kind == "boxes"
    model = adopt_model(content, replace(zoo.options, names=names if boxes else None))
    size, fit = (model.input.height, model.input.width), model.input.fit
    side = size if boxes else (max(size), max(size))

    def photographs(source: str) -> Tensor:
        return load_clean_images(source, side, fit=fit, limit=options.limit, whole=boxes).pixels

    build = torch.cat([photographs(each) for each in images])
    if boxes:
        frames, truth = load_boxes(test, model.input, model.classes or ())
        fitted = _unlabelled(fit_frames(frames, model.input))
        return _Prepared(model, build, fitted, partial(BoxScorer, truth=truth), recipe, whole=frames)
    of_build, of_test = ([names[k] for k in range(first, len(names), 2)] for first in (0, 1))
    written = [of_build[number % len(of_build)] for number in range(max(len(build), len(of_build)))]
    build = make_lines(build, written, size, options.seed)
    pixels = make_lines(photographs(str(test)), of_test, size, options.seed + 1)
    read = partial(TextScorer, truth=of_test, characters=characters_of(content))
    return _Prepared(model, build, _unlabelled(pixels), read, recipe)


def _classifier(zoo: ZooModel, images: str, recipe: AdoptRecipe, options: ZooOptions) -> _Prepared:
    classes = None if options.names is None else read_names(options.names)
    model = adopt_model(zoo.load(None), zoo.options)
    wanted = model.class_count or 0 if classes is None else classes
    both = load_labelled(images, model.input.height, wanted, limit=options.limit, seed=options.seed)
    of_build, test = halves(both)
    int8 = b""
    if options.int8:
        int8 = quantised(zoo.load(None), options.int8, zoo.options.preprocessing, of_build.pixels)
        model = adopt_model(int8, zoo.options)
    return _Prepared(model, of_build.pixels, test, ClassScorer, recipe, classes, int8)


def _unlabelled(pixels: Tensor) -> Images:
    return Images(pixels, torch.zeros(len(pixels), dtype=torch.int64), ())


def run_entry(model: str, images: Sequence[str], work: Path, out: Path | None, options: ZooOptions) -> Record:
    """Build a bundle for a model of the zoo, and measure it on images that the build has not seen.

    Args:
        model: one of `ZOO`; InputError if it is unknown or the images do not fit it.
        images: of a classifier a folder `<class>/<image>`, of which the build gets one half, without labels; of others
            clean images for the build.
        work: folder of the build; a stopped build continues.
        out: the bundle; None: in `work`.
    """
    prepared, started = replace(_prepare(model, images, options), own_oracle=options.own_oracle), time.monotonic()
    named: dict[str, Any] = {} if options.titles is None else {"classes": read_names(options.titles)}
    recipe = prepared.recipe.quick() if options.quick else prepared.recipe
    named |= {"name": model, "progress": JobLines(), "onto": options.onto and Bundle.load(options.onto)}
    adoption, folder = prepared.adoption(work, recipe, **named), out or work / "bundle"
    adoption.bundle(folder)
    bundle, spent, test = Bundle.load(folder), parts_of_build(work), prepared.test
    scorer = prepared.scorer(bundle)
    severities = TWO_SEVERITIES if isinstance(scorer, ClassScorer) else (TWO_SEVERITIES[0],)
    evaluation = EvaluationOptions(seed=options.seed, threads=options.threads, progress=options.progress)
    found = measure(bundle, test, severities, evaluation, scorer, prepared.whole)
    if prepared.int8:
        found["int8"] = compare_int8(prepared.int8, ZOO[model].options.preprocessing, bundle, test)
    return {
        **found,
        "model": model,
        "quick": options.quick,
        "build_images": len(prepared.build),
        "test_images": len(test),
        "layers": adoption.layers,
        "target": adoption.target,
        "recipe": asdict(adoption.recipe),
        "build_minutes": spent,
        "this_run_minutes": round((time.monotonic() - started) / 60, 2),
        "threads": options.threads,
        "sizes": sizes(bundle),
        "frame": frame_times(bundle, test),
        **({} if prepared.int8 else {"torch": compare_backends(bundle, test, {"fog": 1.0})}),
        "held_out": dict(bundle.manifest.measured),
        "seed": options.seed,
        "data": {"source": ", ".join(Path(each).name for each in images), "test": test.digest()},
    }


def parts_of_build(work: Path) -> dict[str, float]:
    """Return the minutes of each part of a build, from its log; of a stopped build, what was kept counts."""
    spent: dict[str, dict[str, float]] = {}
    for record in read_log(work / "log.jsonl"):
        if "done" in record:
            spent.setdefault(record["job"].split("-")[0], {})[record["job"]] = record["seconds"]
    minutes = {kind: round(sum(took.values()) / 60, 2) for kind, took in spent.items()}
    return {**minutes, "all": round(sum(minutes.values()), 2)}


def run_curve(
    model: str, images: str, work: Path, layers: Sequence[int], corruptions: Sequence[str], options: ZooOptions
) -> Record:
    """Measure gain by bytes: signatures of a growing number of convolutions, at alpha 1 and 8 bits."""
    prepared = _prepare(model, [images], options)
    test, onnx = prepared.test, prepared.model.onnx
    proto = read_model(onnx)
    rows = []
    for count in layers:
        adoption = prepared.adoption(work / str(count), replace(prepared.recipe, layers=count))
        signatures = adoption.signatures(corruptions)
        patched = OnnxModel(onnx, signatures, adoption.tensors, "cpu", options.threads)
        scores: dict[str, list[float]] = {"std": [], "perfect": []}
        for name, severity in product(corruptions, TWO_SEVERITIES):
            pixels = corrupted(test.pixels, ((name, severity),), options.seed)
            for arm, mix in (("std", {}), ("perfect", {name: 1.0})):
                patched.apply(mix)
                scores[arm].append(percent_right(patched, pixels, test.labels, prepared.model.input))
        std, perfect = (float(np.mean(found)) for found in scores.values())
        size = sum(array.size for array in adoption.clean.values())
        share = 100 * signature_bytes(proto, count) / len(onnx)
        rows.append({"layers": count, "parameters": size, "signature_percent": share, "std": std, "perfect": perfect})
        options.progress(json.dumps(rows[-1]))
    return {
        "model": model,
        "corruptions": list(corruptions),
        "rows": rows,
        "test_images": len(test),
        "seed": options.seed,
        "data": {"source": Path(images).name, "test": test.digest()},
    }
