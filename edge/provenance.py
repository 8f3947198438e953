"""What every result carries: the command, the machine and the versions that made it."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edge.atomic import atomic_write_bytes
from edge.sources import hide_password

PACKAGES = ("rws-edge", "torch", "onnxruntime", "numpy", "opencv-python")


def provenance(**details: Any) -> dict[str, Any]:
    """Command line, machine, versions, and whatever else decides the result (seed, data, …)."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": hide_password(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "machine": {"processor": _processor(), "system": platform.system()},
        "versions": versions,
        **details,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_json(path: Path, content: Any) -> None:
    """Write a result, atomically; a list of objects takes a line for each of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, (_formatted(content) + "\n").encode())


def _formatted(content: Any, indent: str = "") -> str:
    """JSON with a line for each entry of the outermost objects, and of lists of objects."""
    inner = indent + " "
    if isinstance(content, dict) and content and not indent:
        entries = [f"{json.dumps(key)}: {_formatted(value, inner)}" for key, value in content.items()]
        return "{\n" + ",\n".join(inner + entry for entry in entries) + "\n}"
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return "[\n" + ",\n".join(inner + json.dumps(entry) for entry in content) + f"\n{indent}]"
    return json.dumps(content)
