"""`rws demo camera`: the bundled detector sees a street in dusk, fog, rain and noise, and through a dirty lens."""

import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from rws.benchmarks.common.tables import Record
from rws.benchmarks.demo.comparison import SIZE, Comparison
from rws.benchmarks.demo.stream import DEMO_DATA
from rws.benchmarks.streams.clips import Change, Step, follow, read_clip, score, truth
from rws.edge.bundle.bundle import Bundle
from rws.edge.common.files import atomic_path
from rws.edge.common.provenance import provenance, write_json
from rws.edge.sinks.mp4 import VideoFile
from rws.oracle.belief import CLEAN

CLIP, SHOT = DEMO_DATA / "bikes.mp4", slice(137, 187)  # two seconds of a street, of 25 frames per second
FPS, CLEAR, SEED = 10.0, 2.0, 0
CHANGES = (
    Change("low_light", 3.5, 2.5, 2, 1, 1.5),
    Change("fog", 4, 3, 2, 1, 1.5),
    Change("rain", 4, 3, 2, 1, 1.5),
    Change("gaussian_noise", 2, 2, 2, 1, 1.5),
    Change("lens_dirt", 3.5, 0.3, 3, 0.3, 2),
)


def play_camera(bundle: Bundle, out: Path, threads: int | None, console: Console) -> Record:
    """Play the street and write `camera.mp4`, `camera.png`, `camera.webp` and `summary.json` into `out`.

    Args:
        bundle: of a detector that knows all of `CHANGES`; otherwise an InputError.
        threads: of model and oracle; None: all cores.
    """
    out.mkdir(parents=True, exist_ok=True)
    started, frames = time.perf_counter(), truth(CHANGES, CLEAR, FPS)
    comparison, chosen = Comparison(frames, FPS), list[Step]()
    stretches = [list(members) for _, members in groupby(range(len(frames)), key=lambda number: frames[number][0])]
    middles = {members[len(members) // 2]: place for place, members in enumerate(stretches)}
    steps = follow(bundle, read_clip(CLIP, 25.0)[SHOT], frames, FPS, SEED, threads)
    with (
        atomic_path(out / "camera.mp4") as path,
        VideoFile(path, SIZE, Fraction(FPS), timed=False, endless=False) as video,
    ):

        def drawn() -> Iterator[Step]:
            for step in track(steps, "frames", len(frames), console=console, transient=True):
                video.write(np.asarray(comparison.draw(step)))
                if step.number in middles and (step.name != CLEAN or step.number < len(stretches[0])):
                    chosen.append(step)
                yield step

        rows = score(drawn(), FPS)
    sheet = comparison.sheet([(step, rows[middles[step.number]]) for step in chosen])
    sheet.save(out / "camera.png")
    sheet.resize((sheet.width * 2 // 3, sheet.height * 2 // 3)).save(out / "camera.webp", quality=70, method=6)
    summary: Record = {"bundle": bundle.manifest.name, "frames": len(frames), "fps": FPS, "seed": SEED}
    summary |= {"stretches": rows, "seconds": round(time.perf_counter() - started, 1)}
    write_json(out / "summary.json", "camera-demo/1", {**summary, **provenance()})
    return summary
