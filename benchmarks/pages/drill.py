"""The tables of `rws drill` in README.md."""

from __future__ import annotations

from typing import Any

from rws.benchmarks.common.committed import RESULTS
from rws.benchmarks.common.markdown import made_by, table
from rws.benchmarks.pages.oracle import read

CLIPS = "drill_video_*.json"


def drill_table() -> str:
    """Every fault: what is promised, what happened, and the frames' books."""
    result = read("drill")
    rows = [
        [
            case["name"],
            case["promised"].rstrip("."),
            (case["skipped"] or case["happened"]) + ("" if case["passed"] else " **not kept**"),
            f"{case['frames_in']:,}",
            f"{case['frames_out']:,}",
            f"{case['dropped']:,}",
            f"{sum(case['rejected'].values()):,}",
        ]
        for case in result["cases"]
    ]
    passed = sum(case["passed"] for case in result["cases"])
    clips = [case for path in sorted(RESULTS.glob(CLIPS)) for case in read(path.stem)["cases"]]
    kept = sum(case["passed"] for case in clips)
    lines = [
        table(["fault", "promised", "happened", "in", "out", "dropped", "rejected"], rows, texts=3),
        "",
        f"{passed} of {len(rows)} as promised; of each, in = out + dropped + rejected. {made_by(result)}",
        "",
        f"The same with {len(clips) // 2} real clips, played whole and damaged: {kept} of {len(clips)} as promised.",
        *(f"* {_clip(case)}" for case in clips),
    ]
    return "\n".join(lines)


def drill_summary() -> str:
    """How many faults, and how many promises were kept."""
    cases = read("drill")["cases"]
    passed = sum(case["passed"] for case in cases)
    return (
        f"{passed} of {len(cases)} faults went as promised: [what was promised, what happened, and each one's frames]"
        "(docs/drill.md)."
    )


def soak_table() -> str:
    """Ten minutes on a stream: books, age, memory."""
    result = read("soak")
    soak: dict[str, Any] = result["soak"]
    ages, memory = soak["age_ms"], soak["memory_mb"]
    rows = [
        ["frames sent by the camera", f"{soak['sent']:,}"],
        ["received = results + dropped + rejected", _books(soak)],
        ["from the camera's picture to the client's, ms, p50 / p95", _pair(ages, "from camera to client")],
        ["from arrival to result, ms, p50 / p95", _pair(ages, "from arrival to result")],
        ["memory after a minute / at the end, MB", f"{memory['after warm-up']:.1f} / {memory['at the end']:.1f}"],
    ]
    held = ", ".join(f"{promise}: {'yes' if kept else '**no**'}" for promise, kept in soak["held"].items())
    return "\n".join(
        [
            table([f"{soak['seconds'] / 60:.0f} minutes, {soak['fps']:.0f} frames a second, 640 x 480", ""], rows),
            "",
            f"An MJPEG camera in a process of its own stamps each picture with the time; a client of the page's stream "
            f"reads it there, with the page's events open as well. Memory is that of loop and capture process. {held}. "
            f"{made_by(result)}",
        ]
    )


def _books(soak: dict[str, Any]) -> str:
    return f"{soak['received']:,} = {soak['frames']:,} + {soak['dropped']:,} + {soak['rejected']:,}"


def _pair(ages: dict[str, float], what: str) -> str:
    return f"{ages[f'{what}, p50']:.1f} / {ages[f'{what}, p95']:.1f}"


def _clip(case: dict[str, Any]) -> str:
    return f"{case['video']}, {case['name']}: {case['happened']}"


README_TABLES = {"drill summary": drill_summary, "soak": soak_table}
TABLES = {"drill": drill_table, "soak": soak_table}
