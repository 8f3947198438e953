"""Corruptions that come and go over a real clip, and our methods on it, frame by frame as on the device.

The clip is shown forwards and backwards; stretches of it are clear and corrupted in turn. F1 counts the boxes of a
stretch that are those of the clean model in the clear frames: all boxes count alike, as mean average precision gives a
class that a stretch shows once as much weight as all cars of a street.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import groupby, pairwise
from operator import getitem
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rws.benchmarks.common.tables import Column, Record, columns, label, spoken
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.onnx.torchvision_compat import torchvision
from rws.edge.preprocess import preprocess
from rws.edge.sources.open import open_source
from rws.edge.tasks.detect import Detections
from rws.errors import InputError
from rws.oracle.belief import CLEAN, Belief
from rws.oracle.policy import ReferencePolicy
from rws.records import Mix
from rws.training.corruptions.frames import corrupt_frame
from rws.training.data.photographs import Image
from rws.training.evaluation.evaluator import MixKey, Progress, mix_key, silent
from rws.training.jobs.seeds import derive_seed

ARMS = ("std", "perfect", "best", "frame", "trained")
"""As in `rws.benchmarks.streams.ours`."""
OBSERVING = ARMS[3:]
VISIBLE = 1.0
"""Severity from which on a corruption should be named."""
OVERLAP = 0.5
"""Of two boxes of one object, intersection over union."""

COLUMNS = (
    label("", lambda row: "clear" if row["name"] == CLEAN else spoken(row["name"])),
    *columns({"F1: no patch": "f1.std", "frame by frame": "f1.frame", "trained oracle": "f1.trained"}, ".1f"),
    *columns({"perfect oracle": "f1.perfect", "best of the gain table": "f1.best"}, ".1f"),
    *columns({"named, %": "trained.named", "patched, %": "trained.patched"}, ".0f"),
    Column("named after, s", "trained.delay_s", ".1f"),
)
"""Of a table of stretches, or of their means."""


@dataclass(frozen=True)
class Change:
    """A corruption that comes and goes: seconds in which it grows, stays, goes, and of clear frames after it."""

    name: str
    severity: float
    grow: float
    stay: float
    go: float
    clear: float = 3.0


CLEAR = 40.0
CHANGES = (
    Change("low_light", 4, 4, 3, 2),
    Change("fog", 4, 4, 3, 2),
    Change("rain", 4, 3, 3, 1),
    Change("lens_dirt", 4, 0.4, 4, 0.4),
)
"""Dusk, fog coming, rain starting, drops and dirt on the lens, after `CLEAR` seconds of clear frames."""


def truth(changes: Sequence[Change], clear: float, fps: float) -> list[tuple[str, float]]:
    """Return corruption and severity of each frame, `clear` and 0 without one; `clear`: seconds before all changes.

    InputError if `fps` is below 1.
    """
    if fps < 1:
        raise InputError(f"fps is {fps:g}, expected 1 or more: at fewer a corruption would be over before a frame")
    frames = [(CLEAN, 0.0)] * round(clear * fps)
    for change in changes:
        ends = np.cumsum([0, change.grow, change.stay, change.go])
        at = np.arange(1, round(ends[-1] * fps)) / fps
        levels = change.severity * np.interp(at, ends, [0, 1, 1, 0])
        frames += [(change.name, float(level)) for level in levels]
        frames += [(CLEAN, 0.0)] * max(1, round(change.clear * fps))
    return frames


def read_clip(source: str | Path, fps: float) -> list[Image]:
    """Return frames of a video, at most `fps` of each second; InputError if there is none."""
    with open_source(source, latest=False) as opened:
        found: dict[int, Image] = {}
        for frame in opened:
            place = frame.index if frame.media_time is None else round(frame.media_time * fps)
            found.setdefault(place, frame.image)
    if not found:
        raise InputError(f"{source}: holds no frame")
    return list(found.values())


@dataclass(frozen=True, eq=False)
class Step:
    """A frame, uint8 (H, W, 3), RGB, before and after its corruption, and what was made of it."""

    number: int
    clear: Image
    image: Image
    name: str
    severity: float
    beliefs: Mapping[str, Belief]  # of each of `OBSERVING`
    mixes: Mapping[str, Mix]  # of each of `ARMS`
    found: Mapping[str, Detections]  # by arm; `clear`: by the clean model in the clear frame


def follow(
    bundle: Bundle,
    images: Sequence[Image],
    frames: Sequence[tuple[str, float]],
    fps: float,
    seed: int = 0,
    threads: int | None = 1,
) -> Iterator[Step]:
    """Yield a step per frame of `truth`; InputError unless the bundle draws boxes and knows the corruptions."""
    if bundle.manifest.task.name != "detect":
        raise InputError(f"bundle {bundle.manifest.name} draws no boxes; give a detector's, such as --bundle detector")
    model, oracle = bundle.model(ModelOptions(threads=threads)), bundle.oracle(threads=threads)
    known = [ReferencePolicy(bundle.table, arm) for arm in ("perfect", "best")]
    alone, policy, smoothing = bundle.policy(independent=True), bundle.policy(), bundle.filter()
    task = bundle.task()

    def predict(mix: Mix, image: Image) -> Detections:
        model.apply(mix)
        x, placement = preprocess(image, bundle.manifest.input)
        read: Detections = task.read(model.predict(x), placement)
        return read

    for number, (name, severity) in enumerate(frames):
        place = number % max(1, 2 * len(images) - 2)
        clear = images[min(place, 2 * len(images) - 2 - place)]
        drawn = derive_seed(seed, "clips", name)
        image = clear if name == CLEAN else corrupt_frame(clear, name, severity, drawn, number)
        seen = oracle.observe(bundle.manifest.view.take(image))
        beliefs = {"frame": seen, "trained": smoothing.update(seen, number / fps)}
        alone.reset()
        perfect = (each.mix(name, severity) for each in known)
        mixes = dict(zip(ARMS, ({}, *perfect, alone.choose(seen), policy.choose(beliefs["trained"])), strict=True))
        by_mix: dict[MixKey, Detections] = {mix_key(mix): predict(mix, image) for mix in mixes.values()}
        found = {"clear": by_mix[()] if name == CLEAN else predict({}, clear)}
        found |= {arm: by_mix[mix_key(mix)] for arm, mix in mixes.items()}
        yield Step(number, clear, image, name, severity, beliefs, mixes, found)


def score(steps: Iterable[Step], fps: float) -> list[Record]:
    """Return a row per stretch of one corruption, in order; each step is read once."""
    before: Mapping[str, Mix] = {arm: {} for arm in OBSERVING}
    rows = []
    for name, members in groupby(steps, key=lambda step: step.name):
        stretch = list(members)
        rows.append({"name": name, "severity": max(step.severity for step in stretch), "frames": len(stretch)})
        rows[-1]["f1"] = {arm: _f1([(step.found[arm], step.found["clear"]) for step in stretch]) for arm in ARMS}
        visible = [step for step in stretch if name == CLEAN or step.severity >= VISIBLE]
        for arm in OBSERVING:
            mixes = [before[arm], *(step.mixes[arm] for step in stretch)]
            switched = [bool(new != old) for old, new in pairwise(mixes)]
            named = [step.beliefs[arm].type == name for step in visible]
            rows[-1][arm] = {
                "named": 100 * float(np.mean(named)),
                "delay_s": named.index(True) / fps if any(named) else None,
                "patched": 100 * float(np.mean([bool(mix) for mix in mixes[1:]])),
                "switches": sum(switched),
                "patches": sum(new and bool(mix) for new, mix in zip(switched, mixes[1:], strict=True)),
            }
        before = stretch[-1].mixes
    return rows


def found_again(found: Detections, wanted: Detections) -> NDArray[np.bool_]:
    """Return which boxes, bool (M,), are those of `wanted`; each of these is found at most once, by the surest."""
    overlap = torchvision.ops.box_iou(torch.from_numpy(found.boxes), torch.from_numpy(wanted.boxes)).numpy()
    overlap = overlap * (found.class_id[:, None] == wanted.class_id)
    again = np.zeros(len(found.boxes), bool)
    for row in range(len(again)):
        if overlap.shape[1] and overlap[row].max() >= OVERLAP:
            again[row] = True
            overlap[:, overlap[row].argmax()] = 0
    return again


def _f1(pairs: Sequence[tuple[Detections, Detections]]) -> float:
    boxes = sum(len(found.boxes) + len(wanted.boxes) for found, wanted in pairs)
    return 200 * float(sum(found_again(*pair).sum() for pair in pairs)) / boxes if boxes else 100.0


def measure_clips(
    bundle: Bundle, clips: Sequence[str], fps: float, seed: int = 0, progress: Progress = silent
) -> Record:
    """Follow all `CHANGES` over each clip, and return the rows of each, their means by corruption, and counts."""
    found = list[Record]()
    for clip in clips:
        steps = follow(bundle, read_clip(clip, fps), truth(CHANGES, CLEAR, fps), fps, seed)
        found.append({"clip": Path(clip).name, "stretches": score(steps, fps)})
        progress(f"{found[-1]['clip']}: {len(found[-1]['stretches'])} stretches")
    rows = [row for each in found for row in each["stretches"]]
    means = [_mean([row for row in rows if row["name"] == name]) for name in (CLEAN, *(each.name for each in CHANGES))]
    seconds = {"clear": means[0]["frames"] / fps, "all": sum(row["frames"] for row in rows) / fps}
    clear = [row for row in rows if row["name"] == CLEAN]
    switches = {arm: 60 * sum(row[arm]["switches"] for row in rows) / seconds["all"] for arm in OBSERVING}
    patches = {arm: 3600 * sum(row[arm]["patches"] for row in clear) / seconds["clear"] for arm in OBSERVING}
    return {
        "bundle": bundle.manifest.name,
        "fps": fps,
        "changes": [asdict(change) for change in CHANGES],
        "clear_s": CLEAR,
        "seconds": seconds,
        "rows": means,
        "switches_per_minute": switches,
        "false_patches_per_hour": patches,
        "clips": found,
    }


def _mean(rows: Sequence[Record]) -> Record:
    """Return means of the stretches of one corruption, weighted by their frames; delays in seconds, the median."""
    weights = [row["frames"] for row in rows]

    def mean(*keys: str) -> float:
        return float(np.average([reduce(getitem, keys, row) for row in rows], weights=weights))

    f1 = {arm: mean("f1", arm) for arm in ARMS}
    found: Record = {"name": rows[0]["name"], "frames": sum(weights), "f1": f1}
    for arm in OBSERVING:
        found[arm] = {"regret": f1["perfect"] - f1[arm], **{key: mean(arm, key) for key in ("named", "patched")}}
        delays = [row[arm]["delay_s"] for row in rows if row[arm]["delay_s"] is not None]
        found[arm]["delay_s"] = float(np.median(delays)) if delays else None
        found[arm]["never_named"] = len(rows) - len(delays)
    return found
