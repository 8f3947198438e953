"""Measure an oracle of camera frames on photographs of sources that its training did not see.

They are clear ones, the same ones corrupted, and ones with real corruption: sensor noise, little light, rain.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rws.benchmarks.common.interleave import paired_ratio, timed_blocks
from rws.benchmarks.common.shares import interval
from rws.benchmarks.common.tables import Record
from rws.benchmarks.oracle.agreement import agreement_row, read_yolox
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.preprocess import cover, preprocess
from rws.edge.runtime import Runtime
from rws.edge.sources.open import open_source
from rws.errors import FrameError, InputError
from rws.oracle.belief import CLEAN, FAMILIES, Belief
from rws.oracle.classifier import Oracle
from rws.training.corruptions import CORRUPTIONS, corrupt, seeds_for
from rws.training.data.photographs import Image
from rws.training.evaluation.evaluator import Progress, silent
from rws.training.jobs.seeds import derive_seed

SEVERE = 3.0
DARK = 60  # of 255: the mean luminance below which a photograph of the low-light set is dark
FRAMES = ((480, 640), (1080, 1920))  # height, width, of which the time is measured
ALIKE = {"gaussian_blur": "defocus_blur"}  # counted as one type, too: at the right severities they look the same
NOISE_PAIR = ("real", "mean")  # what the names of a noisy image and of its noise-free mean end in


@dataclass(frozen=True)
class CameraSets:
    """Folders, by what they hold, and how many photographs of each are taken at most."""

    clear: Sequence[str]
    noise: str | None = None  # pairs, `…real.…` and `…mean.…`
    dark: str | None = None
    rain: Sequence[str] = ()
    clips: Sequence[str] = ()
    sizes: Sequence[int] = (224, 512)
    reference: Path | None = None  # a larger detector; see `read_yolox`
    cell: int = 12  # photographs of each corruption, severity and size
    limit: int = 500


def measure_cameras(bundle: Bundle, sets: CameraSets, seed: int = 0, progress: Progress = silent) -> Record:
    """Measure all that `sets` has, percentages with 95 % intervals; InputError if a folder holds too little."""
    oracle = bundle.oracle(threads=1)
    photographs = {source: list(_named(source, sets.limit).values()) for source in sets.clear}
    beliefs = {Path(source).name: _beliefs(oracle, images) for source, images in photographs.items()}
    of_all = [belief for each in beliefs.values() for belief in each]
    found: Record = {"clear": [_clear_row(source, each) for source, each in {**beliefs, "all": of_all}.items()]}
    for row in found["clear"]:
        progress(f"{row['source']}: {row['images']} images, clean {row['clean']:.1f} %, severe {row['severe']:.1f} %")
    images, real = [image for each in photographs.values() for image in each], dict[str, list[Image]]()
    found["types"] = [_types_row(oracle, images, size, sets.cell, seed) for size in sets.sizes]
    for row in found["types"]:
        progress(f"{row['size']} px: type {row['type']:.1f} %, at severity 5 {row['type_severity_5']:.1f} %")
    if sets.noise is not None:
        found["noise"] = _noise_row(oracle, sets.noise)
    if sets.dark is not None:
        dark = {name: image for name, image in _named(sets.dark).items() if _luminance(image) < DARK}
        found["dark"] = _named_row(oracle, dark, ("low_light",), of_all)
        real["low_light"] = list(dark.values())
    if sets.rain:
        rain = {f"{Path(source).name}/{name}": image for source in sets.rain for name, image in _named(source).items()}
        found["rain"] = _named_row(oracle, rain, ("rain", "lens_dirt"), of_all)
        real["rain"] = list(rain.values())
    if sets.reference is not None:
        larger = read_yolox(sets.reference, bundle.manifest.classes)
        found["agreement"] = [
            {"set": name} | agreement_row(bundle, images, name, larger) for name, images in real.items()
        ]
    if sets.clips:
        found["clips"] = [_clip_row(bundle, clip) for clip in sets.clips]
    found["times"] = [_time_row(bundle, height, width) for height, width in FRAMES]
    return found


def _named(source: str, limit: int | None = None) -> dict[str, Image]:
    """Return the images of a folder by their names in it, or of a file; InputError if there is none."""
    with open_source(source, latest=False) as opened:
        images = {os.path.relpath(frame.name, source): frame.image for frame in islice(opened, limit)}
    if not images:
        raise InputError(f"{source}: holds no image")
    return images


def _luminance(image: Image) -> float:
    return float((image @ np.array([0.299, 0.587, 0.114])).mean())


def _beliefs(oracle: Oracle, images: Iterable[Image]) -> list[Belief]:
    if oracle.view is None:
        raise InputError("the oracle sees no frames; give a bundle")
    return [oracle.observe(oracle.view.take(image)) for image in images]


def _share(count: int, of: int) -> tuple[float, tuple[float, float]]:
    return 100 * count / of, interval(count, of)


def _clear_row(source: str, beliefs: Sequence[Belief]) -> Record:
    clean, bounds = _share(sum(belief.type == CLEAN for belief in beliefs), len(beliefs))
    severe, severe_bounds = _share(sum(belief.type_severity >= SEVERE for belief in beliefs), len(beliefs))
    row = {"source": source, "images": len(beliefs), "clean": clean, "clean_interval": bounds}
    return row | {"severe": severe, "severe_interval": severe_bounds}


def _types_row(oracle: Oracle, images: Sequence[Image], size: int, cell: int, seed: int) -> Record:
    """Corrupt squares cut out of photographs; accuracies are of the 19 and, by name, of each corruption."""
    large = [image for image in images if min(image.shape[:2]) >= size]
    if not large:
        raise InputError(f"no photograph of {size} pixels or more; give larger ones, or other --size")
    rng = np.random.default_rng(derive_seed(seed, "cameras", draw=size))
    named: dict[tuple[str, int], list[Belief]] = {}
    for name, severity in product(oracle.corruptions, range(1, 6)):
        chosen = [cover(large[int(place)], size, size) for place in rng.integers(0, len(large), cell)]
        pixels = torch.from_numpy(np.stack(chosen).transpose(0, 3, 1, 2).copy())
        seeds = seeds_for(derive_seed(seed, "cameras", name, severity, size), cell)
        made = corrupt(pixels, name, severity, seeds).permute(0, 2, 3, 1).contiguous().numpy()
        named[name, severity] = _beliefs(oracle, made)

    def share(condition: Any, severities: Sequence[int] = range(1, 6), names: Sequence[str] = CORRUPTIONS) -> float:
        answers = [
            condition(belief, name, level) for name in names for level in severities for belief in named[name, level]
        ]
        return 100 * float(np.mean(answers))

    def right(belief: Belief, name: str, _: int) -> bool:
        return belief.type == name

    def right_but_alike(belief: Belief, name: str, _: int) -> bool:
        return ALIKE.get(belief.type, belief.type) == ALIKE.get(name, name)

    return {
        "size": size,
        "images": cell,
        "type": share(right),
        "type_merged": share(right_but_alike),
        "type_severity_5": share(right, [5]),
        "type_severity_5_merged": share(right_but_alike, [5]),
        "called_clean": share(lambda belief, *_: belief.type == CLEAN, [3, 4, 5]),
        "severity_error": share(lambda belief, _, level: abs(belief.expected_severity - level)) / 100,
        "by_corruption": {name: share(right, names=[name]) for name in oracle.corruptions},
    }


def _noise_row(oracle: Oracle, folder: str) -> Record:
    """Return how well the probability of noise tells real noise from its absence: the area under the ROC curve."""
    scores: Mapping[str, list[float]] = {kind: [] for kind in NOISE_PAIR}
    for name, image in _named(folder).items():
        kind = Path(name).stem.lower().rsplit("_", 1)[-1]
        if kind in scores:
            belief = _beliefs(oracle, [image])[0]
            by_name = dict(zip(belief.names, belief.probability.tolist(), strict=True))
            scores[kind].append(sum(by_name.get(noise, 0.0) for noise in FAMILIES["noise"]))
    noisy, clean = (np.array(scores[kind]) for kind in NOISE_PAIR)
    if not len(noisy) or not len(clean):
        raise InputError(f"{folder}: holds no pairs of images …_real and …_mean")
    above = (noisy[:, None] > clean).mean() + 0.5 * (noisy[:, None] == clean).mean()
    return {"images": len(noisy), "auc": float(above)}


def _named_row(oracle: Oracle, images: Mapping[str, Image], names: Sequence[str], clear: Sequence[Belief]) -> Record:
    """Return how many images are named so, and how many clear ones were, by mistake."""
    if not images:
        raise InputError(f"no image for {', '.join(names)}")
    found = [belief.type for belief in _beliefs(oracle, images.values())]
    share, bounds = _share(sum(kind in names for kind in found), len(found))
    false = [belief.type in names for belief in clear]
    as_named = {kind: found.count(kind) for kind in sorted(set(found))}
    row = {"files": list(images), "images": len(found), "named": share, "named_interval": bounds, "as": as_named}
    return row | {"false_alarms": 100 * float(np.mean(false))}


def _clip_row(bundle: Bundle, clip: str) -> Record:
    """Return how many frames of a clear clip are patched, as `rws run` patches them."""
    patched = frames = 0
    with Runtime.from_bundle(bundle, ModelOptions(threads=1)) as runtime, open_source(clip, latest=False) as opened:
        for result in runtime.stream(opened):
            if result is not None and not isinstance(result, FrameError):
                frames, patched = frames + 1, patched + bool(result.mix)
    share, bounds = _share(patched, max(1, frames))
    return {"clip": Path(clip).name, "frames": frames, "patched": share, "patched_interval": bounds}


def _time_row(bundle: Bundle, height: int, width: int) -> Record:
    """Return medians, ms: what the oracle adds to a frame; it, the model and its preprocessing take turns."""
    model, oracle, spec = bundle.model(ModelOptions(threads=1)), bundle.oracle(threads=1), bundle.manifest.input
    view, image = bundle.manifest.view, np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    x = preprocess(image, spec)[0]
    steps = {
        "preprocess_ms": lambda: preprocess(image, spec),
        "model_ms": lambda: model.predict(x),
        "view_ms": lambda: view.take(image),
        "oracle_ms": lambda: oracle.observe(view.take(image)),
    }
    blocks = {name: timed_blocks(step) for name, step in steps.items()}
    rounds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(15):
        for name, block in blocks.items():
            rounds[name].append(float(np.median(block().ms)))
    row: Record = {"width": width, "height": height, **{name: float(np.median(ms)) for name, ms in rounds.items()}}
    oracle_ms, model_ms, fit_ms = (np.array(rounds[f"{part}_ms"])[None] for part in ("oracle", "model", "preprocess"))
    row["of_model"], *row["of_model_interval"] = paired_ratio(oracle_ms, model_ms)
    row["of_frame"], *row["of_frame_interval"] = paired_ratio(oracle_ms, model_ms + fit_ms)
    return row
