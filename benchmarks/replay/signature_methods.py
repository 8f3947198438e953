"""The methods that make a signature, compared: alone, composed in pairs, quantised, and what they cost.

`ra_pair_halves` is the accuracy on single corruptions under a pair's signatures, `ra_whole_robust_models` that of the
robust models that `residual` is taken from. Alphas are chosen on validation images, accuracies are of test images."""

import random
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rws.edge.signatures.quantization import Bits, Per
from rws.training.build.build import Build
from rws.training.corruptions import CORRUPTIONS
from rws.training.data.images import Images
from rws.training.evaluation.evaluator import Progress, silent
from rws.training.evaluation.frames import Layers, corrupted
from rws.training.jobs.progress import read_log
from rws.training.models.architectures import fold_batchnorm
from rws.training.models.fit import accuracy
from rws.training.signatures.deltas import Deltas, composed, patched

ALPHAS = (0.5, 0.75, 1.0)
METHODS = {"tuned": "signature-tuned-", "residual": "robust-"}
"""Methods, and how the names of their jobs begin."""
CODES: tuple[tuple[Bits, Per], ...] = ((8, "channel"), (8, "tensor"), (4, "channel"), (4, "tensor"))
PAIRS, SEVERITY, PAIR_SEVERITY = 20, 5.0, 3.0

Sets = Mapping[Layers, Images]


def compare_methods(build: Build, test: Images, seed: int = 0, progress: Progress = silent) -> dict[str, Any]:
    """Compare the finished signatures of a build."""
    pairs = random.Random(seed).sample(list(combinations(CORRUPTIONS, 2)), PAIRS)
    validation = build.validation.first(1000)
    comparison = _Comparison(build, _sets(validation, pairs, seed, "validation"), _sets(test, pairs, seed, "test"))
    report: dict[str, Any] = {"std": comparison.std(test)}
    for method in METHODS:
        report[method] = row = comparison.scores(method)
        progress(f"{method:10s} " + "  ".join(f"{key} {value}" for key, value in row.items() if key != "alpha"))
    return report | {
        "pairs": pairs,
        "severity": SEVERITY,
        "pair_severity": PAIR_SEVERITY,
        "test_images": len(test),
        "validation_images": len(validation),
    }


def _sets(images: Images, pairs: Sequence[tuple[str, str]], seed: int, purpose: str) -> Sets:
    cells: list[Layers] = [((name, SEVERITY),) for name in CORRUPTIONS]
    cells += [((first, PAIR_SEVERITY), (second, PAIR_SEVERITY)) for first, second in pairs]
    return {c: Images(corrupted(images.pixels, c, seed, purpose), images.labels, images.classes) for c in cells}


class _Comparison:
    def __init__(self, build: Build, validation: Sets, test: Sets) -> None:
        self._build, self._model, self._validation, self._test = build, build.folded, validation, test
        self._singles = {cell[0][0]: cell for cell in test if len(cell) == 1}
        self._pairs = [cell for cell in test if len(cell) == 2]

    def std(self, clean: Images) -> dict[str, float]:
        return {
            "ta": round(accuracy(self._model, clean), 2),
            "ra": _mean([accuracy(self._model, self._test[cell]) for cell in self._singles.values()]),
            "ra_two_corruptions": _mean([accuracy(self._model, self._test[cell]) for cell in self._pairs]),
        }

    def scores(self, method: str) -> Mapping[str, Any]:
        exact = {name: self._build.signature(method, name) for name in CORRUPTIONS}
        chosen = {name: self._best_alpha(exact[name], self._singles[name]) for name in CORRUPTIONS}
        alphas = {name: alpha for name, (alpha, _) in chosen.items()}
        validation = _mean([score for _, score in chosen.values()])
        row: dict[str, Any] = {"ra_validation": validation, "ra": self._alone(exact, alphas)}
        for bits, per in CODES:
            quantised = self._build.signatures(method, bits, per)
            read = {n: {t: torch.from_numpy(d) for t, d in quantised.get(n).items()} for n in CORRUPTIONS}
            row[f"ra_{bits}bit_{per}"] = self._alone(read, alphas)
        if method == "residual":
            robust = {name: fold_batchnorm(self._build.robust(name)) for name in CORRUPTIONS}
            whole = [accuracy(robust[name], self._test[cell]) for name, cell in self._singles.items()]
            row["ra_whole_robust_models"] = _mean(whole)
        two, cross = [], []
        for cell in self._pairs:
            parts = [exact[name] for name, _ in cell]
            both = composed([(part, 1.0) for part in parts])
            two.append(accuracy(self._patched(both, self._best_alpha(both, cell)[0]), self._test[cell]))
            halves = patched(self._model, composed([(part, 0.5) for part in parts]))
            cross += [accuracy(halves, self._test[self._singles[name]]) for name, _ in cell]
        row |= {"ra_two_corruptions": _mean(two), "ra_pair_halves": _mean(cross)}
        jobs = [METHODS[method] + name for name in CORRUPTIONS]
        row["train_seconds"] = round(train_seconds(self._build.work / "log.jsonl", jobs), 2)
        return row | {"alpha": alphas}

    def _patched(self, deltas: Deltas, alpha: float) -> nn.Module:
        return patched(self._model, composed([(deltas, alpha)]))

    def _best_alpha(self, deltas: Deltas, cell: Layers) -> tuple[float, float]:
        scores = [accuracy(self._patched(deltas, alpha), self._validation[cell]) for alpha in ALPHAS]
        return ALPHAS[int(np.argmax(scores))], max(scores)

    def _alone(self, deltas: Mapping[str, Deltas], alphas: Mapping[str, float]) -> float:
        singles = self._singles.items()
        return _mean([accuracy(self._patched(deltas[n], alphas[n]), self._test[cell]) for n, cell in singles])


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 2)


def train_seconds(log: Path, jobs: Collection[str]) -> float:
    """Return the seconds that jobs took, from a build's log, in which each run of a job starts at 0."""
    total, clock = 0.0, dict[str, float]()
    for record in read_log(log):
        job, seconds = record["job"], record["seconds"]
        if job in jobs and "epoch" in record:
            before, clock[job] = clock.get(job, 0.0), seconds
            total += seconds - before if seconds > before else seconds
    return total
