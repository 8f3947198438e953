"""What the oracle costs a frame, beside the models that it watches over.

Each model's own prediction is the baseline. The network alone, `observe` with its belief, and belief, temporal filter
and policy together are each run again and again, as the model is; `in_turn` is what a frame takes in which all of that
and the model come one after another, less the model alone: there each finds the caches as the other left them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rws.benchmarks.common.interleave import Block, Measured, frames_per_block, interleave, settling_frames
from rws.benchmarks.common.models import BenchmarkModel
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import ORACLE
from rws.edge.bundle.options import ModelOptions
from rws.edge.live.onnx_model import OnnxModel

CASES = ("network", "observe", "whole", "in_turn")


def measure_oracle(
    bundle: Bundle,
    others: list[BenchmarkModel],
    *,
    rounds: int = 20,
    repeats: int = 6,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Time of the bundle's oracle on one thread, as ratios to the bundle's model and to others of the same input size.

    Args:
        bundle: whose oracle, filter and policy are measured.
        others: models that take the same input.
        rounds, repeats: see `rws.benchmarks.common.interleave`.
        seed: of the frames and the order.
        progress: called with a line for each model.

    Returns:
        `bytes` of the oracle, and `rows`: `model`, `case` (one of `CASES`), `ms`, and `ratio`, `low`, `high` to the
        model's prediction (for `in_turn` what it adds to that).
    """
    size = bundle.manifest.input.height
    frames = np.random.default_rng(seed).random((64, 3, size, size), np.float32)
    rng = random.Random(seed)
    rows = []
    models: list[tuple[str, Callable[[], Any]]] = [
        (bundle.manifest.name, lambda: bundle.model(ModelOptions(threads=1))),
        *(
            (other.name, lambda other=other: OnnxModel(other.onnx, None, other.tensor_names, "cpu", 1))
            for other in others
        ),
    ]
    for name, make in models:
        found: dict[str, Measured] = {}
        for _ in range(repeats):
            model = make()
            oracle, smooth, policy = bundle.oracle(threads=1), bundle.filter(), bundle.policy()

            def whole(x: Any, oracle: Any = oracle, smooth: Any = smooth, policy: Any = policy) -> None:
                policy.choose(smooth.update(oracle.observe(x)))

            def in_turn(x: Any, whole: Any = whole, model: Any = model) -> None:
                whole(x)
                model.predict(x)

            steps: dict[str, Callable[[Any], Any]] = {
                "network": lambda x, oracle=oracle: oracle.observe_batch(x[None]),
                "observe": oracle.observe,
                "whole": whole,
                "in_turn": in_turn,
            }
            cases = {case: _block(step, frames) for case, step in steps.items()}
            interleave(_block(model.predict, frames), cases, rounds, rng, found)
        for case in CASES:
            ratio, low, high = found[case].ratio()
            less = 1.0 if case == "in_turn" else 0.0
            ms = float(np.median(found[case].values()))
            values = {"ratio": ratio - less, "low": low - less, "high": high - less}
            rows.append(
                {"model": name, "case": case, "ms": round(ms, 4), **{k: round(v, 4) for k, v in values.items()}}
            )
            if progress is not None:
                progress(f"{name:16s} {case:8s} {ms:.4f} ms  {ratio - less:.3f} ({low - less:.3f}–{high - less:.3f})")
    return {"bytes": len(bundle.read(ORACLE)), "rounds": rounds, "repeats": repeats, "rows": rows}


def _block(step: Callable[[Any], Any], frames: np.ndarray) -> Callable[[], Block]:
    for x in frames[:8]:
        step(x)
    started = time.perf_counter()
    for x in frames[:8]:
        step(x)
    typical = (time.perf_counter() - started) / 8 * 1e3

    def run() -> Block:
        count, settling = frames_per_block(typical, 0), settling_frames(typical)
        ms = np.empty(count)
        for number in range(-settling, count):
            x = frames[number % len(frames)]
            before = time.perf_counter()
            step(x)
            if number >= 0:
                ms[number] = (time.perf_counter() - before) * 1e3
        return Block(ms, np.zeros(count, np.bool_))

    return run
