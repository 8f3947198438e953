"""Measure the tables of the paper: plain data that `rws.benchmarks.pages.paper` formats."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from itertools import combinations, product

import numpy as np
import torch

from rws.benchmarks.common.tables import Record
from rws.benchmarks.paper.columns import METHODS
from rws.benchmarks.paper.measure import ALL_LAYERS, WHOLE, Measure, Result, Variant, code, code_bytes, mean
from rws.benchmarks.replay.replay import Replayer
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.oracle.belief import CLEAN
from rws.training.corruptions import CORRUPTIONS
from rws.training.evaluation.sets import EvaluationSet
from rws.training.jobs.progress import read_log
from rws.training.jobs.store import JSON
from rws.training.models.fit import accuracy
from rws.training.signatures.deltas import Deltas, composed, patched

BITS = (32, 16, 8, 4)
TRAINED = "trained oracle"
ARMS = ("std", "trained", "perfect", "always")

TABLE1 = (
    *map(Variant, ("std", "augmented", "robust", "projected", "plain", "restart")),
    Variant("residual", ALL_LAYERS),
    *(Variant("residual", bits=bits) for bits in BITS),
    *(Variant(method, bits=bits) for method in METHODS if method != "residual" for bits in (32, 8, 4)),
)
TABLE5 = tuple(Variant(method, bits=bits) for method in ("robust", "residual", "tuned-labels") for bits in BITS)


def trained(measure: Measure) -> Record:
    """Evaluate the column's bundle by arm (`ARMS`), and its oracle, on the same images, percent."""
    oracle = hashlib.sha256(measure.build.oracle()[0]).hexdigest()
    identity = [measure.identity(), oracle]
    found: Record = measure.scores.get("trained.json", identity, lambda: _run_bundle(measure), JSON)
    return found


def _run_bundle(measure: Measure) -> Record:
    build = measure.build
    build.bundle(build.work / "bundle")
    bundle, threads = Bundle.load(build.work / "bundle"), torch.get_num_threads()
    backend = "onnx" if build.device.type == "cpu" else "torch"
    replayer = Replayer(bundle, threads, bundle.model(ModelOptions(backend, threads, provider=str(build.device))))
    tests = (EvaluationSet(name, 5 * (name != CLEAN), measure.tests(name)) for name in (CLEAN, *CORRUPTIONS))
    outcomes = {test.corruption: replayer.run(test) for test in tests}
    clean = outcomes.pop(CLEAN)
    named = [float((found.types == 1 + CORRUPTIONS.index(name)).mean()) for name, found in outcomes.items()]
    return {
        "ta": {arm: 100 * float(clean.correct[arm].mean()) for arm in ARMS},
        "ra": {arm: {name: 100 * float(o.correct[arm].mean()) for name, o in outcomes.items()} for arm in ARMS},
        "type_accuracy": 100 * float(np.mean(named)),
        "clean_recall": 100 * float((clean.types == 0).mean()),
    }


def row(measure: Measure, variant: Variant) -> Result:
    """Return a row: `ta` and `ra` (mean over corruptions) in percent, `storage` in sizes of the clean model."""
    score = measure.score(variant)
    return {
        "method": variant.method,
        "made": measure.canonical(variant).method,
        "layers": None if variant.method in WHOLE else variant.layers,
        "bits": variant.bits,
        "ta": round(score["ta"], 2),
        "ra": round(mean(score["ra"]), 2),
        "storage": round(score["bytes"] / measure.model_bytes, 3),
    }


def table1(measure: Measure) -> Result:
    """Measure TA, RA and storage of whole models and of signatures at several bits."""
    own = trained(measure)
    rows = [row(measure, variant) for variant in TABLE1]
    shipped = next(r for r in rows if (r["method"], r["bits"]) == (measure.shipped, 8))
    for arm, name in (("perfect", "perfect oracle"), ("trained", TRAINED), ("always", "all signatures averaged")):
        reached = {"ta": round(own["ta"][arm], 2), "ra": round(mean(own["ra"][arm]), 2), "storage": shipped["storage"]}
        rows.append(
            {"method": measure.shipped, "made": measure.shipped, "oracle": name, "layers": 5, "bits": 8, **reached}
        )
    oracle = {"type_accuracy": round(own["type_accuracy"], 2), "clean_recall": round(own["clean_recall"], 2)}
    return {"rows": rows, "oracle": oracle, **measure.sizes()}


def table3(measures: Sequence[Measure]) -> Result:
    """Measure RA of the signatures of one data set on the standard model of another; source "" is no patch.

    Strengths are calibrated on the validation images of the target.
    """
    rows = []
    for target in measures:
        name = target.build.column.dataset
        ra = round(mean(target.score(Variant("std"))["ra"]), 2)
        rows.append({"method": "", "source": "", "target": name, "ra": ra})
        for method, source in product(METHODS, measures):
            ra = round(mean(_transferred(method, source, target)), 2)
            rows.append({"method": method, "source": source.build.column.dataset, "target": name, "ra": ra})
    return {"rows": rows, **measures[0].sizes()}


def _transferred(method: str, source: Measure, target: Measure) -> dict[str, float]:
    ra: dict[str, float] = target.score(Variant(method))["ra"] if source is target else {}
    if source is target:
        return ra
    for corruption in CORRUPTIONS:
        deltas = source.deltas(method, corruption)
        alpha, _ = target.calibrated(target.std, deltas, target.validations(corruption))
        model = patched(target.std, composed([(deltas, alpha)]))
        ra[corruption] = accuracy(model, target.tests(corruption))
    return ra


def table4(measure: Measure) -> Result:
    """Measure the accuracy on each corruption at severity 5, percent."""
    own = trained(measure)
    variants = {"standard": Variant("std"), "augmentation": Variant("augmented"), "20 models": Variant("robust")}
    variants |= {f"{method}, 8 bit": Variant(method, bits=8) for method in METHODS}
    columns = {name: measure.score(variant)["ra"] for name, variant in variants.items()}
    columns[f"{measure.shipped}, {TRAINED}"] = own["ra"]["trained"]
    rows = [
        {"corruption": corruption, **{name: round(ra[corruption], 2) for name, ra in columns.items()}}
        for corruption in CORRUPTIONS
    ]
    return {"rows": rows, **measure.sizes()}


def table5(measure: Measure) -> Result:
    """Measure TA, RA and storage of whole models and of signatures at 32 to 4 bits."""
    return {"rows": [row(measure, variant) for variant in TABLE5], **measure.sizes()}


def tuned(measure: Measure, pairs: int = 10) -> Result:
    """Compare the methods to make a signature: RA on single corruptions and on `pairs` pairs, percent.

    `train_seconds` is the sum over all 19 jobs, on a shared machine.
    """
    recipe = measure.build.recipe
    chosen = random.Random(recipe.seed).sample(list(combinations(CORRUPTIONS, 2)), pairs)
    test, validation = measure.clean.first(500), measure.validation.first(200)
    tests = {pair: measure.doubled(test, pair) for pair in chosen}
    validations = {pair: measure.doubled(validation, pair, "validation") for pair in chosen}

    def over_pairs(deltas: Mapping[tuple[str, str], Deltas]) -> float:
        scores = [accuracy(patched(measure.std, deltas[pair]), images) for pair, images in tests.items()]
        return round(float(np.mean(scores)), 2)

    rows = []
    for method in METHODS:
        scores = {bits: measure.score(Variant(method, bits=bits)) for bits in (32, 8, 4)}
        rows.append(
            {
                "method": method,
                "validation": round(mean(scores[32]["validation"]), 2),
                **{f"ra{'' if b == 32 else f'_{b}bit'}": round(mean(scores[b]["ra"]), 2) for b in (32, 8, 4)},
                "ra_pairs": over_pairs({pair: measure.both(method, pair, v) for pair, v in validations.items()}),
                "epochs": (recipe.robust if method == "residual" else recipe.tuned).epochs,
                "train_seconds": round(_train_seconds(measure, method)),
            }
        )
    no_patch = over_pairs({pair: {} for pair in chosen})
    return {"rows": rows, "pairs": chosen, "ra_pairs_no_patch": no_patch, **measure.sizes()}


def _train_seconds(measure: Measure, method: str) -> float:
    kind = "robust" if method == "residual" else f"signature-{measure.build.method_name(method)}"
    jobs = {f"{kind}-{name}" for name in CORRUPTIONS}
    total, clock = 0.0, dict[str, float]()
    for record in read_log(measure.build.work / "log.jsonl"):
        job, seconds = record["job"], record["seconds"]
        if job in jobs and "epoch" in record:
            before, clock[job] = clock.get(job, 0.0), seconds
            total += seconds - before if seconds > before else seconds  # each run of a job starts at 0
    return total


def smaller(measure: Measure) -> Result:
    """Measure RA against bytes of all 19: fewer bits, and a basis that the 19 signatures share.

    The basis is the singular value decomposition of the 19 signatures of each tensor (19 × values), cut at rank r: r
    tensors at b bits per value, and 19 × r coefficients in float32.
    """
    method = measure.shipped
    names = measure.tensors(5)
    exact = {corruption: measure.deltas(method, corruption) for corruption in CORRUPTIONS}
    alphas = measure.score(Variant(method))["alpha"]
    shapes = [tuple(exact[CORRUPTIONS[0]][name].shape) for name in names]
    test = min(len(measure.clean), 1000)

    def robust_accuracy(deltas: dict[str, Deltas]) -> float:
        scores = []
        for corruption in CORRUPTIONS:
            model = patched(measure.std, composed([(deltas[corruption], alphas[corruption])]))
            scores.append(accuracy(model, measure.tests(corruption).first(test)))
        return round(float(np.mean(scores)), 2)

    rows: list[Result] = []
    for bits, per in product(BITS, ("channel", "tensor")):
        if bits == 32 and per == "tensor":
            continue
        coded = {corruption: code(deltas, bits, per) for corruption, deltas in exact.items()}
        size = len(CORRUPTIONS) * code_bytes(shapes, bits, per)
        rows.append(
            {"what": f"one scale per {per}", "bits": bits, "rank": None, "bytes": size, "ra": robust_accuracy(coded)}
        )
    for rank, bits in product((1, 2, 3, 4, 6, 8, 12), (8, 4)):
        coded = {corruption: {} for corruption in CORRUPTIONS}
        size = 0
        for name, shape in zip(names, shapes, strict=True):
            stack = torch.stack([exact[corruption][name].flatten() for corruption in CORRUPTIONS]).double()
            right = torch.linalg.svd(stack, full_matrices=False).Vh[:rank]
            basis = {str(i): row.float().reshape(shape).contiguous() for i, row in enumerate(right)}
            stored = torch.stack([part.flatten().double() for part in code(basis, bits).values()])
            # The coefficients are fitted to the basis as it is stored.
            share = torch.linalg.lstsq(stored.T, stack.T).solution.T.float()
            size += len(right) * code_bytes([shape], bits) + 4 * share.numel()
            for corruption, mixed in zip(CORRUPTIONS, (share.double() @ stored).float(), strict=True):
                coded[corruption][name] = mixed.reshape(shape)
        rows.append({"what": "shared basis", "bits": bits, "rank": rank, "bytes": size, "ra": robust_accuracy(coded)})
    return {"rows": rows, "method": method, "model_bytes": measure.model_bytes, **measure.sizes(), "test_images": test}
