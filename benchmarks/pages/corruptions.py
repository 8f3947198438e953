"""The tables of docs/benchmarks/corruptions.md: parity with the reference, and throughput."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rws.benchmarks.common.tables import Column, label, markdown, plain
from rws.benchmarks.pages.results import read


def parity_table(content: Mapping[str, Any]) -> str:
    """Return the worst severity of each corruption in a result of `parity`."""
    columns = [
        label("", 0),
        Column("32 px, replayed", lambda row: _worst(row[1]["32"], "replayed")),
        Column("64 px, replayed", lambda row: _worst(row[1]["64"], "replayed")),
        Column("224 px, `imagecorruptions`", lambda row: _worst(row[1]["224"], "imagecorruptions")),
        Column("ΔPSNR, dB: 32 / 64 / 224 px", lambda row: " / ".join(map(_psnr, row[1].values()))),
        label("within", lambda row: "yes" if all(size["within"] for size in row[1].values()) else "no"),
    ]
    return markdown(columns, content["corruptions"].items())


def _worst(size: Mapping[str, Any], key: str) -> str:
    found = [row[key] for row in size["severity"].values() if row.get(key)]
    if not found:
        return "–"
    largest, differing, far = (max(difference[key] for difference in found) for key in ("largest", "differing", "far"))
    return f"{largest} ({differing:.2g} %" + (f"; > 3: {far:.2g} %)" if far else ")")


def _psnr(size: Mapping[str, Any]) -> str:
    found = (severity["psnr"] for severity in size["severity"].values())
    delta, error = max((abs(psnr["ours"] - psnr["reference"]), psnr["error"]) for psnr in found)
    return f"{delta:.2f}" + (f" ± {error:.2f}" if error else "")


def throughput_table(content: Mapping[str, Any]) -> str:
    """Return the medians of a result of `throughput`, half the interquartile range, and how many times faster."""
    rows = content["ms_per_image"]
    sizes, both = list(next(iter(rows.values()))), ("ours", "imagecorruptions")
    lines, mean = [], ["**mean of the 19**"]
    for name, measured in rows.items():
        lines.append([name])
        for times in measured.values():
            spreads = (
                f"{times[who]['median']:.2g} ± {(times[who]['p75'] - times[who]['p25']) / 2:.1g}" for who in both
            )
            lines[-1] += [*spreads, f"{times['imagecorruptions']['median'] / times['ours']['median']:.1f}×"]
    for size in sizes:
        ours, theirs = (np.mean([row[size][who]["median"] for row in rows.values()]) for who in both)
        mean += [f"{ours:.3g}", f"{theirs:.3g}", f"{theirs / ours:.1f}×"]
    heads = (head for size in sizes for head in (f"{size} px: ours", "`imagecorruptions`", "ratio"))
    return markdown(plain("ms per image", *heads), [*lines, mean])


TABLES = {
    "parity": lambda: parity_table(read("corruption_parity")),
    "throughput": lambda: throughput_table(read("corruption_throughput")),
}
