"""Does a weight update strategy give what a session gives that was built from a file with the same weights?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rws.edge.live.arena import perturbed
from rws.edge.live.sessions import CPU, Feeds
from rws.edge.live.strategies import PatchTarget, WeightUpdateStrategy
from rws.edge.onnx.graph import replaced_tensors
from rws.errors import StrategyUnavailableError


class SelfCheck:
    """Compares strategies with sessions that were built from files.

    Args:
        target: the model and its patched tensors.
        feeds: input name → array.
        clean: outputs of the clean model for these feeds.
    """

    def __init__(self, target: PatchTarget, feeds: Feeds, clean: Sequence[NDArray[Any]]) -> None:
        self.target = target
        self._feeds = dict(feeds)
        self._clean = clean
        self._perturbed = perturbed(target.clean)
        with replaced_tensors(target.model, self._perturbed):
            self._expected = target.maker.session(target.model).run(None, self._feeds)

    def check(self, strategy: WeightUpdateStrategy) -> None:
        """Raise StrategyUnavailableError unless every write to the weights takes effect and can be taken back."""
        run = partial(strategy.run, None, self._feeds)
        before = run()
        if not strategy.exact:
            # Compared with a tolerance, one tensor that is stale among many that follow might not show.
            for name, array in self._perturbed.items():
                strategy.arena.overwrite({**self.target.clean, name: array})
                if not any(_differences(run(), before)):
                    raise StrategyUnavailableError(f"changes of {name!r} do not reach the output")
        strategy.arena.overwrite(self._perturbed)
        found = run()
        strategy.arena.reset()
        after = run()
        effects = _differences(self._expected, self._clean)
        if not any(effect > 0 for effect in effects):
            raise StrategyUnavailableError("changed weights do not change the output")
        errors = np.maximum(_differences(found, self._expected), _differences(before, self._clean))
        limits = [self._limit(strategy, *pair) for pair in zip(self._expected, effects, strict=True)]
        for error, limit in zip(errors, limits, strict=True):
            if not error <= limit:
                raise StrategyUnavailableError(
                    f"changed weights give outputs that are {error:.1e} off, allowed {limit:.1e}"
                )
        on_cpu = self.target.maker.providers[0] == CPU
        for error, limit in zip(_differences(before, after), limits, strict=True):
            if not error <= (0 if on_cpu else limit):
                raise StrategyUnavailableError("clean weights do not give the clean output again")

    def cost(self, strategy: WeightUpdateStrategy, runs: int = 11) -> tuple[float, float]:
        """Return the time of a run, in times that of the untouched session, and that of a change of mix, milliseconds.

        Medians of interleaved runs.
        """
        untouched = self.target.maker.session(self.target.model)
        steps = (
            partial(untouched.run, None, self._feeds),
            strategy.arena.reset,
            partial(strategy.run, None, self._feeds),
        )
        durations = []
        for _ in range(1 + runs):
            marks = [time.perf_counter()]
            for step in steps:
                step()
                marks.append(time.perf_counter())
            durations.append(np.diff(marks))
        plain, change, run = np.array(durations[1:]).T
        return float(np.median(run / plain)), float(np.median(change) * 1e3)

    @staticmethod
    def _limit(strategy: WeightUpdateStrategy, expected: Any, effect: float) -> float:
        """What an output may be off; classes and other integers jump when what they are computed from is rounded."""
        if strategy.exact:
            return 0.0
        if not isinstance(expected, np.ndarray) or expected.dtype.kind != "f":
            return float("inf")
        limit = 1e-3 * float(np.abs(expected).max(initial=0))
        return min(limit, 0.1 * effect) if effect > 0 else limit


def _differences(found: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]) -> list[float]:
    """The largest difference in each output; infinite if the shapes differ."""
    return [_difference(one, other) for one, other in zip(found, expected, strict=True)]


def _difference(found: Any, expected: Any) -> float:
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiub":
        return 0.0  # text and sequences are not compared
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found.astype(np.float64) - expected).max(initial=0))
