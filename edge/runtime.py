"""The frame loop: a source's frames through a pipeline into the sinks, one at a time.

It invents no frame and keeps none but the newest. After it, and while a source is lost, the weights are clean.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.common.closing import Closing
from rws.edge.pipeline import Decision, Pipeline, Result
from rws.edge.preprocess import Colour, to_rgb
from rws.edge.sinks.base import Sink
from rws.edge.sources.base import Source
from rws.edge.sources.open import open_source
from rws.errors import FrameError, InputError
from rws.oracle.policy import NO_LIMITS
from rws.records import Clock, Frame, Mix, WallClock

log = logging.getLogger(__name__)

Stream = Source | Iterable[Frame | None] | str | int | os.PathLike[str]


class Runtime(Closing):
    """The frame loop around a pipeline, for one thread. A context manager that leaves the weights clean.

    For a source, iterate over `stream`; if the loop is yours (as in a ROS callback), call `step` for each image.

    Args:
        oracle_every: the oracle looks at every n-th frame only (n ≥ 1); the mix stays until it looks again.
        camera: what its results call the camera, if there are several.
        clock: the same clock must stamp the frames, or their age means nothing.
        wall_clock: for the time of day in the results; a jump of it disturbs nothing else.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        oracle_every: int = 1,
        camera: str = "",
        clock: Clock = time.monotonic,
        wall_clock: WallClock = time.time,
    ) -> None:
        if oracle_every < 1:
            raise InputError(f"oracle_every is {oracle_every}, expected at least 1")
        self.compare = False  # whether the clean model runs on each frame as well (`Result.unpatched`)
        self.rejections: Counter[str] = Counter()  # frames of this stream without a result, by `FrameError.reason`
        self.limits = NO_LIMITS  # when the policy may patch; assign others at any time between two frames
        self.clock, self.wall_clock = clock, wall_clock
        self._pipeline, self._oracle_every, self._count = pipeline, oracle_every, 0
        self._camera, self._mix = camera, Mix()  # in effect for the last frame
        self._last: Result | None = None
        self._limited = NO_LIMITS  # the limits of the last frame
        self._frame: Frame | None = None

    @classmethod
    def from_bundle(cls, bundle: Bundle, options: ModelOptions | None = None, independent: bool = False) -> "Runtime":
        """Build the runtime of a bundle; arguments and errors are those of `Pipeline.from_bundle`."""
        return cls(Pipeline.from_bundle(bundle, options, independent))

    @property
    def pipeline(self) -> Pipeline:
        """What the frames go through. Assign another one at any time between two frames; it should be warm."""
        return self._pipeline

    @pipeline.setter
    def pipeline(self, pipeline: Pipeline) -> None:
        self.reset()
        self._pipeline = pipeline

    def stream(self, source: Stream, sinks: Sequence[Sink] = ()) -> Generator[Result, None, None]:
        """Process the frames of a source one by one, in order, as the caller asks for them.

        Args:
            source: frames, or anything that `open_source` takes; what is opened here is closed here.
            sinks: each gets every frame with its result before the result is yielded. An exception of one ends the
                stream and reaches the caller; a `BackgroundSink` can keep it from there.

        A frame for which oracle, policy or model fails has no result: it is counted in `rejections`, belief and
        weights start again, and the next frame follows. A `SourceError` if the source cannot be opened or is lost; an
        `InputError` if a frame is not uint8 (H, W, 3).
        """
        with closing(self.results(source, sinks)) as results:
            yield from (result for result in results if isinstance(result, Result))

    def results(
        self, source: Stream, sinks: Sequence[Sink] = (), changes: Sequence[Callable[[Frame], Frame]] = ()
    ) -> Generator[Result | FrameError | None, None, None]:
        """Process frames as `stream` does, with `changes` to each first.

        Yields the `FrameError` of a frame without a result, and None each 0.25 s without a frame.
        """
        with ExitStack() as stack:
            if isinstance(source, (str, int, os.PathLike)):
                source = stack.enter_context(open_source(source, self.clock))
            stack.callback(self.reset)
            self.reset()
            self.pipeline.warm_up()
            self._count = 0
            self.rejections.clear()
            started = self.clock()
            for frame in source.frames() if isinstance(source, Source) else source:
                if frame is None:
                    if isinstance(source, Source) and source.gone and self._last is not None:
                        self.reset()
                    yield None
                    continue
                read_ms = (self.clock() - started) * 1e3
                for change in changes:
                    frame = change(frame)
                try:
                    result = self.answer(self.decide(frame, read_ms))
                except FrameError as error:
                    yield error
                else:
                    for sink in sinks:
                        sink.write(frame, result)
                    yield result
                started = self.clock()

    def step(
        self, image: NDArray[np.uint8], colour: Colour, *, name: str = "image", captured_at: float | None = None
    ) -> Result:
        """Process the next image of a stream; belief and weights are kept for the one after it.

        A `FrameError` if oracle, policy or model fails on it; belief and weights start again, and the next call works
        as after `reset`.

        Args:
            image: uint8, shape (H, W, 3), any size; an `InputError` if it is anything else.
            colour: the order of its channels, "rgb" or "bgr" (OpenCV's).
            name: what the result calls it.
            captured_at: when it was captured, seconds of `clock`; None for now.
        """
        rgb = to_rgb(image, colour)
        if self._count == 0:
            self.pipeline.warm_up()
        frame = Frame(self._count, rgb, self.clock() if captured_at is None else captured_at, name)
        return self.answer(self.decide(frame))

    def classify(self, image: NDArray[np.uint8], colour: Colour, name: str = "image") -> Result:
        """Process one image on its own: nothing is kept from before or for later; as `step` otherwise."""
        self.reset()
        try:
            return self.step(image, colour, name=name)
        finally:
            self.reset()

    def reset(self) -> None:
        """Give the model its clean weights back and forget the frames before, as at a cut in the stream."""
        self._last, self._mix = None, {}
        self._pipeline.reset()

    close = reset

    def decide(self, frame: Frame, read_ms: float = 0.0) -> Decision:
        """Ask oracle and policy about the next frame of a stream, the first half of `step`; see `Pipeline.decide`."""
        held = self._last if self._count % self._oracle_every and self.limits == self._limited else None
        self._limited = self.limits
        self._count += 1
        self._frame = frame  # so that `Result.plot` finds the newest one
        with self._counted(frame):
            return self._pipeline.decide(frame, held, limits=self.limits, read_ms=read_ms, clock=self.clock)

    def answer(self, decision: Decision) -> Result:
        """Patch the model and let it predict, the second half of `step`; see `Pipeline.answer`."""
        with self._counted(decision.frame):
            result = self._pipeline.answer(decision, clock=self.clock, wall_clock=self.wall_clock)
            # Of several streams that share the model, another one may have changed the weights in between.
            before, self._mix = self._mix, self._pipeline.model.mix
            result = replace(result, changed=self._mix != before, camera=self._camera)
            if self.compare or decision.frame.original is not None:
                result = self._pipeline.compare(decision.frame, result)
        self._last = result
        return result

    @contextmanager
    def _counted(self, frame: Frame) -> Iterator[None]:
        try:
            yield
        except FrameError as error:
            self.reset()
            self.rejections[error.reason] += 1
            level = logging.WARNING if self.rejections[error.reason] == 1 else logging.DEBUG  # the others are counted
            log.log(level, "%s, frame %d has no result (%s): %s", frame.name, frame.index, error.reason, error)
            raise
