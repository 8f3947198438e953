"""The ways to make a signature, compared: alone, composed in pairs, quantised, and what they cost.

Alphas are chosen on validation images, accuracy is reported on test images.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rws.training.build.build import Build
from rws.training.corruptions import CORRUPTIONS
from rws.training.data.images import Images
from rws.training.evaluation.frames import corrupted
from rws.training.models.architectures import fold_batchnorm
from rws.training.models.fit import accuracy as percent
from rws.training.models.fit import predict
from rws.training.signatures.methods import Deltas, composed, patched

ALPHAS = (0.5, 0.75, 1.0)


def compare_ways(
    build: Build,
    test: Images,
    *,
    ways: Sequence[str] = ("tuned", "residual"),
    pairs: int = 20,
    severity: float = 5.0,
    pair_severity: float = 3.0,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Compare finished signatures of a build.

    Args:
        build: whose jobs `tuned` and `residual` are done.
        test: test images.
        ways: which to compare.
        pairs: how many pairs of corruptions, drawn at random.
        severity: of the single corruptions.
        pair_severity: of each of two corruptions laid over one another.
        seed: of pairs and corruptions.
        progress: called with a line for each way.

    Returns:
        Per way: mean accuracy over the 19 corruptions alone, on validation images (by which a way is chosen) and on
        test images (float32 and quantised); on test images also over images with two corruptions under both signatures
        and over single corruptions under a pair's signatures; seconds of training; and for `residual` the accuracy of
        the whole robust models that it is taken from.
    """
    std = build.folded
    validation = build.validation.first(1000)
    singles = {
        name: (
            corrupted(validation.pixels, ((name, severity),), seed, "validation"),
            corrupted(test.pixels, ((name, severity),), seed),
        )
        for name in CORRUPTIONS
    }
    chosen = random.Random(seed).sample(list(combinations(CORRUPTIONS, 2)), pairs)
    doubles = {
        (a, b): (
            corrupted(validation.pixels, ((a, pair_severity), (b, pair_severity)), seed, "validation"),
            corrupted(test.pixels, ((a, pair_severity), (b, pair_severity)), seed),
        )
        for a, b in chosen
    }

    def accuracy(deltas: Deltas, pixels: Tensor, labels: Tensor) -> float:
        return percent(patched(std, deltas), Images(pixels, labels, test.classes))

    def best_alpha(deltas: Deltas, pixels: Tensor) -> tuple[float, float]:
        scores = [accuracy(composed([(deltas, alpha)]), pixels, validation.labels) for alpha in ALPHAS]
        return ALPHAS[int(np.argmax(scores))], max(scores)

    def unpatched(sets: Sequence[Tensor]) -> float:
        return float(np.mean([accuracy({}, pixels, test.labels) for pixels in sets]))

    report: dict[str, Any] = {
        "std": {
            "ta": accuracy({}, test.pixels, test.labels),
            "ra": unpatched([pixels for _, pixels in singles.values()]),
            "ra_two_corruptions": unpatched([pixels for _, pixels in doubles.values()]),
        }
    }
    for way in ways:
        exact = {name: build.signature(way, name) for name in CORRUPTIONS}
        chosen_alphas = {name: best_alpha(exact[name], singles[name][0]) for name in CORRUPTIONS}
        alphas = {name: alpha for name, (alpha, _) in chosen_alphas.items()}

        def alone(deltas: dict[str, Deltas], alphas: dict[str, float] = alphas) -> float:
            return float(
                np.mean([accuracy(composed([(deltas[n], alphas[n])]), singles[n][1], test.labels) for n in CORRUPTIONS])
            )

        row: dict[str, Any] = {"ra_validation": float(np.mean([score for _, score in chosen_alphas.values()]))}
        row["ra"] = alone(exact)
        for bits in (8, 4):
            for per in ("channel", "tensor"):
                quantised = build.signatures(way, bits, per)
                arrays = {
                    name: {t: torch.from_numpy(d) for t, d in quantised.get(name).items()} for name in CORRUPTIONS
                }
                row[f"ra_{bits}bit_{per}"] = alone(arrays)
        two, cross = [], []
        for (a, b), (on_validation, on_test) in doubles.items():
            summed = composed([(exact[a], 1.0), (exact[b], 1.0)])
            alpha = best_alpha(summed, on_validation)[0]
            two.append(accuracy(composed([(summed, alpha)]), on_test, test.labels))
            half = composed([(exact[a], 0.5), (exact[b], 0.5)])
            cross += [accuracy(half, singles[name][1], test.labels) for name in (a, b)]
        if way == "residual":
            robust = {name: fold_batchnorm(build.robust(name)) for name in CORRUPTIONS}
            right = [predict(robust[n], singles[n][1]).argmax(1) == test.labels for n in CORRUPTIONS]
            row["ra_whole_robust_models"] = 100 * torch.stack(right).float().mean().item()
        row |= {"ra_two_corruptions": float(np.mean(two)), "ra_pair_halves": float(np.mean(cross))}
        row["train_seconds"] = train_seconds(build.work / "log.jsonl", _jobs(way))
        row["alpha"] = alphas
        report[way] = {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}
        if progress is not None:
            progress(f"{way:10s} " + "  ".join(f"{k} {v}" for k, v in report[way].items() if k != "alpha"))
    report["std"] = {key: round(value, 2) for key, value in report["std"].items()}
    return report | {
        "pairs": chosen,
        "severity": severity,
        "pair_severity": pair_severity,
        "test_images": len(test),
        "validation_images": len(validation),
    }


def _jobs(way: str) -> list[str]:
    prefix = {"tuned": "signature-tuned-", "residual": "robust-"}[way]
    return [prefix + name for name in CORRUPTIONS]


def train_seconds(log: Path, jobs: Collection[str]) -> float:
    """Seconds that jobs took, from a build's log, in which each run of a job starts at 0."""
    total = 0.0
    clock: dict[str, float] = {}
    for record in map(json.loads, log.read_text().splitlines()):
        job, seconds = record["job"], record["seconds"]
        if job in jobs and "epoch" in record:
            before = clock.get(job, 0.0)
            total += seconds - before if seconds > before else seconds
            clock[job] = seconds
    return total
