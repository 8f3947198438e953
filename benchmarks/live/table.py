"""Which models can be changed live, and at what cost: models × ONNX Runtime releases × features of the processor."""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import rws
from rws.benchmarks.common.tables import Record
from rws.benchmarks.live.models import export
from rws.errors import RwsError, first_line

HERE = Path(__file__).parent
AVX512, AVX2 = "AVX-512", "AVX2"
_SECONDS = 900  # for one case


def features() -> list[str]:
    """Return what this processor can be measured as: as it is, and without AVX-512 if that can be hidden."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "avx512f" not in flags:
        return [AVX2 if "avx2" in flags else "baseline"]
    return [AVX512, AVX2] if "cpuid_fault" in flags else [AVX512]


@dataclass(frozen=True)
class TableOptions:
    """How to measure: the Pythons whose ONNX Runtime is used, and a folder where exported models stay."""

    pythons: Sequence[str]
    work: Path
    rounds: int = 2
    seed: int = 0
    workers: int = 1  # cases at a time


def measure_table(
    specs: Sequence[str],
    options: TableOptions,
    progress: Callable[[str], object],
    keep: Callable[[list[Record]], object],
) -> None:
    """Measure each model with each Python's ONNX Runtime and each set of features; a fault is a row, too.

    `keep` is given all rows after each model.
    """
    rows: list[Record] = []
    cases = list(product(options.pythons, features()))
    with _importable() as path, ThreadPoolExecutor(options.workers) as pool:
        hide = hiding_library(options.work)
        for spec in specs:
            try:
                model = export(spec, options.work, options.seed)
            except Exception as error:  # an architecture may raise anything when it is exported
                rows.append({"model": title(spec), "fault": f"export: {first_line(error)}"})
                keep(rows)
                continue

            def case(place: tuple[str, str], model: Path = model) -> Record:
                python, kind = place
                environment = {"PYTHONPATH": path, "LD_PRELOAD": hide if kind == AVX2 else ""}
                case = [python, "-m", "rws.benchmarks.live.case", str(model), str(options.seed), str(options.rounds)]
                return {"features": kind} | run_case(case, environment)

            for row in pool.map(case, cases):
                rows.append({"model": title(spec), "megabytes": round(model.stat().st_size / 1e6, 1)} | row)
                progress(" ".join(str(rows[-1].get(key)) for key in _SAID))
            keep(rows)


_SAID = ("model", "onnxruntime", "features", "strategy", "exact", "live", "patched", "second_open", "fault")


def title(spec: str) -> str:
    """Return a model's name in the table."""
    return Path(spec).stem if spec.endswith(".onnx") else spec.partition("/")[2]


def run_case(command: Sequence[str], environment: Mapping[str, str], seconds: float = _SECONDS) -> Record:
    """Run a process that prints a row as JSON last; returns it, or in a line as `fault` what failed."""
    try:
        done = subprocess.run(
            command,
            cwd=tempfile.gettempdir(),
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=seconds,
            start_new_session=True,  # Linux shares processors between sessions
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"fault": f"not ready after {seconds} s"}
    if done.returncode != 0:
        return {"fault": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    row: Record = json.loads(done.stdout.splitlines()[-1])
    return row


def hiding_library(folder: Path) -> str:
    """Compile what hides AVX-512 from a process that preloads it; returns its path, "" if there is nothing to hide."""
    if AVX2 not in features()[1:]:
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "cpuid.so"
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(HERE / "cpuid.c")]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RwsError(f"cpuid.c cannot be compiled ({error}); install a C compiler") from error
    return str(library)


@contextmanager
def _importable() -> Iterator[str]:
    """Yield a folder from which any Python imports this package, without the packages of this one."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "rws"
        package.mkdir()
        for path in Path(rws.__path__[0]).glob("*.py"):
            (package / path.name).symlink_to(path)
        for room in ("edge", "oracle", "benchmarks"):
            spec = find_spec(f"rws.{room}")
            if spec is not None and spec.submodule_search_locations:
                (package / room).symlink_to(spec.submodule_search_locations[0])
        yield folder
