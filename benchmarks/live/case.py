"""Measure live weights of one model with the ONNX Runtime of this Python; it needs nothing else of rws' packages.

python -m rws.benchmarks.live.case model.onnx SEED ROUNDS
"""

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from rws.benchmarks.common.interleave import Block, Measured, interleave, percentiles, timed_blocks
from rws.benchmarks.common.tables import Record
from rws.edge.live.session import LiveSession
from rws.edge.live.sessions import CPU, SessionMaker, random_feeds
from rws.edge.onnx.graph import clean_tensors, prepare, read_model, replaced_tensors, shallow_tensors
from rws.errors import RwsError

LAYERS = 5
OPENINGS = 3
_WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM")


@dataclass(frozen=True, eq=False)
class Change:
    """A change of one tensor, as `LiveSession` takes it."""

    values: NDArray[np.int8]
    scale: NDArray[np.float32]


def measure(path: Path, seed: int, rounds: int) -> Record:
    """Return the outcome for one model: strategy, exactness on a separate input and weights, times, and their ratios.

    Times are the processor's, of one thread, since others may use the machine; `second_open` is by the clock.
    If its weights cannot be changed, there is only the `fault`.
    """
    model = prepare(read_model(path))
    names = _tensors(model)
    row: Record = {"tensors": len(names), "weights": sum(array.size for array in clean_tensors(model, names).values())}
    row |= {"opset": next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))}
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        onnx.save(model, prepared)
        try:
            session = partial(_open, prepared, names, folder, _changes(clean_tensors(model, names), seed))
            live = session()
        except RwsError as error:
            return row | {"strategy": None, "fault": str(error)}
        row |= {"strategy": live.strategy, "description": live.description, **exactness(live, model, names, seed)}
        return row | _openings(prepared, session) | _latency(live, prepared, seed, rounds)


def _tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the weights and biases of the first five convolutions, or of the first five nodes with weights."""
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    if convolutions >= LAYERS:
        return shallow_tensors(model, LAYERS)
    floats = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims)}
    nodes = [node for node in model.graph.node if node.op_type in _WITH_WEIGHTS and set(node.input[1:]) & floats]
    return tuple(dict.fromkeys(name for node in nodes[:LAYERS] for name in node.input[1:] if name in floats))


def _changes(clean: Mapping[str, NDArray[np.float32]], seed: int) -> dict[str, dict[str, Change]]:
    rng = np.random.default_rng(seed)

    def change(array: NDArray[np.float32]) -> Change:
        scale = np.float32(0.05 / 32 * (float(array.std()) or 0.1))
        return Change(rng.integers(-127, 128, array.shape).astype(np.int8), scale)

    return {signature: {name: change(array) for name, array in clean.items()} for signature in ("a", "b")}


def _open(path: Path, names: tuple[str, ...], folder: str, changes: Any) -> LiveSession:
    return LiveSession(path, tensors=names, signatures=changes, provider="cpu", threads=1, cache=folder)


def _plain(path: Path) -> Any:
    maker = SessionMaker((CPU,), 1)
    return maker.session_of(str(path), maker.options())


def exactness(live: LiveSession, model: onnx.ModelProto, names: tuple[str, ...], seed: int) -> Record:
    """Compare all outputs with those of a session from a file with the same weights, and after `reset` with before."""
    rng = np.random.default_rng([seed, 1])
    feeds = {name: rng.permutation(array.ravel()).reshape(array.shape) for name, array in random_feeds(model).items()}
    clean = clean_tensors(model, names)
    written = {name: rng.normal(w.mean(), w.std() or 0.1, w.shape).astype(np.float32) for name, w in clean.items()}
    maker = SessionMaker((CPU,), 1)
    before = maker.session(model).run(None, feeds)
    with replaced_tensors(model, written):
        expected = maker.session(model).run(None, feeds)
    for name, array in written.items():
        live.write(name, array)
    found = live.run(None, feeds)
    live.reset()
    after = live.run(None, feeds)
    same = [
        one.tobytes() == other.tobytes()
        for ones, others in ((found, expected), (after, before))
        for one, other in zip(ones, others, strict=True)
    ]
    errors = [
        float(np.abs(f.astype(np.float64) - e).max(initial=0) / max(np.abs(e).max(initial=0), 1e-30))
        for f, e in zip(found, expected, strict=True)
        if e.dtype.kind == "f"
    ]
    changed = any(one.tobytes() != other.tobytes() for one, other in zip(expected, before, strict=True))
    return {"outputs": len(found), "exact": all(same), "error": max(errors, default=0.0), "changed": changed}


def _openings(path: Path, session: Callable[[], LiveSession]) -> Record:
    times = []
    for _ in range(OPENINGS):
        for make in (partial(_plain, path), session):
            before = time.perf_counter(), time.process_time()
            made = make()
            times.append((time.perf_counter() - before[0], time.process_time() - before[1]))
    plain, second = np.array(times[::2]), np.array(times[1::2])
    row: Record = {"from_cache": made.from_cache, "open_ms": round(1e3 * float(np.median(plain[:, 1])), 2)}
    ratios = np.median(second / plain, axis=0).round(3).tolist()
    return row | dict(zip(("second_open", "second_open_processor"), ratios, strict=True))


def _latency(live: LiveSession, path: Path, seed: int, rounds: int) -> Record:
    feeds = random_feeds(onnx.load(path))
    sessions = [_plain(path), _plain(path)]
    mixes = cycle([{"a": 0.75}, {"b": 0.75}])

    def blocks(run: Callable[[], object], change: Callable[[], object] = bool) -> Callable[[], Block]:
        return timed_blocks(lambda: (change(), run()), clock=time.process_time)

    untouched, again = (blocks(partial(session.run, None, feeds)) for session in sessions)
    clean = blocks(partial(live.run, None, feeds), partial(live.apply, {}))
    patched = blocks(partial(live.run, None, feeds), lambda: live.apply(next(mixes)))
    cases = {"again": again, "live": clean, "patched": patched}
    measured: dict[str, Measured] = {}
    seen = interleave(untouched, cases, rounds, random.Random(seed), measured)
    row = percentiles(np.concatenate([block.ms for block in seen]))
    for name, case in measured.items():
        row |= dict(
            zip((name, f"{name}_low", f"{name}_high"), (round(value, 4) for value in case.ratio()), strict=True)
        )
    return row


if __name__ == "__main__":
    versions = {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__, "numpy": np.__version__}
    print(json.dumps({**versions, **measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))}))
