"""How `rws bench latency` measures."""

from dataclasses import dataclass

import torch

from rws.benchmarks.latency.engines import ENGINES, default_engines
from rws.errors import InputError


@dataclass(frozen=True)
class LatencyOptions:
    """How to measure.

    Args:
        engines: which of `ENGINES`, beside `untouched`; empty: all that the device could have.
        threads: thread counts to measure with, one after another.
        rounds: how often each case comes round in a repeat.
        repeats: how often everything is rebuilt; with 3 the intervals cover 84 % if two builds differ as much as two
            rounds do, with 10 they cover 95 %.
        duration: seconds of sustained load for each model and thread count; 0 for none.
        source: what the whole frame reads, as `open_source` takes it, of 40 frames or more; None: a video of 640 x 480
            pixels that is made of the demo's frames.

    Raises:
        InputError: if an engine is unknown or the device unavailable.
    """

    engines: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)
    device: str = "cpu"
    rounds: int = 5
    repeats: int = 8
    duration: float = 0.0
    source: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.engines if name not in ENGINES]
        if unknown:
            raise InputError(f"way {unknown[0]!r} is unknown; known: {', '.join(ENGINES)}")
        if self.device not in ("cpu", "cuda"):
            raise InputError(f"device is {self.device!r}, expected cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device cuda: Torch finds no GPU here; run this where there is one, with a CUDA build")

    @property
    def compared(self) -> tuple[str, ...]:
        """The engines to be measured, without `untouched`."""
        named = self.engines or default_engines(self.device)
        return tuple(dict.fromkeys(name for name in named if name != "untouched"))
