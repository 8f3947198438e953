"""`rws demo`: the bundled stream through the frame loop at batch 1, and a figure and a video of it."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from rws.benchmarks.common.plots import ARM_STYLES
from rws.benchmarks.common.tables import Record
from rws.benchmarks.demo.stream import DemoStream, load_stream
from rws.benchmarks.demo.timeline import draw_timeline
from rws.benchmarks.demo.video import WORDS, DemoVideo
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.common.provenance import provenance, write_json
from rws.edge.live.base import PatchableModel
from rws.edge.pipeline import STAGES, Result
from rws.edge.preprocess import preprocess
from rws.edge.runtime import Runtime
from rws.edge.sinks.jsonl import JsonlSink
from rws.edge.sources.arrays import ArraySource
from rws.errors import InputError
from rws.oracle.belief import CLEAN
from rws.oracle.policy import ReferencePolicy

FPS = 5.0
Right = dict[str, NDArray[np.bool_]]
"""Whether each frame is classified correctly, by arm of `ARM_STYLES`; bool, shape (N,)."""


def reference(bundle: Bundle, model: PatchableModel, stream: DemoStream, perfect: bool) -> NDArray[np.bool_]:
    """Return which frames are right without a patch, or (`perfect`) if the strongest corruption is known; bool (N,)."""
    policy = ReferencePolicy(bundle.table, "perfect")
    right = np.zeros(len(stream.labels), bool)
    for index, image in enumerate(stream.images):
        model.apply(policy.mix(*stream.dominant(index)) if perfect else {})
        x = preprocess(image, bundle.manifest.input)[0]
        right[index] = int(model.predict(x)[0].argmax()) == stream.labels[index]
    model.reset()
    return right


def play(
    bundle: Bundle, out: Path, threads: int | None, console: Console, verbose: bool = False
) -> tuple[Record, Right]:
    """Play the stream and write `results.jsonl`, `frames.mp4`, `timeline.png` and `summary.json` into `out`.

    Args:
        bundle: its classes must be those of the stream; otherwise an InputError.
        threads: of model and oracle; None: all cores.
        verbose: print a line per mix change.
    """
    stream = load_stream()
    if bundle.manifest.classes != stream.classes:
        known, shown = (", ".join(classes[:3]) for classes in (bundle.manifest.classes, stream.classes))
        which = f"bundle {bundle.manifest.name} knows {known}, …; the demo's frames show {shown}, …"
        raise InputError(f"{which}: use rws run for your own")
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    console.print(f"{len(stream.labels)} CIFAR-10 test images, one per frame; their corruption comes and goes.")
    for word, meaning in WORDS.items():
        console.print(f"  {word:<7} {meaning}")
    with Runtime.from_bundle(bundle, ModelOptions(threads=threads)) as runtime:
        model = runtime.pipeline.model
        right = {arm: reference(bundle, model, stream, arm == "perfect") for arm in ("std", "perfect")}
        runtime.compare = True
        results = _results(runtime, stream, out, console, verbose)
    right["trained"] = np.array([r.class_index == label for r, label in zip(results, stream.labels, strict=True)])
    draw_timeline(stream, results, right, out / "timeline.png")
    summary = _summary(bundle.manifest.name, results, right, stream)
    summary["seconds"] = round(time.perf_counter() - started, 1)
    write_json(out / "summary.json", "demo-summary/1", {**summary, **provenance()})
    return summary, right


def _results(runtime: Runtime, stream: DemoStream, out: Path, console: Console, verbose: bool) -> list[Result]:
    results: list[Result] = []
    source = ArraySource(stream.images, name="demo", sequential=True, fps=FPS)
    with (
        JsonlSink(out / "results.jsonl") as lines,
        DemoVideo(out / "frames.mp4", FPS, stream) as video,
        Progress(console=console, transient=True) as progress,
    ):
        task = progress.add_task("frames", total=len(stream.labels))
        mix: dict[str, float] = {}
        for result in runtime.stream(source, sinks=(lines, video)):
            if verbose and dict(result.mix) != mix:
                mix = dict(result.mix)
                progress.console.print(_describe(result, stream), soft_wrap=True)
            results.append(result)
            progress.advance(task)
    return results


def _describe(result: Result, stream: DemoStream) -> str:
    severity = stream.dominant(result.index)[1]
    mix = "  ".join(f"{signature} α {alpha:.2f}" for signature, alpha in result.mix.items()) or "no patch"
    truth = " + ".join(stream.corruptions[result.index]) or CLEAN
    belief = f"{result.belief.type} {100 * result.belief.probability.max():.0f} %"
    return f"frame {result.index:3d}  truth {truth} ({severity:.0f})  oracle {belief}  →  {mix}"


def _summary(name: str, results: Sequence[Result], right: dict[str, NDArray[np.bool_]], stream: DemoStream) -> Record:
    clear = np.array([not layers for layers in stream.corruptions])
    times = [(stage, [result.times_ms[stage] for result in results]) for stage in STAGES]
    return {
        "bundle": name,
        "frames": len(results),
        "accuracy": {arm: round(100 * float(flags.mean()), 3) for arm, flags in right.items()},
        "accuracy_clear": {arm: round(100 * float(flags[clear].mean()), 3) for arm, flags in right.items()},
        "accuracy_corrupted": {arm: round(100 * float(flags[~clear].mean()), 3) for arm, flags in right.items()},
        "mix_changes": sum(result.changed for result in results),
        "signatures": dict(Counter(name for result in results for name in result.mix).most_common()),
        "times_ms": {stage: {f"p{q}": round(float(np.percentile(ms, q)), 3) for q in (50, 95)} for stage, ms in times},
        "seconds": 0.0,
    }


def print_summary(summary: Record, right: Right, console: Console) -> None:
    """Print the end of `rws demo`: accuracy of the three arms, what their difference means, and times."""
    headings = [Column(heading, justify="right") for heading in ("all", "clear", "corrupted")]
    accuracy = Table("", *headings, title=f"accuracy on {summary['frames']} frames, %", box=box.SIMPLE_HEAD)
    parts = (summary["accuracy"], summary["accuracy_clear"], summary["accuracy_corrupted"])
    for arm, (label, *_) in ARM_STYLES.items():
        accuracy.add_row(label, *(f"{part[arm]:.1f}" for part in parts))
    console.print(accuracy)
    console.print(_compare(right["trained"], right["perfect"]))
    medians = ", ".join(f"{stage} {summary['times_ms'][stage]['p50']:.2f}" for stage in ("oracle", "patch", "predict"))
    console.print(f"Median ms per frame: {medians}; {summary['mix_changes']} mix changes.")


def _compare(trained: NDArray[np.bool_], perfect: NDArray[np.bool_]) -> str:
    difference = 100 * (trained.astype(float) - perfect)
    error = difference.std(ddof=1) / len(difference) ** 0.5
    return (
        "Can the trained oracle beat the perfect one? The perfect oracle knows the strongest corruption of a frame and "
        "takes its signature at the α that is best on average; another α or a mix can suit a single image better. Here "
        f"they differ on {np.count_nonzero(difference)} of {len(difference)} frames: trained − perfect = "
        f"{difference.mean():+.1f} points, standard error {error:.1f}; less than twice that may be chance. On the "
        "whole test set the model is more accurate with the perfect oracle."
    )
