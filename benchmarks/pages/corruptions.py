"""The tables of training/corruptions/README.md: parity with the reference, and throughput."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rws.benchmarks.common.markdown import made_by
from rws.benchmarks.pages.oracle import read


def parity_table(content: Mapping[str, Any]) -> str:
    """The result of `parity` as markdown: the worst severity of each corruption."""
    lines = [
        "| | 32 px, replayed | 64 px, replayed | 224 px, `imagecorruptions` | ΔPSNR, dB: 32 / 64 / 224 px | within |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, sizes in content["corruptions"].items():
        cells = [
            _worst(sizes[size]["severity"].values(), key)
            for size, key in (("32", "replayed"), ("64", "replayed"), ("224", "imagecorruptions"))
        ]
        psnr = [
            max((abs(s["psnr"]["ours"] - s["psnr"]["reference"]), s["psnr"]["error"]) for s in row["severity"].values())
            for row in sizes.values()
        ]
        cells.append(" / ".join(f"{delta:.2f}" + (f" ± {error:.2f}" if error else "") for delta, error in psnr))
        cells.append("yes" if all(row["within"] for row in sizes.values()) else "no")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _worst(severities: Any, key: str) -> str:
    found = [row[key] for row in severities if row.get(key)]
    if not found:
        return "–"
    largest, differing, far = (max(d[key] for d in found) for key in ("largest", "differing", "far"))
    return f"{largest} ({differing:.2g} %" + (f"; > 3: {far:.2g} %)" if far else ")")


def throughput_table(content: Mapping[str, Any]) -> str:
    """The result of `throughput` as markdown: medians, with half the interquartile range, and how many times faster."""
    rows = content["ms_per_image"]
    sizes = list(next(iter(rows.values())))
    lines = [
        "| ms an image | " + " | ".join(f"{size} px: ours | `imagecorruptions` | ratio" for size in sizes) + " |",
        "|---|" + "---:|" * (3 * len(sizes)),
    ]
    for name, measured in rows.items():
        cells = [name]
        for times in measured.values():
            cells += [_spread(times["ours"]), _spread(times["imagecorruptions"])]
            cells.append(f"{times['imagecorruptions']['median'] / times['ours']['median']:.1f}×")
        lines.append("| " + " | ".join(cells) + " |")
    cells = ["**mean of the 19**"]
    for size in sizes:
        means = [np.mean([row[size][who]["median"] for row in rows.values()]) for who in ("ours", "imagecorruptions")]
        cells += [f"{means[0]:.3g}", f"{means[1]:.3g}", f"{means[1] / means[0]:.1f}×"]
    return "\n".join([*lines, "| " + " | ".join(cells) + " |"])


def _spread(time: dict[str, float]) -> str:
    return f"{time['median']:.2g} ± {(time['p75'] - time['p25']) / 2:.1g}"


def _made(result: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
    return f"{made_by(result)} Versions: {versions}."


def _parity() -> str:
    result = read("corruption_parity")
    return f"{parity_table(result)}\n\n{_made(result)}"


def _throughput() -> str:
    result = read("corruption_throughput")
    return f"{throughput_table(result)}\n\n{_made(result)}"


TABLES = {"parity": _parity, "throughput": _throughput}
