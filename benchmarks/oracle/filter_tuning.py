"""Search the settings of temporal filter and policy on validation streams of five protocols.

No classifier runs: the accuracy of the action that was chosen, in the true state, is read from the bundle's gain table.
"""

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np

from rws.benchmarks.common.tables import Record
from rws.benchmarks.streams.images import clean_images, known_corruptions
from rws.benchmarks.streams.ours import observe_streams
from rws.benchmarks.streams.protocols import PROTOCOLS, Floats, Ints, Stream, make_stream
from rws.benchmarks.streams.scores import mean_by_type, mix_accuracy, mix_change_rate, perfect_accuracy
from rws.edge.bundle.bundle import Bundle
from rws.errors import InputError
from rws.oracle.belief import Belief
from rws.oracle.policy import GainTable, Policy, make_policy
from rws.oracle.temporal_filter import BeliefFilter
from rws.records import Mix
from rws.training.evaluation.evaluator import EvaluationOptions, MixKey, mix_key
from rws.training.evaluation.frames import split_as_built
from rws.training.jobs.seeds import derive_seed

Settings = dict[str, dict[str, Any]]
Space = Mapping[str, Sequence[Any]]

# Points. A score that is better by less than the last one is no reason to change a setting.
LARGEST_LOSS_ON_MIXED, LARGEST_CLEAN_LOSS, LEAST_GAIN = 0.05, 0.2, 0.01
ROUNDS = 2
"""How often each setting is tried."""
TUNED = tuple(name for name in PROTOCOLS if name != "potpourri")
SEVERITIES: tuple[float | Literal["all"], ...] = (5.0, "all")

SPACE: Space = {
    "filter.jump": ((0.02, 0.2, 1.0), (0.005, 0.05, 1.0), (0.005, 0.02, 0.1, 1.0), (0.02, 1.0), 0.02, 0.05, 0.15),
    "filter.share": (0.005, 0.02, 0.05, 0.1),
    "filter.evidence": (0.5, 0.7, 0.85, 1.0),
    "filter.drift": (0.05, 0.1, 0.3, 0.5),
    "policy.hold": (0.0, 0.0625, 0.125, 0.25),
    "policy.threshold": (0.05, 0.1, 0.2),
    "policy.margin": (0.0, 0.25, 0.5, 1.0, 2.0),
}
"""Values to try for each setting, in the order in which they are tried, of every kind of policy.

`clean_weight` is not among them: it changes single frames, and streams do not measure that.
"""


@dataclass(frozen=True)
class _Case:
    # The oracle's joint is (N, 1 + C·S), the accuracy of `perfect` (N,), the baseline the expected mean at the start.
    stream: Stream
    joint: Floats
    perfect: Floats
    baseline: float


def tune_filter(
    bundle: Bundle, source: str, frames: int, options: EvaluationOptions, space: Space | None = None
) -> Record:
    """Find the settings with the highest score, one setting after another, the others at their best values so far.

    The score is the mean over all streams but `mixed` of (RA + TA) / 2, expected accuracies (RA: mean over the types).
    On no `mixed` stream may the accuracy (mean over all types) be more than 0.05 point below that of the starting
    policy without filter and hysteresis; on clean frames it may be at most 0.2 points below that of no patch, mean over
    all streams. Until both hold, the smaller excess (sum of both) wins.

    Args:
        bundle: the search starts from its manifest's settings.
        source: the training images that the bundle was built from; the build's validation part of them is used.
        frames: per type and stream, see `make_stream`.
        space: {"filter.<argument of BeliefFilter>" or "policy.<argument of its kind>": values}; None: `SPACE`.

    Raises:
        InputError: if the images do not fit the bundle, there is no such setting, or a value does not fit its setting.
    """
    space = fitting_space(bundle, space)
    validation, cases = _cases(bundle, source, frames, options)
    start: Settings = {
        "filter": {key: value for key, value in bundle.manifest.filter.items() if key != "prior"},
        "policy": dict(bundle.manifest.policy),
    }
    tried: dict[str, Record] = {}

    def measured(settings: Settings) -> Record:
        key = repr(settings)
        if key not in tried:
            row = tried[key] = _measured(bundle, settings, cases)
            losses = f"mixed loss {row['mixed_loss']:.3f}  clean loss {row['clean_loss']:.3f}"
            options.progress(f"score {row['score']:.3f}  {losses}  {settings}")
        return tried[key]

    best = start
    for _ in range(ROUNDS):
        before = best
        for name, value in ((name, value) for name, values in space.items() for value in values):
            part, _, argument = name.partition(".")
            candidate = best | {part: best[part] | {argument: value}}
            if beats(measured(candidate), measured(best)):
                best = candidate
        if best == before:
            break
    return {
        "images": validation,
        "frames_per_type": frames,
        "severities": list(SEVERITIES),
        "seed": options.seed,
        "start": start,
        "best": best,
        "tried": sorted(tried.values(), key=lambda row: (_excess(row), -row["score"])),
    }


def _cases(bundle: Bundle, source: str, frames: int, options: EvaluationOptions) -> tuple[int, list[_Case]]:
    corruptions = known_corruptions(bundle)
    _, validation = split_as_built(bundle, clean_images(bundle, source, "train"))
    labels = validation.labels.numpy()
    seed = derive_seed(options.seed, "validation")  # other streams than those that the settings are reported on
    streams = {
        f"{protocol} {severity}": make_stream(
            protocol, labels, frames=frames, severity=severity, seed=seed, corruptions=corruptions
        )
        for severity, protocol in product(SEVERITIES, TUNED)
        # `gradual` has all severities already.
        if protocol != "gradual" or severity == SEVERITIES[0]
    }
    joint = observe_streams(bundle.oracle(threads=options.threads), streams, validation.pixels)
    alone = make_policy(bundle.table, bundle.manifest.policy, independent=True)
    cases = []
    for name, stream in streams.items():
        unsmoothed, _ = _expected(stream, bundle.table, alone.mixes(joint[name]))
        baseline = float(np.nanmean(mean_by_type(stream, unsmoothed)))
        cases.append(_Case(stream, joint[name], perfect_accuracy(stream, bundle.table), baseline))
    return len(validation), cases


def fitting_space(bundle: Bundle, space: Space | None) -> Space:
    """Return the settings to try; raise InputError if the bundle's filter and policy do not have one of them."""
    takes: dict[str, type] = {"filter": BeliefFilter, "policy": type(bundle.policy())}
    own = {"table", "corruptions", "levels", "prior"}
    known = {f"{part}.{name}" for part, taker in takes.items() for name in {*inspect.signature(taker).parameters} - own}
    if space is None:
        return {name: values for name, values in SPACE.items() if name in known}
    if unknown := [name for name in space if name not in known]:
        raise InputError(f"the bundle has no setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
    return space


def _excess(row: Record) -> float:
    excess = (row["mixed_loss"] - LARGEST_LOSS_ON_MIXED, row["clean_loss"] - LARGEST_CLEAN_LOSS)
    return float(sum(max(points, 0.0) for points in excess))


def beats(row: Record, best: Record) -> bool:
    """Return whether settings are better than the best so far."""
    now, before = _excess(row), _excess(best)
    better: bool = now < before if now != before else row["score"] >= best["score"] + LEAST_GAIN
    return better


def _measured(bundle: Bundle, settings: Settings, cases: Sequence[_Case]) -> Record:
    prior = {key: value for key, value in bundle.manifest.filter.items() if key == "prior"}
    smooth = BeliefFilter(bundle.manifest.corruptions, bundle.manifest.severity_levels, **prior, **settings["filter"])
    policy = make_policy(bundle.table, settings["policy"])
    scores, losses, clean_losses = [], [], []
    regret, ta_lost, changes = (defaultdict[str, list[float]](list) for _ in range(3))
    for case in cases:
        accuracy, chosen = _expected(case.stream, bundle.table, list(_mixes(case, smooth, policy)))
        by_type = mean_by_type(case.stream, accuracy)
        perfect = mean_by_type(case.stream, case.perfect)
        ra, ta, protocol = float(np.nanmean(by_type[1:])), float(by_type[0]), case.stream.protocol
        clean_losses.append(float(perfect[0]) - ta)
        regret[protocol].append(float(np.nanmean(perfect[1:])) - ra)
        ta_lost[protocol].append(clean_losses[-1])
        changes[protocol].append(mix_change_rate(case.stream, chosen))
        if protocol == "mixed":
            losses.append(case.baseline - float(np.nanmean(by_type)))
        else:
            scores.append((ra + ta) / 2)
    return {
        **settings,
        "score": round(float(np.mean(scores)), 3),
        "mixed_loss": round(max(losses), 3),
        "clean_loss": round(float(np.mean(clean_losses)), 3),
        "regret": _means(regret),
        "ta_lost": _means(ta_lost),
        "mix_change_rate": _means(changes),
    }


def _means(by_protocol: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {protocol: round(float(np.mean(values)), 2) for protocol, values in by_protocol.items()}


def _expected(stream: Stream, table: GainTable, mixes: Sequence[Mix]) -> tuple[Floats, Ints]:
    """Return the expected accuracy of each frame's mix, (N,), and a number for each mix, (N,)."""
    keys: dict[MixKey, int] = {}
    index = np.array([keys.setdefault(mix_key(mix), len(keys)) for mix in mixes])
    return mix_accuracy(stream, table, [dict(key) for key in keys], index), index


def _mixes(case: _Case, smooth: BeliefFilter, policy: Policy) -> Iterator[Mix]:
    for joint, cut in zip(case.joint, case.stream.cut, strict=True):
        if cut:
            smooth.reset()
            policy.reset()
        yield policy.choose(smooth.update(Belief(smooth.corruptions, smooth.levels, joint)))
