"""Measure how much of the unpaced rate of `rws run` the viewers of its page take; the arms are interleaved.

    python tests/edge/web/measure_viewers.py --rounds 7 --json viewers.json

An arm is a number of viewers of the events and one of the images. Each run classifies the same noisy frames, so that
the weights are patched and the page asks for the comparison with the clean model. The share of the rate is
1 - rate / rate without viewers, in the same round; that of the processor time of the run, which other work on the
machine disturbs less, is time / time without viewers - 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from rws.edge.common.provenance import provenance, write_json
from rws.edge.faults.frames import scene

ARMS = {"none": (0, 0), "1 events": (1, 0), "8 events": (8, 0), "1 images": (0, 1), "8 images": (0, 8)}


def view(page: str, path: str) -> None:
    """Read a stream of the page until it ends."""
    address = urllib.parse.urlsplit(page)
    with contextlib.suppress(OSError), socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(f"GET /{path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        while client.recv(1 << 20):
            pass


def measure(frames: Path, events: int, images: int, folder: Path) -> tuple[float, float]:
    """Return the frames per second of one run with viewers, and the seconds of processor time that it took."""
    report = folder / "summary.json"
    code = "from rws.cli import main; main()"
    arguments = ["run", str(frames), "--stream", "--threads", "1", "--serve", "127.0.0.1:0", "--json", str(report)]
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        for line in run.stdout:
            if found := re.match(r"page: (\S+)", line):
                for path in ["events"] * events + ["stream.mjpg"] * images:
                    threading.Thread(target=view, args=(found[1], path), daemon=True).start()
        _, status, used = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    assert run.returncode == 0
    return json.loads(report.read_text())["fps"], used.ru_utime + used.ru_stime


def spread(values: list[float]) -> dict[str, float]:
    """Return median and range."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def main(
    frames: Annotated[int, typer.Option(help="Frames of a run.")] = 3000,
    rounds: Annotated[int, typer.Option(help="Runs of each arm.")] = 5,
    out: Annotated[Path | None, typer.Option("--json", help="Write the rates and shares here.")] = None,
) -> None:
    """Measure, and print the median share and its range per arm."""
    measured: dict[str, list[tuple[float, float]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        noise = np.random.default_rng(0).normal(0, 60, (240, 320, 3))
        noisy = [np.clip(scene(240, 320, seed) + noise, 0, 255).astype(np.uint8) for seed in range(16)]
        np.save(folder / "noisy.npy", np.stack([noisy[index % 16] for index in range(frames)]))
        for index in range(rounds):
            for arm in list(ARMS)[:: 1 if index % 2 else -1]:
                measured[arm].append(measure(folder / "noisy.npy", *ARMS[arm], folder))
    shares: dict[str, dict[str, object]] = {}
    for arm in list(ARMS)[1:]:
        pairs = list(zip(measured[arm], measured["none"], strict=True))
        taken = {"rate": [1 - one[0] / alone[0] for one, alone in pairs]}
        taken["processor"] = [one[1] / alone[1] - 1 for one, alone in pairs]
        shares[arm] = {of: spread(values) for of, values in taken.items()}
        print(
            arm,
            *(
                f"{of}: {values['median']:.1%} ({values['lowest']:.1%} to {values['highest']:.1%})"
                for of, values in shares[arm].items()
            ),
        )
    if out is not None:
        rates, seconds = ({arm: [one[k] for one in runs] for arm, runs in measured.items()} for k in (0, 1))
        content = {"frames": frames, "fps": rates, "processor_s": seconds, "shares": shares}
        write_json(out, "page-viewers/1", {**content, **provenance(seed=0)})


if __name__ == "__main__":
    typer.run(main)
