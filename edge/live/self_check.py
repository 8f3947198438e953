"""Does a weight update strategy give what a session gives that was built from a file with the same weights?"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rws.edge.live.arena import perturbed
from rws.edge.live.sessions import CPU, Feeds, is_float
from rws.edge.live.strategies.base import PatchTarget, WeightUpdateStrategy
from rws.edge.onnx.graph import replaced_tensors
from rws.errors import StrategyUnavailableError


class SelfCheck:
    """Compares strategies with sessions built from files: the same outputs for the same weights, clean and changed.

    Each patched tensor is overwritten; `clean` are the clean outputs. An exact strategy must give them bit for bit.
    """

    def __init__(self, target: PatchTarget, feeds: Feeds, clean: Sequence[Any]) -> None:
        self.target, self._feeds, self._clean = target, dict(feeds), clean
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
                if not _differences(run(), before).any():
                    raise StrategyUnavailableError(f"changes of {name!r} do not reach the output")
        strategy.arena.overwrite(self._perturbed)
        found = run()
        strategy.arena.reset()
        after = run()
        effects = _differences(self._expected, self._clean)
        if not (effects > 0).any():
            raise StrategyUnavailableError("changed weights do not change the output")
        limits = np.zeros(len(effects)) if strategy.exact else self._limits(effects)
        errors = np.maximum(_differences(found, self._expected), _differences(before, self._clean))
        for error, limit in zip(errors, limits, strict=True):
            if not error <= limit:
                fault = f"{error:.1e} off, allowed {limit:.1e}"
                raise StrategyUnavailableError(f"changed weights give outputs that are {fault}")
        on_cpu = self.target.maker.providers[0] == CPU
        if not (_differences(before, after) <= (0 if on_cpu else limits)).all():
            raise StrategyUnavailableError("clean weights do not give the clean output again")

    def cost(self, strategy: WeightUpdateStrategy, runs: int = 11) -> tuple[float, float]:
        """Return a run's time in times of the untouched session's, and the ms of a change of mix: medians."""
        untouched = self.target.maker.session(self.target.model)
        run, plain_run = partial(strategy.run, None, self._feeds), partial(untouched.run, None, self._feeds)
        durations = []
        for _ in range(1 + runs):
            marks = [time.perf_counter()]
            for step in (plain_run, strategy.arena.reset, run):
                step()
                marks.append(time.perf_counter())
            durations.append(np.diff(marks))
        plain, change, patched = np.array(durations[1:]).T
        return float(np.median(patched / plain)), float(np.median(change) * 1e3)

    def _limits(self, effects: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the tolerance per output: below the error of a stale tensor. Integers jump when they are rounded."""
        sizes = [float(np.abs(output).max(initial=0)) if is_float(output) else np.inf for output in self._expected]
        limits = np.minimum(1e-3 * np.array(sizes), np.where(effects > 0, 0.1 * effects, np.inf))
        return np.where(np.isinf(sizes), np.inf, limits)


def _differences(found: Sequence[Any], expected: Sequence[Any]) -> NDArray[np.float64]:
    """Return the largest difference per output; infinite if shapes differ, 0 for an output without numbers."""
    differences = np.zeros(len(found))
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        if isinstance(one, np.ndarray) and one.dtype.kind in "fiub":
            same = one.shape == other.shape
            differences[index] = np.abs(one.astype(np.float64) - other).max(initial=0) if same else np.inf
    return differences
