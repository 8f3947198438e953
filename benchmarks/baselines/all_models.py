"""20 whole models, of which the ground-truth type chooses one."""

import hashlib
from collections.abc import Sequence

import numpy as np
from torch import nn

from rws.benchmarks.baselines.base import Fixed
from rws.benchmarks.streams.protocols import Floats, Ints
from rws.errors import InputError
from rws.training.corruptions import CORRUPTIONS


class AllModels:
    """A whole model for clean frames, and one for each of `CORRUPTIONS`; the ground-truth type chooses."""

    def __init__(self, clean: nn.Module, robust: Sequence[nn.Module]) -> None:
        if len(robust) != len(CORRUPTIONS):
            raise InputError(f"expected a model for each of the {len(CORRUPTIONS)} corruptions, got {len(robust)}")
        self.name = "all_models"
        self._models = [Fixed(self.name, module) for module in (clean, *robust)]
        self.carried_bytes = sum(model.carried_bytes for model in self._models)
        self.identity = hashlib.sha256("".join(model.identity for model in self._models).encode()).hexdigest()

    def reset(self) -> None:
        """Do nothing: no state is kept."""

    def classify(self, x: Floats, types: Ints, severities: Floats) -> Ints:
        """See `Method`; each frame goes through the model of its type."""
        classes = np.empty(len(x), np.int64)
        for kind in np.unique(types):
            own = np.flatnonzero(types == kind)
            classes[own] = self._models[kind + 1].classify(x[own], types[own], severities[own])
        return classes
