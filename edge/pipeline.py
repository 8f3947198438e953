"""The stages of one frame: model input → oracle → policy → patch → predict → task."""

import math
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.live.base import PatchableModel
from rws.edge.preprocess import InputSpec, Placement, View, preprocess
from rws.edge.tasks.annotate import annotate
from rws.edge.tasks.base import Task
from rws.edge.tasks.classify import Classification
from rws.errors import FrameError, InputError, RwsError, first_line, from_library
from rws.oracle.belief import Belief, CorruptionOracle
from rws.oracle.policy import NO_LIMITS, STEP, PatchLimits, Policy
from rws.oracle.temporal_filter import BeliefFilter
from rws.records import Clock, Frame, Mix, Prediction, WallClock, utc
from rws.text import shown

LATEST = 1e15  # seconds: no clock that stamps frames is that late
STAGES = ("read", "preprocess", "oracle", "policy", "patch", "predict")


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What the pipeline found in one frame; `output` is what its task reads, of a classifier a `Classification`."""

    index: int  # of the frame in its source
    name: str  # of the frame, as it may be shown: printable, and of a URL scheme and host only
    captured_at: float  # seconds of the source's clock
    captured_time: float  # the same moment by the calendar, seconds since 1970, UTC
    age_ms: float  # from capture to this result
    output: Any
    belief: Belief  # of the oracle, and of the temporal filter, if any
    mix: Mapping[str, float]  # the signatures in effect for this frame, {name: alpha}; {} is the clean model
    changed: bool  # whether the weights were changed for this frame
    times_ms: Mapping[str, float]  # of each stage in `STAGES`; the temporal filter counts as oracle
    task: Task[Any]  # draws the output and puts it into words and plain types
    frame_ref: weakref.ref[Frame]  # weak, so that results that are kept hold no images
    observed: bool = True  # whether the oracle looked at this frame; otherwise belief and mix are the last frame's
    unpatched: Any = None  # the clean model's output for the same frame; None if not asked for
    on_original: Any = None  # its output for the frame before it was corrupted on purpose, if it was
    media_time: float | None = None  # of the frame, seconds of its source's own time line; None: it has none
    seen: tuple[int, int, int, int] | None = None  # by the model, of the frame: see `Placement.seen`
    camera: str = ""  # its name, if a run has several

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", shown(self.name))

    @cached_property
    def summary(self) -> tuple[str, float | None]:
        """The output in a few words, of a classifier its best class; and how sure the model is of it, 0…1, or None."""
        return self.task.summary(self.output)

    @property
    def top(self) -> tuple[Prediction, ...]:
        """The most probable classes with their softmax probabilities, the best first; of a classifier only."""
        return self._classification.top

    @property
    def label(self) -> str:
        """The name of the predicted class; of a classifier only."""
        return self._classification.label

    @property
    def class_index(self) -> int:
        """The index of the predicted class in the bundle's classes; of a classifier only."""
        return self._classification.class_index

    @property
    def confidence(self) -> float:
        """The softmax probability of the predicted class, 0…1; of a classifier only."""
        return self._classification.confidence

    @property
    def logits(self) -> NDArray[np.float32]:
        """The logits, float32, shape (K,); of a classifier only."""
        return self._classification.logits

    @property
    def _classification(self) -> Classification:
        if isinstance(self.output, Classification):
            return self.output
        raise InputError(
            f"a result of the task {self.task.name} has no single class; read `result.output` or `result.summary`"
        )

    def __repr__(self) -> str:
        patch = f"patch {describe_mix(self.mix)}" if self.mix else "no patch"
        return (
            f"Result(#{self.index} {self.name}: {self.describe(self.output)}, {self.belief.type} "
            f"{self.belief.probability.max():.0%}, {patch}, {sum(self.times_ms.values()):.1f} ms)"
        )

    def describe(self, output: Any) -> str:
        """Return an output of this task, such as `unpatched`, in words, e.g. `dog 87%`."""
        text, confidence = self.task.summary(output)
        return text if confidence is None else f"{text} {confidence:.0%}"

    def plot(self) -> NDArray[np.uint8]:
        """Return the annotated frame, uint8 (h, w, 3), RGB; an `InputError` if a newer frame has taken its place."""
        if frame := self.frame_ref():
            return annotate(frame.image, self, frame.original)
        raise InputError(
            f"{self.name}: frame {self.index} is no longer in memory; call plot() before the next frame is read"
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain types, ready for `json.dumps`: what the task gives, and the summary as `label`, `confidence`."""
        belief = self.belief
        pairs = zip(belief.names, belief.probability.tolist(), strict=True)
        return {
            "schema": "run-result/1",
            "camera": self.camera or None,
            "index": self.index,
            "name": self.name,
            "captured_at": utc(self.captured_time),
            "captured_monotonic_s": round(self.captured_at, 6),
            "age_ms": round(self.age_ms, 3),
            **self.task.to_dict(self.output),
            **self._summary_record(self.output),
            "belief": {
                "type": belief.type,
                "severity": round(belief.type_severity, 3),
                "expected_severity": round(belief.expected_severity, 3),
                "probability": {name: round(p, 4) for name, p in pairs},
            },
            "mix": {name: round(alpha, 4) for name, alpha in self.mix.items()},
            "changed": self.changed,
            "observed": self.observed,
            "unpatched": None if self.unpatched is None else self._summary_record(self.unpatched),
            "on_original": None if self.on_original is None else self._summary_record(self.on_original),
            "times_ms": {stage: round(ms, 4) for stage, ms in self.times_ms.items()},
            "media_time_s": None if self.media_time is None else round(self.media_time, 6),
            "seen": None if self.seen is None else list(self.seen),
        }

    def _summary_record(self, output: Any) -> dict[str, object]:
        text, confidence = self.task.summary(output)
        return {"label": text, "confidence": None if confidence is None else round(confidence, 4)}


@dataclass(frozen=True, eq=False)
class Decision:
    """What was decided about a frame before the model sees it: see `Pipeline.decide`."""

    frame: Frame
    x: NDArray[Any]  # the model's input
    placement: Placement
    belief: Belief
    mix: Mix
    observed: bool
    times_ms: tuple[float, ...]  # of the stages so far


@dataclass(frozen=True)
class Pipeline:
    """A patchable model and the oracle that steers it: from a frame to a result.

    Model, filter and policy remember the frames before, so a pipeline serves one stream and one thread at a time;
    `sharing` makes one for another stream of the same thread.
    """

    model: PatchableModel
    oracle: CorruptionOracle
    policy: Policy
    filter: BeliefFilter | None  # None treats every frame as independent of the others
    task: Task[Any]
    input: InputSpec  # of the model
    name: str = ""  # of the bundle
    alpha_limit: float = math.inf  # of the mixes that the policy may choose: no strength is larger
    sees: View | None = None  # the oracle of a frame; None: what the model sees

    @classmethod
    def from_bundle(cls, bundle: Bundle, options: ModelOptions | None = None, independent: bool = False) -> "Pipeline":
        """Build the pipeline of a bundle, which is released.

        Args:
            bundle: a loaded one; a `BundleError` or `MissingExtraError` if it cannot run with these options here.
            options: how its model runs; its threads hold for the oracle, too.
            independent: observe each frame alone; otherwise the bundle's temporal filter and hysteresis are on.
        """
        options, manifest = options or ModelOptions(), bundle.manifest
        model, oracle = bundle.model(options), bundle.oracle(threads=options.threads)
        policy, smoothing = bundle.policy(independent=independent), None if independent else bundle.filter()
        limit = float(np.abs(bundle.table.alpha).max()) + STEP  # a policy may round up
        bundle.release()
        return cls(model, oracle, policy, smoothing, bundle.task(), manifest.input, manifest.name, limit, manifest.view)

    def sharing(self, bundle: Bundle, independent: bool = False) -> "Pipeline":
        """Return a pipeline of the same model and oracle for one more stream, with a filter and a policy of its bundle.

        `independent` as in `from_bundle`. The model has the weights of whatever frame came last, so two of these
        pipelines take turns frame by frame, and never run at once.
        """
        smoothing = None if independent else bundle.filter()
        return replace(self, policy=bundle.policy(independent=independent), filter=smoothing)

    def step(
        self,
        frame: Frame,
        held: Result | None = None,
        *,
        limits: PatchLimits = NO_LIMITS,
        read_ms: float = 0.0,
        clock: Clock = time.monotonic,
        wall_clock: WallClock = time.time,
    ) -> Result:
        """Patch the model for a frame and let it predict: `decide`, then `answer`, which say what is not said here."""
        decision = self.decide(frame, held, limits=limits, read_ms=read_ms, clock=clock)
        return self.answer(decision, clock=clock, wall_clock=wall_clock)

    def decide(
        self,
        frame: Frame,
        held: Result | None = None,
        *,
        limits: PatchLimits = NO_LIMITS,
        read_ms: float = 0.0,
        clock: Clock = time.monotonic,
    ) -> Decision:
        """Ask oracle and policy about a frame; a `FrameError` if no part of that went well: call `reset`.

        Args:
            frame: uint8 (H, W, 3), RGB, any size, with a finite time; otherwise an `InputError`.
            held: keep the belief and the mix of this result, and do not ask the oracle; None asks it.
            limits: when the policy may patch.
            read_ms: what reading the frame took.
            clock: the one that stamps the frames.
        """
        if not abs(frame.captured_at) < LATEST:  # NaN is not, either
            raise InputError(f"frame {frame.index}: was captured at {frame.captured_at}, expected seconds of the clock")
        marks = [clock()]
        x, placement = preprocess(frame.image, self.input)
        view = x if self._oracle_sees_input or held is not None else self._view.take(frame.image)
        marks.append(clock())
        with _Stage("bad_belief") as stage:
            belief = self._observe(view, frame.media_time) if held is None else held.belief
            marks.append(clock())
            stage.failure = "bad_mix"
            mix = dict(self._choose(belief, limits) if held is None else held.mix)
            marks.append(clock())
        return Decision(frame, x, placement, belief, mix, held is None, (read_ms, *_durations(marks)))

    def answer(self, decision: Decision, *, clock: Clock = time.monotonic, wall_clock: WallClock = time.time) -> Result:
        """Patch the model as decided and let it predict; a `FrameError` if that did not go well: call `reset`.

        `wall_clock` is read once, for the time of day of the capture.
        """
        frame, marks = decision.frame, [clock()]
        with _Stage("bad_mix") as stage:
            changed = self.model.apply(decision.mix)
            marks.append(clock())
            stage.failure = "bad_output"
            outputs = self.model.predict(decision.x)
            marks.append(clock())
            output = self.task.read(outputs, decision.placement)
        age = marks[-1] - frame.captured_at
        return Result(
            index=frame.index,
            name=frame.name,
            captured_at=frame.captured_at,
            captured_time=wall_clock() - age,
            age_ms=age * 1e3,
            output=output,
            belief=decision.belief,
            mix=decision.mix,
            changed=changed,
            times_ms=dict(zip(STAGES, (*decision.times_ms, *_durations(marks)), strict=True)),
            task=self.task,
            frame_ref=weakref.ref(frame),
            observed=decision.observed,
            media_time=frame.media_time,
            seen=decision.placement.seen,
        )

    def compare(self, frame: Frame, result: Result) -> Result:
        """Add to a frame's result what the clean model says of the frame, and of what it was before its corruption.

        Raises as `step` does.
        """
        with _Stage("bad_output"):
            self.model.apply({})
            unpatched = self._predict(frame.image) if result.mix else result.output
            on_original = None if frame.original is None else self._predict(frame.original)
            self.model.apply(result.mix)
        return replace(result, unpatched=unpatched, on_original=on_original)

    def warm_up(self) -> None:
        """Run all once, since the first run allocates; an `InputError` if the task cannot read the model's output."""
        with suppress(FrameError), _Stage("bad_belief"):  # what it says of a black image matters to nobody
            self.oracle.observe(np.zeros(self._view.shape, self._view.dtype))
        outputs = self.model.predict(np.zeros(self.input.shape, self.input.dtype))
        self.task.check([output.shape for output in outputs])

    def reset(self) -> None:
        """Give the model its clean weights back, and forget the frames before."""
        self.model.reset()
        self.policy.reset()
        if self.filter is not None:
            self.filter.reset()

    @cached_property
    def _view(self) -> View:
        return self.sees or self.input.view

    @cached_property
    def _oracle_sees_input(self) -> bool:
        return self.input == self._view

    def _observe(self, x: NDArray[Any], media_time: float | None) -> Belief:
        if self.filter is None:
            self.policy.reset()
            return self.oracle.observe(x)
        return self.filter.update(self.oracle.observe(x), media_time)

    def _choose(self, belief: Belief, limits: PatchLimits) -> Mix:
        if not limits.allow(belief):
            self.policy.reset()
            return {}
        mix = self.policy.choose(belief)
        if not all(abs(alpha) <= self.alpha_limit for alpha in mix.values()):
            raise InputError(f"policy: chose {describe_mix(mix)}, expected strengths up to {self.alpha_limit:g}")
        return mix

    def _predict(self, image: NDArray[np.uint8]) -> Any:
        x, placement = preprocess(image, self.input)
        return self.task.read(self.model.predict(x), placement)


def _durations(marks: Sequence[float]) -> list[float]:
    return [(after - before) * 1e3 for before, after in pairwise(marks)]


class _Stage:
    """Turns what a part of the pipeline cannot do into a `FrameError` with `failure` as its reason; a bug stays one."""

    def __init__(self, failure: str) -> None:
        self.failure = failure

    def __enter__(self) -> "_Stage":
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, (RwsError, RuntimeError)) or (error is not None and from_library(error)):
            raise FrameError(self.failure, first_line(error)) from error


def describe_mix(mix: Mapping[str, float]) -> str:
    """Return a mix in one line, e.g. `fog 0.80 + snow 0.20`; `clean weights` if it is empty."""
    return " + ".join(f"{name} {alpha:.2f}" for name, alpha in mix.items()) or "clean weights"
