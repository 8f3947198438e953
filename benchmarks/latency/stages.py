"""The whole frame in the frame loop, whose mix follows a schedule instead of the policy's answer."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from rws.benchmarks.common.interleave import Block, Measured, block_frames, percentiles
from rws.benchmarks.common.tables import Record
from rws.benchmarks.demo.stream import load_stream
from rws.benchmarks.latency.engines import Setting, deployed_model
from rws.edge.live.base import PatchableModel
from rws.edge.pipeline import STAGES, Pipeline
from rws.edge.preprocess import InputSpec, View
from rws.edge.runtime import Runtime
from rws.edge.tasks.base import Task
from rws.edge.tasks.classify import Classify
from rws.edge.tasks.raw import Raw
from rws.errors import InputError, RwsError
from rws.oracle.belief import Belief
from rws.oracle.classifier import Oracle
from rws.oracle.policy import GainTable, Policy, WeightedPolicy
from rws.oracle.temporal_filter import BeliefFilter
from rws.records import Mix
from rws.training.corruptions import CORRUPTIONS
from rws.training.oracle.calibration import Calibration, export_oracle
from rws.training.oracle.network import OracleNetwork
from rws.training.oracle.sampling import LEVELS

WHOLE, WHOLE_WITH_READ = "whole", "whole_with_read"
FRAME_SIZE = (480, 640)
VIDEO_FRAMES = 60
PIXELS_PER_FRAME = 3


class ScheduledPolicy:
    """Asks a policy about every belief, but answers with `mixes` in turn, each for a number of frames."""

    def __init__(self, policy: Policy, mixes: Sequence[Mix]) -> None:
        self._policy, self._mixes = policy, mixes
        self._every = self._frame = self._number = 0

    def start(self, every: int, settle: int) -> None:
        """Begin a block whose first `settle` frames do not count; the mix changes every `every` frames, 0: no patch."""
        self._every, self._frame = every, -settle

    def choose(self, belief: Belief) -> Mix:
        """Return the scheduled mix of the next frame."""
        self._policy.choose(belief)
        if self._every and self._frame % self._every == 0:
            self._number += 1
        self._frame += 1
        return self._mixes[self._number % len(self._mixes)] if self._every else {}

    def mixes(self, joint: NDArray[np.float32]) -> list[Mix]:
        """Return the policy's own mixes of independent frames; see `Policy.mixes`."""
        return self._policy.mixes(joint)

    def reset(self) -> None:
        """Reset the policy; the schedule continues."""
        self._policy.reset()


class StageCase:
    """The frame loop with a mix that changes every `every` frames (0: no patch).

    A call runs one block, from the start of the source; InputError if the source has too few frames.
    """

    def __init__(self, runtime: Runtime, policy: ScheduledPolicy, every: int, source: str) -> None:
        self._runtime, self._policy, self._every, self._source = runtime, policy, every, source
        self._settle, self._frames = block_frames(self._run(2, 5).ms, every)

    def __call__(self) -> Block:
        """Run one block; its `ms` are without reading, its parts are `STAGES` and the whole with reading."""
        return self._run(self._settle, self._frames)

    def _run(self, settle: int, frames: int) -> Block:
        self._policy.start(self._every, settle)
        with closing(self._runtime.stream(self._source)) as stream:
            results = list(islice(stream, settle + frames))[settle:]
        if len(results) < frames:
            raise InputError(f"{self._source}: has fewer than {settle + frames} frames; give a longer source")
        times = {stage: np.array([result.times_ms[stage] for result in results]) for stage in STAGES}
        everything = np.sum(list(times.values()), axis=0)
        changed = np.array([result.changed for result in results])
        return Block(everything - times["read"], changed, {**times, WHOLE_WITH_READ: everything})


def stage_cases(setting: Setting, source: str, rates: Sequence[int]) -> tuple[str, dict[int, StageCase]]:
    """Return the model's strategy, and a frame loop for each rate (frames per change of mix).

    Raise SourceError if the source cannot be opened, InputError if it has too few frames.
    """
    model = deployed_model(setting)
    oracle, policy, smoothing = _oracle(setting)
    scheduled = ScheduledPolicy(policy, setting.mixes)
    pipeline = Pipeline(model, oracle, scheduled, smoothing, *_task(setting, model), sees=_view(setting))
    return model.strategy, {every: StageCase(Runtime(pipeline), scheduled, every, source) for every in rates}


def stage_rows(stages: Mapping[int, Measured], strategy: str) -> list[Record]:
    """Return a row per stage and rate, milliseconds; for the whole frame, without and with reading, also the ratio."""
    rows: list[Record] = []
    for (every, measured), stage in product(stages.items(), (*STAGES, WHOLE, WHOLE_WITH_READ)):
        part = None if stage == WHOLE else stage
        row: Record = {"strategy": strategy, "patch_every": every, "stage": stage, **percentiles(measured.values(part))}
        ratio = [None] * 3 if stage in STAGES else [round(value, 4) for value in measured.ratio(part)]
        rows.append(row | dict(zip(("ratio", "ratio_low", "ratio_high"), ratio, strict=True)))
    return rows


def write_video(path: Path, frames: int = VIDEO_FRAMES) -> Path:
    """Write an `.mp4` of 640 x 480 pixels that pans over a wall of the demo's frames; RwsError without a codec."""
    images = load_stream().images
    height, width = FRAME_SIZE[0] // images.shape[1], FRAME_SIZE[1] // images.shape[2]
    wall = images[np.arange(height * width) % len(images)].reshape(height, width, *images.shape[1:])
    wall = np.ascontiguousarray(wall.swapaxes(1, 2).reshape(*FRAME_SIZE, 3)[:, :, ::-1])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, FRAME_SIZE[::-1])
    if not writer.isOpened():
        raise RwsError("this OpenCV cannot encode a video; install the wheel (pip install opencv-python)")
    for frame in range(frames):
        writer.write(np.roll(wall, frame * PIXELS_PER_FRAME, axis=1))
    writer.release()
    return path


def _task(setting: Setting, model: PatchableModel) -> tuple[Task[Any], InputSpec]:
    if (bundle := setting.model.bundle) is not None:
        return bundle.task(), bundle.manifest.input
    takes = InputSpec(setting.model.size, setting.model.size, "RGB")
    shapes = [output.shape for output in model.predict(np.zeros(takes.shape, np.float32))]
    if len(shapes) == 1 and len(shapes[0]) == 2:
        return Classify([f"class {index}" for index in range(shapes[0][1])]), takes
    return Raw(), takes


def _oracle(setting: Setting) -> tuple[Oracle, Policy, BeliefFilter]:
    bundle = setting.model.bundle
    if bundle is not None:
        return bundle.oracle(threads=setting.threads), bundle.policy(), bundle.filter()
    oracle = Oracle(_untrained_oracle(setting.model.size), CORRUPTIONS, LEVELS, threads=setting.threads)
    return oracle, WeightedPolicy(_gain_table()), BeliefFilter(CORRUPTIONS, LEVELS)


def _view(setting: Setting) -> View | None:
    return None if setting.model.bundle is None else setting.model.bundle.manifest.view


@cache
def _untrained_oracle(size: int) -> bytes:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return export_oracle(OracleNetwork(), Calibration(), size)


def _gain_table() -> GainTable:
    # As large as a calibrated one: no patch, and each signature at three strengths.
    signature = np.repeat(np.arange(len(CORRUPTIONS)), 3)
    shape = (1 + len(CORRUPTIONS) * len(LEVELS), 1 + len(signature))
    alphas = np.concatenate([[0], np.tile([0.5, 0.75, 1.0], len(CORRUPTIONS))]).astype(np.float32)
    gains = np.random.default_rng(0).uniform(20, 90, shape).astype(np.float32)
    return GainTable(CORRUPTIONS, LEVELS, np.concatenate([[-1], signature]), alphas, gains)
