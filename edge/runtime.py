"""The frame loop: source → oracle → policy → patch → predict → sinks, one frame at a time.

The loop owns all I/O and time. It invents no frame, keeps none, and however it ends (end of the source, an exception
in any part, a caller who stops listening) the model is left with its clean weights. While a source is lost, the weights
are clean, too: what the oracle knew of the picture is out of date.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rws.edge.live.base import PatchableModel
from rws.edge.preprocess import preprocess
from rws.edge.sources.open import Source, open_source
from rws.errors import InputError
from rws.oracle.belief import Belief
from rws.oracle.policy import Policy
from rws.records import Frame

if TYPE_CHECKING:
    from typing_extensions import Self

    from rws.edge.bundle.bundle import Bundle

# A camera that is lost for less than this is back before its weather has changed.
REVERT_AFTER = 2.0
STAGES = ("read", "preprocess", "oracle", "policy", "patch", "predict")


class Observer(Protocol):
    """Says what corrupts a frame; `rws.oracle.classifier.Oracle` is one."""

    def observe(self, x: NDArray[np.float32]) -> Belief:
        """The belief about one frame, float32 (3, H, W), RGB, 0…1."""


class Filter(Protocol):
    """Smooths beliefs over time; `rws.oracle.temporal_filter.BeliefFilter` is one."""

    def update(self, belief: Belief) -> Belief:
        """The belief after this frame."""

    def reset(self) -> None:
        """Forget the past."""


class Sink(Protocol):
    """Takes each frame with its result; `rws.edge.sinks.files` has some."""

    def write(self, frame: Frame, result: Result) -> None:
        """Take one frame and what was found in it."""


@dataclass(frozen=True)
class Guess:
    """A predicted class: its name, its index in the bundle's classes, and its softmax probability, 0…1."""

    label: str
    class_index: int
    confidence: float


def _guess_json(guess: Guess | None) -> dict[str, Any] | None:
    return None if guess is None else {"label": guess.label, "confidence": round(guess.confidence, 4)}


@dataclass(frozen=True)
class Result:
    """What the runtime found in one frame.

    Args:
        index: the frame's number in its source.
        name: the frame's name.
        captured_at: when it was captured, seconds of the source's clock.
        age_ms: milliseconds from capture to this result.
        label: the name of the predicted class.
        class_index: its index in the bundle's classes.
        confidence: softmax probability of that class, 0…1.
        logits: float32, shape (K,).
        belief: what the oracle (and the temporal filter, if any) says of the frame.
        mix: the signatures in effect for this frame, {name: alpha}; {} is the clean model.
        changed: whether the weights were changed for this frame.
        times_ms: milliseconds of each stage in `STAGES`; the temporal filter counts as oracle.
        observed: whether the oracle looked at this frame; otherwise belief and mix are those of the frame before.
        unpatched: what the clean model says of the same frame; None where nobody asked.
        on_original: what the clean model says of the frame before it was corrupted on purpose; None where it was not.
    """

    index: int
    name: str
    captured_at: float
    age_ms: float
    label: str
    class_index: int
    confidence: float
    logits: NDArray[np.float32]
    belief: Belief
    mix: Mapping[str, float]
    changed: bool
    times_ms: Mapping[str, float]
    observed: bool = True
    unpatched: Guess | None = None
    on_original: Guess | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain types, ready for `json.dumps`: all but the logits, rounded to what is worth reading.

        In `belief`, `severity` is that of `type`; `expected_severity` is that of the whole belief, in which clean
        counts as 0.
        """
        pairs = zip(self.belief.names, self.belief.probability.tolist(), strict=True)
        return {
            "index": self.index,
            "name": self.name,
            "captured_at": round(self.captured_at, 6),
            "age_ms": round(self.age_ms, 3),
            "label": self.label,
            "class_index": self.class_index,
            "confidence": round(self.confidence, 4),
            "belief": {
                "type": self.belief.type,
                "severity": round(self.belief.type_severity, 3),
                "expected_severity": round(self.belief.expected_severity, 3),
                "probability": {name: round(p, 4) for name, p in pairs},
            },
            "mix": {name: round(alpha, 4) for name, alpha in self.mix.items()},
            "changed": self.changed,
            "observed": self.observed,
            "unpatched": _guess_json(self.unpatched),
            "on_original": _guess_json(self.on_original),
            "times_ms": {stage: round(ms, 4) for stage, ms in self.times_ms.items()},
        }


class Runtime:
    """A patchable model and the oracle that steers it. A context manager that leaves the weights clean.

    Args:
        model: the classifier whose shallow weights are patched.
        oracle: says what corrupts a frame.
        policy: answers a belief with a mix.
        filter: smooths the belief over consecutive frames; None treats every frame as independent of the others.
        input_size: the model's input (height, width), pixels.
        classes: the class names, in the order of the logits.
        clock: seconds, monotonic; the same clock must stamp the frames, or their age means nothing.

    Example:
        >>> with Runtime.from_bundle(Bundle.load()) as runtime:  # doctest: +SKIP
        ...     for result in runtime.stream("video.mp4"):
        ...         print(result.label, result.belief.type, result.mix)
    """

    def __init__(
        self,
        model: PatchableModel,
        oracle: Observer,
        policy: Policy,
        filter: Filter | None = None,
        *,
        input_size: tuple[int, int],
        classes: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.oracle = oracle
        self.policy = policy
        self.filter = filter
        self.input_size = input_size
        self.classes = tuple(classes)
        self._clock = clock
        self._seen: Result | None = None

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        backend: Literal["onnx", "torch"] = "onnx",
        threads: int | None = None,
        provider: str = "auto",
        way: str = "auto",
        independent: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> Self:
        """The runtime of a bundle.

        Args:
            bundle: a loaded bundle.
            backend: `onnx` or `torch`.
            threads: threads of model and oracle; None leaves the choice to the backend.
            provider, way: what runs the model, and how its weights are changed; see `Bundle.model`.
            independent: judge each frame alone, as befits a folder of images; otherwise the bundle's temporal filter
                and hysteresis are on.
            clock: seconds, monotonic.

        Raises:
            BundleError: if the provider or the way is not to be had here.
            MissingExtraError: if the backend is not installed.
        """
        return cls(
            bundle.model(backend, threads=threads, provider=provider, way=way),
            bundle.oracle(threads=threads),
            bundle.policy(independent=independent),
            None if independent else bundle.filter(),
            input_size=(bundle.manifest.input.height, bundle.manifest.input.width),
            classes=bundle.manifest.classes,
            clock=clock,
        )

    def stream(
        self,
        source: Source | Iterable[Frame] | str | int | os.PathLike[str],
        sinks: Sequence[Sink] = (),
        *,
        change: Callable[[Frame], Frame] = lambda frame: frame,
        oracle_every: int = 1,
        compare: Callable[[], bool] = lambda: False,
        renew: Callable[[], Runtime | None] = lambda: None,
        on_idle: Callable[[float], None] = lambda seconds: None,
    ) -> Generator[Result, None, None]:
        """Classify the frames of a source one by one, as the caller asks for them.

        Args:
            source: frames, or anything that `open_source` takes; what is opened here is closed here.
            sinks: each gets every frame with its result before the result is yielded.
            change: applied to each frame before all else, e.g. to corrupt it on purpose.
            oracle_every: the oracle looks at every n-th frame only; the mix stays until it looks again.
            compare: asked at each frame; whether the clean model shall classify it as well (`Result.unpatched`).
            renew: asked before each frame, and while none comes; a runtime whose model, oracle, policy and filter take
                over from here (see `rws.edge.bundle.watcher`). It should be warm.
            on_idle: called about four times a second while no frame comes, with the seconds since the last one.

        Yields:
            One result for each frame that the source gives, in order.

        Raises:
            SourceError: if the source cannot be opened or is lost for good.
            InputError: if a frame is no uint8 (H, W, 3), or the model does not give one logit a class.
        """
        if oracle_every < 1:
            raise InputError(f"oracle_every is {oracle_every}, expected at least 1")
        with ExitStack() as stack:
            if isinstance(source, (str, int, os.PathLike)):
                source = stack.enter_context(open_source(source, self._clock))
            stack.callback(self.close)
            self._forget()
            self.warm_up()

            def idle(seconds: float) -> None:
                self._adopt(renew())
                if seconds >= REVERT_AFTER and isinstance(source, Source) and source.state != "running":
                    self.close()
                    self._forget()
                on_idle(seconds)

            if isinstance(source, Source):
                source.on_idle = idle
            frames = iter(source)
            for count in itertools.count():
                started = self._clock()
                frame = next(frames, None)
                if frame is None:
                    return
                read_ms = (self._clock() - started) * 1e3
                frame = change(frame)
                self._adopt(renew())
                result = self._step(frame, read_ms, observe=count % oracle_every == 0, compare=compare())
                for sink in sinks:
                    sink.write(frame, result)
                yield result

    def classify(self, image: NDArray[np.uint8], name: str = "image") -> Result:
        """Classify one image on its own; a temporal filter starts anew, and the weights are clean afterwards.

        Args:
            image: uint8, shape (H, W, 3), RGB, any size.
            name: what the result calls it.

        Raises:
            InputError: if the image has another shape or dtype.
        """
        try:
            self._forget()
            return self._step(Frame(0, image, self._clock(), name), read_ms=0.0)
        finally:
            self.close()

    def warm_up(self) -> None:
        """Run oracle and model once: the first run allocates, and a real frame should not pay (and report) that.

        Raises:
            InputError: if the model does not give one logit a class.
        """
        x = np.zeros((3, *self.input_size), np.float32)
        self.oracle.observe(x)
        shape = self.model.predict(x).shape
        if shape != (1, len(self.classes)):
            raise InputError(f"model: gives logits of shape {shape}, expected (1, {len(self.classes)}), one a class")

    def close(self) -> None:
        """Give the model its clean weights back."""
        self.model.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _step(self, frame: Frame, read_ms: float, observe: bool = True, compare: bool = False) -> Result:
        seen = None if observe else self._seen
        marks = [self._clock()]
        x = preprocess(frame.image, *self.input_size)
        marks.append(self._clock())
        belief = self._observe(x) if seen is None else seen.belief
        marks.append(self._clock())
        mix = self.policy.choose(belief) if seen is None else seen.mix
        marks.append(self._clock())
        changed = self.model.apply(mix)
        marks.append(self._clock())
        logits = self.model.predict(x)[0]
        marks.append(self._clock())
        durations = (read_ms, *((after - before) * 1e3 for before, after in pairwise(marks)))
        guess = self._guess(logits)
        self._seen = Result(
            index=frame.index,
            name=frame.name,
            captured_at=frame.captured_at,
            age_ms=(marks[-1] - frame.captured_at) * 1e3,
            label=guess.label,
            class_index=guess.class_index,
            confidence=guess.confidence,
            logits=logits,
            belief=belief,
            mix=dict(mix),
            changed=changed,
            times_ms=dict(zip(STAGES, durations, strict=True)),
            observed=seen is None,
            **self._compared(frame, x, mix, guess, compare),
        )
        return self._seen

    def _observe(self, x: NDArray[np.float32]) -> Belief:
        if self.filter is None:
            self.policy.reset()
            return self.oracle.observe(x)
        return self.filter.update(self.oracle.observe(x))

    def _guess(self, logits: NDArray[np.float32]) -> Guess:
        index = int(logits.argmax())
        return Guess(self.classes[index], index, float(1 / np.exp(logits - logits[index]).sum()))

    def _compared(
        self, frame: Frame, x: NDArray[np.float32], mix: Mapping[str, float], patched: Guess, compare: bool
    ) -> dict[str, Guess]:
        """What the clean model says of the frame, where somebody wants to know, and of what it was before."""
        if not compare and frame.original is None:
            return {}
        self.model.apply({})
        guesses = {"unpatched": self._guess(self.model.predict(x)[0]) if mix else patched}
        if frame.original is not None:
            original = preprocess(frame.original, *self.input_size)
            guesses["on_original"] = self._guess(self.model.predict(original)[0])
        self.model.apply(mix)
        return guesses

    def _adopt(self, other: Runtime | None) -> None:
        """Go on with another runtime's parts; this one's model is left clean."""
        if other is None:
            return
        self.close()
        self.model, self.oracle, self.policy, self.filter = other.model, other.oracle, other.policy, other.filter
        self.input_size, self.classes = other.input_size, other.classes
        self._forget()

    def _forget(self) -> None:
        self._seen = None
        self.policy.reset()
        if self.filter is not None:
            self.filter.reset()
