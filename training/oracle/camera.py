"""Train the oracle of camera frames: on photographs of many sources, at the frame's own resolution.

It begins with the weights of an oracle of small images: what tells corruptions apart lies in the finest structure.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as schema
from torch import Tensor
from torch.nn import functional as F

from rws.edge.common.schema import STRICT
from rws.edge.preprocess import TileView
from rws.training.corruptions import KNOWN, corrupt
from rws.training.data.photographs import Image, Photographs
from rws.training.jobs.seeds import derive_seed
from rws.training.jobs.store import ARRAYS, STATE, Store
from rws.training.models.loop import BatchSize, Count, Plan, Rate, Report, Share, Warmup, train
from rws.training.oracle.calibration import (
    Calibration,
    OracleScores,
    calibrate_oracle,
    export_oracle,
    named_types,
    percent,
    weigh_clean,
)
from rws.training.oracle.healthy import healthy, sensor_noise, stored, underexposed
from rws.training.oracle.sampling import LEVELS, OracleRecipe, draw_severities, draw_types, joint_target, training_prior
from rws.training.oracle.tile_network import TileNetwork, with_pooling

STATES = 1 + len(KNOWN) * len(LEVELS)
CAMERA_VERSION = 3  # raise it when the same recipe and photographs give another network
DARK = 65  # of 255: a frame whose mean is less lacks light, whatever else is true of it
_LOW_LIGHT = KNOWN.index("low_light")
_PART = 100  # frames that are made at once
_OF_VIEWS = ("view", "sizes", "held_out", "grained", "underexposed", "draws")
_GRAINED = [KNOWN.index(name) for name in ("gaussian_noise", "shot_noise", "speckle_noise")]


@schema(frozen=True, config=STRICT)
class CameraRecipe:
    """How to train the oracle of camera frames; AdamW under a warm-up and a cosine to zero.

    Args:
        view: what it sees of a frame.
        sizes: sides of the square frames, cut out of photographs and shrunk; small ones of those that are no larger.
        frames: that are made, each from some photograph; `held_out` of those are for calibration.
        looks: views of each frame, with the tiles in other places.
        grained: part of the frames with noise that get the noise of real sensors instead, see `sensor_noise`.
        underexposed: part of the frames in low light that are dark and nothing else, see `underexposed`.
        clean_recall: percent of the clean held-out views that are to be named so.
        draws: of the states and severities; its schedule is not used.
    """

    view: TileView = field(default_factory=lambda: TileView(48, 2))
    sizes: tuple[Count, ...] = (64, 96, 128, 160, 224, 224, 256, 256, 288, 320, 352, 384, 448, 512)
    frames: Annotated[int, Field(ge=2)] = 14_000
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.125
    looks: Count = 3
    grained: Share = 0.4
    underexposed: Share = 0.35
    epochs: Count = 6
    batch_size: BatchSize = 64
    learning_rate: Rate = 1.5e-3
    warmup: Warmup = 0.15
    clean_recall: Annotated[float, Field(ge=0, lt=100)] = 98.0
    draws: OracleRecipe = OracleRecipe(clean_share=0.25, whole_share=0.5, minimum_severity=0.5)

    @property
    def steps(self) -> int:
        """The number of steps over views."""
        return self.epochs * max(1, self.frames * self.looks // self.batch_size)

    def quick(self) -> "CameraRecipe":
        """Return the recipe of a first look."""
        return replace(self, frames=max(2 * _PART, self.frames // 8), epochs=2)


def frame_of(photograph: Image, size: int, rng: np.random.Generator) -> Image:
    """Cut a square of any scale out of a photograph, and shrink it to `size`; one in three is a smooth part of it."""
    height, width = photograph.shape[:2]
    shortest = min(height, width)
    size = min(size, shortest)
    found: list[tuple[float, Image]] = []
    for _ in range(6 if rng.random() < 0.33 else 1):
        side = int(np.exp(rng.uniform(np.log(size), np.log(shortest))))
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        cut = photograph[top : top + side, left : left + side]
        found.append((float(np.abs(np.diff(cut[::4, ::4].astype(np.int16), axis=0)).mean()), cut))
    cut = min(found, key=lambda pair: pair[0])[1]
    image = cut if cut.shape[0] == size else cv2.resize(cut, (size, size), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image[:, ::-1] if rng.random() < 0.5 else image, np.uint8)


def _drawn(photographs: Photographs, size: int, rng: np.random.Generator, jittered: float) -> Image:
    """Return a frame, with the odds `jittered` of another healthy camera."""
    frame = frame_of(photographs.draw(rng), size, rng)
    return healthy(frame, rng) if rng.random() < jittered else frame


def _lit(photographs: Photographs, size: int, rng: np.random.Generator) -> Image:
    """Return a frame that is not dark; after ten tries any."""
    frames = (_drawn(photographs, size, rng, 0.6) for _ in range(10))
    return next((frame for frame in frames if frame.mean() >= DARK), _drawn(photographs, size, rng, 0.6))


Views = Mapping[str, NDArray[Any]]  # `x`, uint8 (N, T, 3, S, S); `types`, int64, −1 = clean; `severities`, float32


def make_views(photographs: Photographs, recipe: CameraRecipe, seed: int, count: int, looks: int) -> Views:
    """Make `count` frames, clean ones of healthy cameras and corrupted ones, and take `looks` views of each."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    drawn = draw_types(count, recipe.draws, len(KNOWN), generator)
    severities = draw_severities(drawn, recipe.draws, generator, KNOWN).numpy()
    types, grid, made = drawn.numpy(), recipe.view.grid, []
    for place, kind in enumerate(types.tolist()):
        size = int(rng.choice(recipe.sizes))
        frame = _drawn(photographs, size, rng, 0.85) if kind < 0 else _lit(photographs, size, rng)
        if kind < 0 and frame.mean() < DARK:
            types[place], severities[place] = _LOW_LIGHT, darkness(frame)
        elif kind == _LOW_LIGHT and rng.random() < recipe.underexposed:
            frame = underexposed(frame, rng.uniform(4, DARK), rng)
            severities[place] = darkness(frame)
        elif kind in _GRAINED and rng.random() < recipe.grained:
            frame, severities[place] = sensor_noise(frame, rng)
        elif kind >= 0:
            pixels = torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))[None]
            seeds = torch.tensor([int(rng.integers(2**62))])
            corrupted = corrupt(pixels, KNOWN[kind], float(severities[place]), seeds)[0]
            frame = corrupted.permute(1, 2, 0).contiguous().numpy()
        frame = stored(frame, rng, 0.3 if kind >= 0 else 0.65)
        made += [recipe.view.take(frame, rng.random((grid, grid, 2))) for _ in range(looks)]
    return {
        "x": np.stack(made),
        "types": np.repeat(types, looks),
        "severities": np.repeat(severities, looks).astype(np.float32),
    }


def darkness(frame: Image) -> float:
    """Return how severely a frame lacks light: 0.5 with a mean of `DARK`, 5 if it is black."""
    return float(5 - 4.5 * min(1, frame.mean() / DARK))


@dataclass(frozen=True)
class CameraTraining:
    """The jobs of one training, each kept in a file of the work folder; frames are made by `workers` processes."""

    photographs: Photographs
    recipe: CameraRecipe
    store: Store
    report: Report
    seed: int = 0
    workers: int = 1
    start: bytes = b""  # an exported oracle that is trained further

    def run(self) -> tuple[bytes, OracleScores]:
        """Return the oracle as ONNX bytes, and what was measured of it on the held-out photographs."""
        kept, held_out = self.photographs.split(self.recipe.held_out)
        data = self._views("frames", kept, self.recipe.frames, self.recipe.looks)
        network = self._network(data)
        test = self._views("held-out", held_out, max(_PART, self.recipe.frames // 10), 1)
        calibration, scores = self._calibrated(network, test)
        self.report(dict(scores))
        prior = weigh_clean(training_prior(self.recipe.draws, corruptions=KNOWN), calibration.clean_weight)
        scores["prior"] = [round(share, 7) for share in prior.tolist()]
        example = torch.zeros(2, *self.recipe.view.shape, dtype=torch.uint8)
        return with_pooling(export_oracle(network, calibration, example)), scores

    def _identity(self, *more: Any, keys: Sequence[str] | None = None) -> list[Any]:
        """What a file is made from: of the recipe all, or what these keys say."""
        recipe = {key: value for key, value in asdict(self.recipe).items() if keys is None or key in keys}
        return [CAMERA_VERSION, recipe, self.photographs.digest, self.seed, *more]

    def _views(self, name: str, photographs: Photographs, count: int, looks: int) -> Views:
        """Make views, some frames at a time, which the work folder keeps."""
        numbers = range(-(-count // _PART))
        entries = [
            self.store.entry(f"{name}-{n}.npz", self._identity(name, n, looks, keys=_OF_VIEWS), ARRAYS) for n in numbers
        ]
        seeds = [derive_seed(self.seed, f"camera oracle, {name}", draw=number) for number in numbers]
        loaded, parts = [entry.load() for entry in entries], []
        missing = [seed for seed, part in zip(seeds, loaded, strict=True) if part is None]
        made = self._made(photographs, looks, missing)
        for number, (entry, part) in enumerate(zip(entries, loaded, strict=True), 1):
            parts.append(entry.save(next(made)) if part is None else part)
            self.report({"frames": _PART, "frames_left": (len(entries) - number) * _PART})
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _made(self, photographs: Photographs, looks: int, seeds: Sequence[int]) -> Iterator[Views]:
        if self.workers == 1:
            yield from (make_views(photographs, self.recipe, seed, _PART, looks) for seed in seeds)
            return
        # Fresh processes: one that was forked could wait without end for the threads of torch.
        begin = (get_context("spawn"), _begin, (photographs, self.recipe, looks))
        with ProcessPoolExecutor(self.workers, *begin) as pool:
            yield from pool.map(_make, seeds)

    def _network(self, data: Views) -> TileNetwork:
        torch.manual_seed(self.seed)
        network, start = TileNetwork(STATES), hashlib.sha256(self.start).hexdigest()
        trained_by = [key for key in asdict(self.recipe) if key != "clean_recall"]
        entry = self.store.entry("network.pt", self._identity(start, keys=trained_by), STATE)
        network.load_state_dict(entry.get(lambda: self._fitted(network, data, entry.checkpoint)))
        return network.eval()

    def _fitted(self, network: TileNetwork, data: Views, checkpoint: Path | None) -> Mapping[str, Tensor]:
        if self.start:
            network.load_exported(self.start)
        else:
            network.load_small()
        recipe, x = self.recipe, data["x"]
        target = joint_target(torch.from_numpy(data["types"]), torch.from_numpy(data["severities"]), len(KNOWN))
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has no such stub
        plan = Plan.over(len(x), recipe.epochs, recipe.batch_size, recipe.warmup, repr(self._identity()))

        def views(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(x))
            for number in range(plan.steps_per_epoch):
                index = np.sort(order[number * recipe.batch_size : (number + 1) * recipe.batch_size])
                shown = torch.from_numpy(x[index])
                yield _turned(shown, number % 8), target[index]

        optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=1e-2)

        def loss_of(part: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(network(part[0]), part[1])

        train(network, optimiser, views, loss_of, plan, checkpoint=checkpoint, report=self.report)
        return network.state_dict()

    def _calibrated(self, network: TileNetwork, test: Views) -> tuple[Calibration, OracleScores]:
        types, severities = torch.from_numpy(test["types"]), torch.from_numpy(test["severities"])
        with torch.no_grad():
            logits = torch.cat([network(part) for part in torch.split(torch.from_numpy(test["x"]), _PART)])
        target = joint_target(types, severities, len(KNOWN))
        found = calibrate_oracle(logits, target, logits[types < 0], self.recipe.clean_recall)
        named, strong = named_types(found.joint(logits)), severities >= 1
        return found, OracleScores(
            temperature=round(found.temperature, 4),
            clean_weight=round(found.clean_weight, 3),
            type_accuracy=percent((named == types)[strong]),
            clean_recall=percent(named[types < 0] < 0),
            corrupted_called_clean=percent(named[strong] < 0),
        )


def _turned(views: Tensor, way: int) -> Tensor:
    """Return views (N, T, 3, S, S) in one of the eight ways that a square can lie."""
    views = views.transpose(3, 4) if way & 4 else views
    return views.flip([axis for axis, bit in ((3, 2), (4, 1)) if way & bit])


def probe_step(recipe: CameraRecipe) -> None:
    """Take a step like those of a training, to time it."""
    x = torch.zeros(recipe.batch_size, *recipe.view.shape, dtype=torch.uint8)
    torch.autograd.backward([TileNetwork(STATES)(x).square().mean()])


_given: tuple[Photographs, CameraRecipe, int]  # of a process that makes views


def _begin(*given: Any) -> None:
    global _given  # how tasks of a pool share what is large
    _given = given
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _make(seed: int) -> Views:
    photographs, recipe, looks = _given
    return make_views(photographs, recipe, seed, _PART, looks)
