"""How `rws bench latency` measures."""

from dataclasses import dataclass

import torch

from rws.benchmarks.latency.engines import ENGINES, default_engines
from rws.errors import InputError, check_known


@dataclass(frozen=True)
class LatencyOptions:
    """How to measure; raise InputError if an engine is unknown or the device unavailable."""

    engines: tuple[str, ...] = ()  # next to `untouched`; empty: all that the device can run
    threads: tuple[int, ...] = (1,)  # thread counts, measured one after another
    device: str = "cpu"
    rounds: int = 5  # blocks of each case in a repeat
    # How often everything is rebuilt. With 3 the intervals cover 84 % if two builds differ as much as two rounds do,
    # with 10 they cover 95 %.
    repeats: int = 8
    duration: float = 0.0  # seconds of sustained load for each model and thread count
    source: str | None = None  # as for `open_source`, at least 40 frames; None: a video of the demo's frames
    seed: int = 0

    def __post_init__(self) -> None:
        check_known("strategy", self.engines, ENGINES)
        if self.device not in ("cpu", "cuda"):
            raise InputError(f"device is {self.device!r}, expected cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device cuda: Torch finds no GPU here; run this where there is one, with a CUDA build")

    @property
    def compared(self) -> tuple[str, ...]:
        """The engines to measure, without `untouched`."""
        named = self.engines or default_engines(self.device)
        return tuple(dict.fromkeys(name for name in named if name != "untouched"))
