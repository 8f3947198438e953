"""The soak test: the real command on a real stream for a long time, with a real client of its page."""

import contextlib
import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from rws.edge.common.child import python_command
from rws.edge.faults.adversary import Adversary, Attacked
from rws.edge.faults.frames import read_stamp
from rws.edge.faults.peers import Page
from rws.edge.faults.servers import age_ms
from rws.edge.monitoring.summary import Reservoir
from rws.errors import RwsError

WARM_UP = 60.0  # seconds, at least, until caches, pools and the page's timeline are full; otherwise a tenth of all
SAMPLE_EVERY = 2.0
LARGEST_GROWTH_MB = 5.0
LOST_AT_END = 3  # frames under way when camera or loop ends
DEATHS, SHORTEST_LIFE = 60, 10.0  # of the camera of a hostile soak, and the fewest seconds in between
TOKEN = "the-soaks-token"
_FROM_SUMMARY = ("received", "frames", "dropped", "rejected", "reconnects", "mix_changes", "sinks")


@dataclass(frozen=True)
class _Run:
    """What a run left behind."""

    summary: dict[str, Any]
    viewer: "_Viewer"
    memory: list[float]  # MB, after the warm-up
    sent: int
    deaths: int
    rows: int  # of the healthy file
    attacked: Attacked | None


def soak(
    seconds: float, fps: float, bundle: Path, say: Callable[[str], None], *, hostile: bool = False
) -> Mapping[str, Any]:
    """Run `rws run` with its page on a camera on loopback; memory shows after 120 s. An `RwsError` if it ends early.

    Returns the keys of the report and their values; docs/reference/records.md describes them.

    If `hostile`, the camera dies up to 60 times, the disk of one output is full, 1,000 hostile connections are made,
    and 20 bad bundles and then a good one appear in the watched folder.
    """
    every = max(SHORTEST_LIFE, seconds / DEATHS) if hostile else 0.0
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        code = "from rws.edge.faults.servers import serve_stamped; serve_stamped()"
        camera = _start(stack, code, str(fps), str(every))
        assert camera.stdout is not None
        assert camera.stdin is not None
        url = camera.stdout.readline().strip()
        report, watched, rows = (Path(folder, name) for name in ("summary.json", "bundle", "rows.csv"))
        arguments = ["run", url, "--threads", "1", "--serve", "127.0.0.1:0", "--json", str(report), "--csv", str(rows)]
        if hostile:
            shutil.copytree(bundle, watched)
            arguments += ["--bundle", str(watched), "--watch", "--token", TOKEN, "--jsonl", "/dev/full"]
        else:
            arguments += ["--bundle", str(bundle), "--jsonl", str(Path(folder, "results.jsonl"))]
        loop = _start(stack, "from rws.cli import main; main()", *arguments)
        page = Page(_page_of(loop), TOKEN)
        viewer = _Viewer(page)
        adversary = stack.enter_context(Adversary(page, seconds, bundle, watched)) if hostile else None
        memory = _watch_memory(loop, seconds, lambda text: say(f"{text}, {viewer.images} images seen"))
        viewer.stopped = True
        attacked = None if adversary is None else adversary.end()
        loop.terminate()
        loop.wait(30)
        camera.stdin.close()
        sent, deaths = map(int, camera.stdout.readline().split())
        written = len(rows.read_text().splitlines()) - 1
        run = _Run(json.loads(report.read_text()), viewer, memory, sent, deaths, written, attacked)
    return _report(run, seconds, fps)


def _report(run: _Run, seconds: float, fps: float) -> Mapping[str, Any]:
    summary = run.summary
    # A tenth of all samples spans several lives of a camera that dies: memory rises and falls with each.
    count = max(15, len(run.memory) // 10)
    first, last = float(np.median(run.memory[:count])), float(np.median(run.memory[-count:]))
    p50, p95 = (run.viewer.ages.percentile(share) for share in (50, 95))
    promises = {
        "every frame accounted for": summary["received"]
        == summary["frames"] + summary["dropped"] + summary["rejected"],
        f"memory growth below {LARGEST_GROWTH_MB:g} MB": last - first < LARGEST_GROWTH_MB,
        "the healthy file holds each result": run.rows == summary["frames"],
    }
    lost, reconnects = run.sent - summary["received"], summary["reconnects"]
    if run.attacked is None:
        promises["no frame lost on the way"] = abs(lost) <= LOST_AT_END
        promises["age at the client below two frame times at p95"] = p95 < 2 * 1e3 / fps
    else:
        most = LOST_AT_END * (run.deaths + 1)
        promises["no frame lost but those that the camera died with"] = -LOST_AT_END <= lost <= most
        # The first one may come too early, and the last one too late.
        promises["each death of the camera is a reconnect"] = run.deaths - 2 <= reconnects <= run.deaths
        promises |= run.attacked.promises(summary["sinks"])
    return {
        "seconds": seconds,
        "fps": fps,
        "sent": run.sent,
        **{key: summary[key] for key in _FROM_SUMMARY},
        "frames_seen_by_client": run.viewer.images,
        "age_ms": {
            "camera_to_client_p50": round(p50, 1),
            "camera_to_client_p95": round(p95, 1),
            "arrival_to_result_p50": summary["age_ms"]["p50"],
            "arrival_to_result_p95": summary["age_ms"]["p95"],
        },
        "memory_mb": {
            "after_warm_up": round(first, 2),
            "at_end": round(last, 2),
            "growth": round(last - first, 2),
            "largest": round(max(run.memory), 2),
        },
        "promises": promises,
        "hostile": None if run.attacked is None else {"deaths": run.deaths, **vars(run.attacked)},
    }


def _watch_memory(loop: subprocess.Popen[str], seconds: float, say: Callable[[str], None]) -> list[float]:
    """Sample the memory for N seconds; return the samples after the warm-up, MB."""
    memory: list[tuple[float, float]] = []
    started = time.monotonic()
    while (elapsed := time.monotonic() - started) < seconds:
        time.sleep(min(SAMPLE_EVERY, seconds - elapsed))
        if loop.poll() is not None:
            raise RwsError(f"soak: the loop ended early with exit code {loop.returncode}")
        memory.append((time.monotonic() - started, _memory_mb(loop.pid)))
        if len(memory) % 30 == 0:
            say(f"{elapsed:.0f} s: {memory[-1][1]:.1f} MB")
    return [mb for at, mb in memory if at > max(WARM_UP, seconds / 10)] or [memory[-1][1]]


class _Viewer:
    def __init__(self, page: Page) -> None:
        self.images, self.stopped = 0, False
        self.ages = Reservoir()  # of the frames seen, milliseconds
        for target, path in ((self._watch, "stream.mjpg"), (self._listen, "events")):
            threading.Thread(target=target, args=(page.open(path),), daemon=True).start()

    def _watch(self, stream: IO[bytes]) -> None:
        with stream:
            while not self.stopped and (length := _part_length(stream)):
                image = cv2.imdecode(np.frombuffer(stream.read(length), np.uint8), cv2.IMREAD_COLOR)
                self.images += 1
                if image is not None and (stamp := read_stamp(np.asarray(image, np.uint8))) is not None:
                    self.ages.add(age_ms(stamp))

    def _listen(self, stream: IO[bytes]) -> None:
        with stream:
            while not self.stopped and stream.readline():
                pass


def _part_length(stream: IO[bytes]) -> int:
    """Read the head of a part of a multipart stream; return the number of bytes that follow, 0 at the end."""
    length = 0
    for line in iter(stream.readline, b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        if length and not line.strip():
            return length
    return 0


def _start(stack: contextlib.ExitStack, code: str, *arguments: str) -> subprocess.Popen[str]:
    command, pipe = python_command(code, *arguments), subprocess.PIPE
    process = stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
    stack.callback(process.kill)
    return process


def _page_of(loop: subprocess.Popen[str]) -> str:
    assert loop.stdout is not None
    for line in loop.stdout:
        if line.startswith("page: "):
            # What it goes on to print must not fill the pipe.
            threading.Thread(target=loop.stdout.read, daemon=True).start()
            return line.removeprefix("page: ").strip()
    raise RwsError("soak: the loop ended before it served its page")


def _memory_mb(pid: int) -> float:
    """Return the memory of loop and capture process that is their own, MB.

    Resident memory would count the pages of libraries too, which the system loads and drops as it likes.
    """
    processes = [str(pid)]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            processes += [child for child in children.read_text().split() if _captures(child)]
    total = 0.0
    for process in processes:
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{process}/smaps_rollup").read_text().partition("Anonymous:")[2].split()[0]) / 1024
    return total


def _captures(pid: str) -> bool:
    return b"worker.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
