"""What the oracle costs per frame, compared with models.

`in_turn` is the time of a frame in which belief, filter, policy and the model run one after another, minus that of the
model alone: each finds the caches as the others left them."""

import random
from collections.abc import Callable, Mapping
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rws.benchmarks.common.interleave import Block, Measured, interleave, timed_blocks
from rws.benchmarks.common.models import BenchmarkModel
from rws.benchmarks.common.tables import Record
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import ORACLE
from rws.edge.bundle.options import ModelOptions
from rws.edge.live.base import PatchableModel
from rws.edge.live.onnx_model import OnnxModel
from rws.training.evaluation.evaluator import Progress, silent

CASES = ("network", "observe", "whole", "in_turn")


def measure_oracle(
    bundle: Bundle, others: list[BenchmarkModel], rounds: int = 20, repeats: int = 6, progress: Progress = silent
) -> Record:
    """Measure oracle, filter and policy on one thread, as ratios to the prediction of models with the same input."""
    size = bundle.manifest.input.height
    frames = np.random.default_rng(0).random((64, 3, size, size), np.float32)
    rng, rows = random.Random(0), []
    models: dict[str, Callable[[], PatchableModel]] = {
        bundle.manifest.name: partial(bundle.model, ModelOptions(threads=1))
    }
    for other in others:
        models[other.name] = partial(OnnxModel, other.onnx, None, other.tensor_names, "cpu", 1)
    for name, make in models.items():
        found: dict[str, Measured] = {}
        for _ in range(repeats):
            model = make()
            cases = {case: _blocks(step, frames) for case, step in _steps(bundle, model).items()}
            interleave(_blocks(model.predict, frames), cases, rounds, rng, found)
        for case in CASES:
            own = 1.0 if case == "in_turn" else 0.0
            ratio, low, high = (round(value - own, 4) for value in found[case].ratio())
            ms = round(float(np.median(found[case].values())), 4)
            rows.append({"model": name, "case": case, "ms": ms, "ratio": ratio, "low": low, "high": high})
            progress(f"{name:16s} {case:8s} {ms:.4f} ms  {ratio:.3f} ({low:.3f}–{high:.3f})")
    return {"bytes": len(bundle.read(ORACLE)), "rounds": rounds, "repeats": repeats, "rows": rows}


def _steps(bundle: Bundle, model: PatchableModel) -> Mapping[str, Callable[[NDArray[np.float32]], Any]]:
    oracle, smooth, policy = bundle.oracle(threads=1), bundle.filter(), bundle.policy()

    def whole(x: NDArray[np.float32]) -> None:
        policy.choose(smooth.update(oracle.observe(x)))

    def in_turn(x: NDArray[np.float32]) -> None:
        whole(x)
        model.predict(x)

    steps = (lambda x: oracle.observe_batch(x[None]), oracle.observe, whole, in_turn)
    return dict(zip(CASES, steps, strict=True))


def _blocks(step: Callable[[NDArray[np.float32]], Any], frames: NDArray[np.float32]) -> Callable[[], Block]:
    shown = cycle(frames)
    return timed_blocks(lambda: step(next(shown)))
