"""A camera that follows a script and a clock that moves only during a wait: hours of faults in milliseconds."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np
import onnx.parser
from numpy.typing import NDArray

from rws.edge.faults.frames import scene
from rws.edge.live.base import PatchableModel
from rws.edge.sources.capture.process import CaptureProcess
from rws.edge.sources.capture.protocol import CaptureSettings, Ended, Opened
from rws.edge.sources.capture.source import CapturedSource
from rws.oracle.belief import Belief
from rws.records import Frame

Part = TypeVar("Part")
Step = tuple[str, Any]
"""`("open", "")` or `("open", why not)`; `("frame", image)`; `("reject", reason)`; `("wait", seconds)`;
`("end", reason)`; `("hang", None)`, until it is killed."""


def endless(network: bytes, side: int = 4096, products: int = 10_000) -> bytes:
    """Return a network that also multiplies matrices of `side` x `side`, one after the other: hours of work.

    Their size follows from computed values only, so that no check of the file finds it.
    """
    proto = onnx.load_model_from_string(network)
    output = proto.graph.output[0].name
    for node in proto.graph.node:
        node.output[:] = ["plain" if name == output else name for name in node.output]
    steps = [f"half = Constant <value_ints = [{side // 2}]> ()", "side = Add(half, half)"]
    steps += ["shape = Concat <axis = 0> (side, side)", "m0 = ConstantOfShape(shape)"]
    steps += [f"m{i + 1} = MatMul(m{i}, m0)" for i in range(products)]
    steps += [f"rest = ReduceMean <keepdims = 0> (m{products})", f"{output} = Add(plain, rest)"]
    proto.graph.node.extend(map(onnx.parser.parse_node, steps))
    return bytes(proto.SerializeToString())


class FakeTime:
    """Seconds that pass when they are waited for."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


Script = Iterable[Step] | Callable[[FakeTime], Iterable[Step]]


class ScriptedCapture(CaptureProcess):
    """Stands for the capture process, notes when it was asked to open, and hangs after its script's last step."""

    def __init__(self, script: Script, time: FakeTime) -> None:
        super().__init__(CaptureSettings("scripted", "camera", "scripted camera"))
        self.kills, self._silence = 0, 0.0
        self.opened_at: list[float] = []
        self._script, self._time = script, time
        self._steps = iter(() if callable(script) else script)

    def open(self) -> None:
        """Note when."""
        self.opened_at.append(self._time.now)
        if callable(self._script):
            self._steps = iter(self._script(self._time))

    def ask(self) -> None:
        """Do nothing: the script answers when it likes."""

    def answer(self, timeout: float) -> Opened | Frame | Ended | None:
        """Return the next step that is an answer, if it comes in time."""
        while self._silence <= timeout:
            self._time.sleep(self._silence)
            timeout -= self._silence
            self._silence = 0.0
            step: Step = next(self._steps, ("hang", None))
            kind, what = step
            if kind == "open":
                return Ended(what) if what else Opened(fps=30.0, length=None, finite=False)
            if kind == "end":
                return Ended(what)
            if kind == "frame":
                return Frame(self.counters.add("received"), what, self._time.now, self.settings.name)
            if kind == "reject":
                self.counters.add("received")
                self.counters.add(what)
            else:
                self._silence = float("inf") if kind == "hang" else what
        self._time.sleep(timeout)
        self._silence -= timeout
        return None

    def kill(self) -> None:
        """End a silence, as a new process does."""
        self.kills += 1
        self._silence = 0.0


def scripted(script: Script, retries: int | None = None) -> tuple[CapturedSource, ScriptedCapture, FakeTime]:
    """Return a live source that follows a script, its capture and its clock."""
    time = FakeTime()
    capture = ScriptedCapture(script, time)
    source = CapturedSource(capture.settings, retries=retries, sleep=time.sleep, capture=capture, jitter=lambda: 1.0)
    return source, capture, time


def images(count: int, start: int = 0, bad: bool = False) -> list[Step]:
    """Return different frames; `bad` ones have strong grey noise, so that the oracle patches the model."""
    noise = np.random.default_rng(0).normal(0, 60, (64, 64, 3)) if bad else 0.0
    scenes = (scene(64, 64, seed) for seed in range(start, start + count))
    return [("frame", np.clip(image + noise, 0, 255).astype(np.uint8)) for image in scenes]


def faulty(model: PatchableModel, fault: Callable[[], None]) -> PatchableModel:
    """Return the model with a fault that happens before each prediction."""

    class Faulty:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def predict(self, x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
            fault()
            return model.predict(x)

    return cast(PatchableModel, Faulty())


def poisoned(part: Part, good: int) -> Part:
    """Return a model or an oracle whose answer is NaN once, after its warm-up and `good` frames."""
    inner: Any = part
    factors = iter([1.0] * (1 + good) + [np.nan])

    class Poisoned:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def observe(self, x: NDArray[np.float32]) -> Belief:
            belief: Belief = inner.observe(x)
            return replace(belief, joint=belief.joint * np.float32(next(factors, 1.0)))

        def predict(self, x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
            factor = np.float32(next(factors, 1.0))
            return tuple(output * factor for output in inner.predict(x))

    return cast(Part, Poisoned())
