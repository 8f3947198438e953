"""A process's private, anonymous memory (shared pages depend on others): imports alone, sessions, or a live model."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from rws.edge.common.child import python_command
from rws.edge.common.resources import return_memory
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.signatures.signature_set import SignatureSet
from rws.errors import RwsError

Kind = Literal["imports", "sessions", "live"]

_RUNS = 3
_COUNTS = Path("/proc/self/smaps_rollup")


@dataclass(frozen=True)
class Memory:
    """Bytes that a process holds: private, anonymous memory, and its peak of resident memory; a live model's note."""

    private: int
    peak_rss: int
    note: str = ""


def can_measure() -> bool:
    """Return whether this platform counts a process's memory as `measure` needs it: Linux does."""
    return _COUNTS.exists()


def measure(kind: Kind, size: int, files: Sequence[Path] = ()) -> Memory:
    """Measure a fresh process, one thread per session, after each model in it has run on `size` x `size` pixels.

    `imports`: the packages only; `sessions`: an untouched session for each of `files`; `live`: an `OnnxModel` of the
    first file with the signatures of the second, each of them patched once. RwsError if the process fails.
    """
    return Memory(**run_main("rws.benchmarks.common.memory", kind, kind, str(size), *map(str, files)))


def run_main(module: str, what: str, *arguments: str) -> Any:
    """Return what `main` of a module prints as JSON in a fresh process; RwsError, naming `what`, if that fails."""
    command = python_command(f"from {module} import main; main()", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise RwsError(f"the process that measures {what!r} failed: {reason}; take a smaller model or batch")
    return json.loads(done.stdout)


def _hold(kind: Kind, size: int, files: Sequence[str]) -> list[Any]:
    x = np.random.default_rng(0).random((1, 3, size, size), np.float32)
    if kind == "imports":
        return []
    if kind == "live":
        signatures = SignatureSet.load(files[1])
        model = OnnxModel(files[0], signatures, signatures.tensors, threads=1)
        for name in signatures.names:
            model.apply({name: 1.0})
            model.predict(x)
        model.reset()
        model.predict(x)
        return [model]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"]) for file in files]
    for session in sessions:
        # A session plans its buffers in its second run, and holds more from then on.
        for _ in range(_RUNS):
            session.run(None, {session.get_inputs()[0].name: x})
    return sessions


def private_bytes() -> int:
    """Return the bytes of private, anonymous memory that this process holds; see `can_measure`."""
    return status_bytes("Anonymous:", _COUNTS)


def status_bytes(field: str, file: Path = Path("/proc/self/status")) -> int:
    """Return a field of one of Linux's status files of a process, in bytes."""
    return next(1024 * int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(field))


def main() -> None:
    """Measure this process and print a `Memory` as JSON; `sys.argv` holds the arguments of `measure`."""
    kind, size, *files = sys.argv[1:]
    held = _hold(kind, int(size), files)  # type: ignore[arg-type]
    return_memory()
    # getrusage would give the parent's peak if that was higher: Linux hands it down through exec.
    peak = status_bytes("VmHWM:")
    print(json.dumps(asdict(Memory(private_bytes(), peak, held[0].description if kind == "live" else ""))))
