"""One fault: what is promised, what is done, and the outcome."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rws.edge.bundle.bundle import Bundle
from rws.edge.faults.frames import read_stamp, scene
from rws.edge.pipeline import Pipeline, Result
from rws.edge.preprocess import preprocess
from rws.edge.runtime import Runtime
from rws.edge.sinks.base import Sink
from rws.edge.sources.base import Source
from rws.errors import first_line
from rws.records import Frame, WallClock


class NotHereError(Exception):
    """A case needs something that this machine lacks."""


@dataclass
class Outcome:
    """The outcome of a case: what happened in words, the frames received, and the promises that failed."""

    name: str
    promised: str
    happened: str = ""
    frames_in: int = 0  # from the source
    frames_out: int = 0  # with a result
    dropped: int = 0
    rejected_by_reason: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    skipped: str = ""  # why it was not run
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether all that was promised held."""
        return not self.failures and not self.skipped

    @property
    def accounted(self) -> bool:
        """Whether in = out + dropped + rejected."""
        return self.frames_in == self.frames_out + self.dropped + self.rejected_by_reason.total()

    def to_dict(self) -> dict[str, object]:
        """Return the fields and whether it passed in plain types."""
        return {**vars(self), "seconds": round(self.seconds, 2), "passed": self.passed, "accounted": self.accounted}


@dataclass(frozen=True)
class Seen:
    """A frame's result, when the caller of the loop got it (seconds of the loop's clock), and the number it carries."""

    result: Result
    at: float
    stamp: int | None


Until = Callable[[list[Seen]], bool]


class Drill:
    """What a case works with: a real model, checks, and frame accounting.

    The cases share the pipeline, so each leaves it clean; `folder` is empty; `video` is to be played (None makes one).
    """

    def __init__(self, bundle: Bundle, pipeline: Pipeline, folder: Path, video: Path | None, outcome: Outcome) -> None:
        self.bundle, self.pipeline, self.folder, self.video, self.outcome = bundle, pipeline, folder, video, outcome
        self._probe = preprocess(scene(64, 64), pipeline.input)[0]
        self._clean = pipeline.model.predict(self._probe)

    def say(self, text: str) -> None:
        """Note what happened; `$WORK` stands for the drill's folder."""
        text = text.replace(str(self.folder), "$WORK")
        self.outcome.happened += f"; {text}" if self.outcome.happened else text

    def check(self, holds: bool, promise: str) -> None:
        """Note a promise that is broken if `holds` is False."""
        if not holds:
            self.outcome.failures.append(promise)

    def check_clean(self) -> None:
        """Check that the weights are clean, bit for bit: the model's output for a fixed input is what it was."""
        model = self.pipeline.model
        self.check(model.mix == {}, "no mix is in effect afterwards")
        clean = all(map(np.array_equal, model.predict(self._probe), self._clean))
        self.check(clean, "the weights are clean afterwards, bit for bit")

    def account(self, source: Source, results: int, rejected: Counter[str]) -> None:
        """Check that each frame of a closed source is out, dropped, or rejected by it or by the loop."""
        outcome = self.outcome
        outcome.frames_in += source.received
        outcome.frames_out += results
        outcome.dropped += source.dropped
        outcome.rejected_by_reason += source.rejections + rejected
        whole = source.delivered == results + rejected.total()
        self.check(whole, f"each of {source.delivered} delivered frames has a result or is rejected")
        self.check(outcome.accounted, "frames in = out + dropped + rejected")

    def play(
        self,
        source: Source,
        until: Until,
        *,
        sinks: Sequence[Sink] = (),
        limit: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        pipeline: Pipeline | None = None,
        wall_clock: WallClock = time.time,
    ) -> list[Seen]:
        """Run the loop on a source until a condition holds, asked after each result and each idle moment.

        Then the source is closed, frames are accounted for, weights must be clean; it fails after `limit` seconds.
        """
        seen: list[Seen] = []
        deadline = time.monotonic() + limit
        stamps, failed = _Stamps(), Counter[str]()
        runtime = Runtime(pipeline or self.pipeline, clock=clock, wall_clock=wall_clock)
        try:
            with closing(runtime.results(source, [stamps, *sinks])) as results:
                for result in results:
                    if isinstance(result, Result):
                        seen.append(Seen(result, clock(), stamps.last))
                    if until(seen):
                        source.stop()
                    elif time.monotonic() > deadline and not source.stopped:
                        self.check(False, f"it comes to its end within {limit:g} s")
                        source.stop()
        except BaseException:
            failed["exception"] = min(1, source.delivered - stamps.count - runtime.rejections.total())
            raise
        finally:
            source.close()
            self.account(source, stamps.count, runtime.rejections + failed)
            self.check_clean()
        return seen


def reached(count: int) -> Until:
    """Return a condition: that many results."""
    return lambda seen: len(seen) >= count


@dataclass(frozen=True)
class Case:
    """A fault of the drill, what the frame loop promises, and what does it; `--quick` skips it if it is slow."""

    name: str
    promised: str
    function: Callable[[Drill], None]
    slow: bool = False

    def run(self, bundle: Bundle, pipeline: Pipeline, folder: Path, video: Path | None = None) -> Outcome:
        """Run it and return its outcome; an exception is a failure of the case, not of the drill."""
        outcome = Outcome(self.name, self.promised)
        started = time.monotonic()
        try:
            self.function(Drill(bundle, pipeline, folder, video, outcome))
        except NotHereError as error:
            outcome.skipped = str(error)
        except Exception as error:
            outcome.failures.append(f"no other exception: {type(error).__name__}: {first_line(error)}")
        outcome.seconds = time.monotonic() - started
        return outcome


def fault(name: str, promised: str, slow: bool = False) -> Callable[[Callable[[Drill], None]], Case]:
    """Return a decorator that makes a case of a function."""
    return lambda function: Case(name, promised, function, slow)


class _Stamps:
    count = 0
    last: int | None = None

    def write(self, frame: Frame, result: Result) -> None:
        self.count += 1
        self.last = read_stamp(frame.image)
