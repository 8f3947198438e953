"""The rivals on the streams: whether an earlier run's answers still hold, and what each method costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import benchmarks.rival_models
import benchmarks.rivals
from benchmarks.memory import can_measure
from benchmarks.protocols import Stream, frames_of
from benchmarks.rival_models import RivalModels
from benchmarks.rivals import COMPARED, RIVALS, make_rival, measure_memory, rival_methods, time_methods
from benchmarks.streams import Method, Ours, as_input, digest_of_files
from edge.bundle import Bundle
from oracle.errors import InputError


class StreamRivals:
    """The rivals whose models are in a folder.

    Args:
        bundle: whose model they start from.
        work: the folder that `RivalModels.train_all` trained into.

    Raises:
        InputError: if there is no such folder, or a model is not trained yet.
    """

    def __init__(self, bundle: Bundle, work: Path) -> None:
        if not work.is_dir():
            raise InputError(f"no folder {work}; give the one that the rivals' models were trained into")
        self._bundle, self._work = bundle, work
        self.methods: list[Method] = list(rival_methods(bundle, work))

    def identity(self) -> str:
        """One SHA-256 of their source code and weights."""
        code = [Path(module.__file__ or "") for module in (benchmarks.rivals, benchmarks.rival_models)]
        models = RivalModels(self._bundle, None, self._work)
        return digest_of_files([*code, *sorted(models.folder.glob("*.pt"))])

    def cost(self, stream: Stream, pixels: Tensor, batches: Sequence[int], threads: int | None) -> list[dict[str, Any]]:
        """Time of our methods and the rivals in one engine, Torch, and memory of all but ours.

        Args:
            stream: frames of all types are taken from it.
            pixels: uint8 (M, 3, H, W), RGB, the clean images.
            batches: frames that they are given at once; ours take them one by one all the same.
            threads: of all methods; None leaves it as it is.

        Returns:
            A row a (method, batch): `ms` per frame, its `ratio` to `std` with the 95 % interval `low`, `high` (see
            `time_methods`); `held`, `peak`, `carried` bytes (see `RivalMemory`) where they can be measured.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        count = 8 * max(batches)
        chosen = np.linspace(0, len(stream) - 1, count).astype(np.int64)
        part = Stream("", *(getattr(stream, key)[chosen] for key in ("image", "type", "severity", "seed", "cut")))
        x = as_input(frames_of(part, pixels, 0, count))
        models = RivalModels(self._bundle, None, self._work)
        patched = self._bundle.model("torch", provider="cpu", threads=threads)
        observer = self._bundle.oracle(threads=threads)
        others = (*COMPARED, *RIVALS)
        make: dict[str, Callable[[], Method]] = {
            name: partial(make_rival, name, self._bundle, models) for name in others
        }
        make |= {name: partial(Ours, name, self._bundle, patched, observer) for name in ("frame", "trained")}
        rows = []
        for batch in batches:
            for name, times in time_methods(make, x, part.type, part.severity, batch).items():
                row = {"method": name, "batch": batch, **times}
                if name in others and can_measure():
                    row |= asdict(measure_memory(name, self._bundle, self._work, batch))
                rows.append(row)
        return rows
