"""Time and memory of every method per frame, one thread, next to the untouched model on the same engine."""

import json
import random
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rws.benchmarks.baselines.base import to_torch
from rws.benchmarks.baselines.models import BaselineModels
from rws.benchmarks.baselines.registry import BASELINES, COMPARED, make_baseline
from rws.benchmarks.common.interleave import Block, Measured, interleave, timed_blocks
from rws.benchmarks.common.memory import can_measure, private_bytes, run_main, status_bytes
from rws.benchmarks.common.tables import Record
from rws.benchmarks.streams.ours import Ours
from rws.benchmarks.streams.protocols import Floats, Ints, Method
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import MODEL
from rws.edge.bundle.options import ModelOptions
from rws.edge.common.resources import return_memory
from rws.errors import InputError
from rws.training.corruptions import CORRUPTIONS

DEVICE = ("frame", "trained")
"""Those of our methods that run on a device: they need the oracle."""
ENGINES = {"torch": (*COMPARED, *BASELINES, *DEVICE), "onnx": ("std", *DEVICE)}
"""What is measured on which engine."""


class Sample(NamedTuple):
    """Frames as a method takes them: inputs (N, 3, H, W), types (N,), severities (N,)."""

    x: Floats
    types: Ints
    severities: Floats


Timing = Mapping[str, float]
"""Milliseconds per frame, `ms` (median over the rounds), and the `ratio` to `std` with its 95 % interval."""


def time_methods(
    make: Mapping[str, Callable[[], Method]], sample: Sample, batch: int, *, repeats: int = 3, rounds: int = 7
) -> dict[str, Timing]:
    """Time each method per frame, interleaved with `std`, on the threads that the process has.

    Args:
        make: makes each method, `std` among them, once per repeat.
        sample: frames that batches are taken from in turn; InputError if there are fewer than one batch.
        repeats, rounds: see `rws.benchmarks.common.interleave.interleave`.
    """
    if not 0 < batch <= len(sample.x):
        raise InputError(f"a batch of {batch} of {len(sample.x)} frames: give at least as many frames")
    rng = random.Random(0)
    measured: dict[str, Measured] = {}
    base: list[Block] = []
    for _ in range(repeats):
        runs = {name: _blocks(method(), sample, batch) for name, method in make.items()}
        cases = {name: run for name, run in runs.items() if name != "std"}
        base += interleave(runs["std"], cases, rounds, rng, measured)
    found = {"std": (np.median([block.typical() for block in base]), 1.0, 1.0, 1.0)}
    found |= {name: (np.median(case.typical()), *case.ratio()) for name, case in measured.items()}
    rounded = {name: [round(float(value), 4) for value in found[name]] for name in make}
    return {name: dict(zip(("ms", "ratio", "low", "high"), values, strict=True)) for name, values in rounded.items()}


def _blocks(method: Method, sample: Sample, batch: int) -> Callable[[], Block]:
    parts = cycle([slice(start, start + batch) for start in range(0, len(sample.x) - batch + 1, batch)])

    def step() -> None:
        part = next(parts)
        method.classify(sample.x[part], sample.types[part], sample.severities[part])

    method.reset()
    return timed_blocks(step, frames=batch)


def measure_memory(engine: str, name: str, bundle: Bundle, work: Path, batch: int) -> Mapping[str, int]:
    """Measure the bytes of private memory of a method in a fresh process, one thread; Linux only.

    `held`: between frames, beyond Python, its packages and the bundle's description; `peak`: the most on top of that
    while it classifies a batch. Raise RwsError if the process fails.
    """
    arguments = (engine, name, str(bundle.path), str(work), str(batch))
    memory: Mapping[str, int] = run_main("rws.benchmarks.baselines.cost", name, *arguments)
    return memory


def measure_cost(
    bundle: Bundle,
    work: Path,
    sample: Sample,
    batches: Sequence[int] = (1, 64),
    baselines: Collection[str] = tuple(BASELINES),
    *,
    repeats: int = 3,
    rounds: int = 7,
) -> Record:
    """Measure time and memory of our methods and some baselines per frame, one thread.

    Ratios are to `std` on the same engine.
    Ours go frame by frame at any batch, so they have batch 1 only. Raises InputError if a model is not trained yet, or
    the sample has fewer frames than the largest batch.
    """
    models = BaselineModels(bundle, None, work)
    rows: list[Record] = []
    with _one_thread():
        for batch in batches:
            for engine, names in ENGINES.items():
                left_out = {*BASELINES} - {*baselines} | ({*DEVICE} if batch > 1 else set())
                here = [name for name in names if name not in left_out]
                make = {name: partial(make_method, engine, name, models) for name in here}
                times = time_methods(make, sample, batch, repeats=repeats, rounds=rounds) if here[1:] else {}
                for name, timing in times.items():
                    carried = _carried(name, make[name](), bundle)
                    memory = measure_memory(engine, name, bundle, work, batch) if can_measure() else {}
                    measured = {**timing, "carried": carried, **memory}
                    rows.append({"engine": engine, "method": name, "batch": batch, **measured})
    return {"threads": 1, "rows": rows}


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def make_method(engine: str, name: str, models: BaselineModels) -> Method:
    """Make a method of an engine (a key of `ENGINES`) to measure its time and memory, one thread."""
    if engine == "torch" and name not in DEVICE:
        return make_baseline(name, models)
    bundle = models.bundle
    return Ours(name, bundle, bundle.model(ModelOptions(engine, threads=1, provider="cpu")), bundle.oracle(threads=1))


def _carried(name: str, method: Method, bundle: Bundle) -> int:
    files = {file: entry.bytes for file, entry in bundle.manifest.files.items()}
    found: int = sum(files.values()) if name in DEVICE else getattr(method, "carried_bytes", files[MODEL])
    return found


def _warm_up_imports(x: Tensor) -> None:
    """Import and run what only some methods use, so that no method is charged for Python packages."""
    from rws.edge.onnx import torch_graph  # noqa: F401

    layer = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as in `prepared`
    F.batch_norm(layer(x), None, None, training=True).sum().backward()  # type: ignore[no-untyped-call]  # as in `Tent`
    torch.optim.Adam(layer.parameters()).step()


def main() -> None:
    """Print the memory of this process as JSON; `sys.argv` holds the arguments of `measure_memory`."""
    engine, name, path, work, batch = sys.argv[1:]
    torch.set_num_threads(1)
    bundle, count = Bundle.load(path), int(batch)
    size = bundle.manifest.input.height
    x = np.random.default_rng(0).random((count, 3, size, size), np.float32)
    types = np.arange(count) % (1 + len(CORRUPTIONS)) - 1
    severities = np.where(types < 0, 0, 5).astype(np.float32)
    _warm_up_imports(to_torch(x))
    return_memory()
    before = private_bytes()
    method = make_method(engine, name, BaselineModels(bundle, None, Path(work)))
    for _ in range(3):
        method.classify(x, types, severities)
    return_memory()
    held = private_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, see proc(5)
    resident = status_bytes("VmRSS:")
    for _ in range(3):
        method.classify(x, types, severities)
    peak = status_bytes("VmHWM:")
    print(json.dumps({"held": held - before, "peak": peak - resident}))
