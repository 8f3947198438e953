"""One fault: what is promised, what is done, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rws.edge.faults.stamp import read_stamp, scene
from rws.edge.preprocess import preprocess
from rws.edge.runtime import Runtime
from rws.edge.sources.open import Source
from rws.errors import first_line
from rws.records import Frame

if TYPE_CHECKING:
    from rws.edge.bundle.bundle import Bundle
    from rws.edge.runtime import Result, Sink


@dataclass
class Outcome:
    """What a case came to.

    Args:
        name: of the case.
        promised: what the frame loop promises.
        happened: what was seen, in words.
        frames_in: frames that came from the source.
        frames_out: frames with a result.
        dropped: whole frames that were skipped.
        rejected: frames kept from the oracle, by reason.
        failures: promises that were not kept; none: passed.
        skipped: why it was not run, or "".
        seconds: it took so long.
    """

    name: str
    promised: str
    happened: list[str] = field(default_factory=list)
    frames_in: int = 0
    frames_out: int = 0
    dropped: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether all that was promised held."""
        return not self.failures and not self.skipped

    @property
    def accounted(self) -> bool:
        """Whether in = out + dropped + rejected."""
        return self.frames_in == self.frames_out + self.dropped + sum(self.rejected.values())

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {
            **vars(self),
            "happened": "; ".join(self.happened),
            "seconds": round(self.seconds, 2),
            "passed": self.passed,
            "accounted": self.accounted,
        }


@dataclass(frozen=True)
class Seen:
    """A frame with its result, as the caller of the loop got it.

    Args:
        result: the result.
        at: when, seconds of the loop's clock.
        stamp: the number that the picture carries, see `rws.edge.faults.stamp`.
    """

    result: Result
    at: float
    stamp: int | None


class Drill:
    """What a case works with: a real model, checks, and the books.

    Args:
        bundle: whose model, oracle and policy run.
        folder: an empty folder.
        runtime: of the bundle; the cases share it, so each leaves it clean.
        video: a file to play and to damage; None makes one.
    """

    def __init__(
        self, bundle: Bundle, folder: Path, runtime: Runtime, outcome: Outcome, video: Path | None = None
    ) -> None:
        self.bundle, self.folder, self.runtime, self.outcome = bundle, folder, runtime, outcome
        self.video = video
        self._probe = preprocess(scene(64, 64), *runtime.input_size)
        self._clean = runtime.model.predict(self._probe)

    def say(self, text: str) -> None:
        """Note what happened; `$WORK` stands for the drill's folder."""
        self.outcome.happened.append(text.replace(str(self.folder), "$WORK"))

    def check(self, holds: bool, promise: str) -> None:
        """A promise that is broken if `holds` is False."""
        if not holds:
            self.outcome.failures.append(promise)

    def check_clean(self) -> None:
        """The weights are the clean ones, bit for bit: the model's output for a fixed input is what it was."""
        self.check(self.runtime.model.mix == {}, "no mix is in effect afterwards")
        clean = np.array_equal(self.runtime.model.predict(self._probe), self._clean)
        self.check(clean, "the weights are clean afterwards, bit for bit")

    def account(self, source: Source, results: int, failed: int = 0) -> None:
        """Close the books of a source that has been closed: each frame that came in is out, dropped or rejected.

        Args:
            source: closed.
            results: frames that the sinks got.
            failed: frames that were in hand when the loop raised.
        """
        outcome = self.outcome
        outcome.frames_in += source.received
        outcome.frames_out += results
        outcome.dropped += source.dropped
        for reason, count in [*source.rejections.items(), *([("in hand at an exception", failed)] if failed else [])]:
            outcome.rejected[reason] = outcome.rejected.get(reason, 0) + count
        self.check(source.delivered == results + failed, f"each of {source.delivered} delivered frames has a result")
        self.check(outcome.accounted, "frames in = out + dropped + rejected")

    def with_clock(self, clock: Callable[[], float]) -> Runtime:
        """The runtime with another clock."""
        own = self.runtime
        return Runtime(
            own.model,
            own.oracle,
            own.policy,
            own.filter,
            input_size=own.input_size,
            classes=own.classes,
            clock=clock,
        )

    def play(
        self,
        source: Source,
        until: Callable[[list[Seen]], bool],
        *,
        runtime: Runtime | None = None,
        sinks: Sequence[Sink] = (),
        limit: float = 60.0,
        on_idle: Callable[[float], None] = lambda seconds: None,
    ) -> list[Seen]:
        """Run the loop on a source until a condition holds, asked after each result and each idle moment.

        Whatever ends it, the source is closed, the books are closed, and the weights must be clean.

        Raises:
            RwsError: what the loop raised.
        """
        seen: list[Seen] = []
        runtime = self.runtime if runtime is None else runtime
        clock = runtime._clock
        deadline = time.monotonic() + limit

        def late() -> bool:
            if time.monotonic() > deadline:
                self.check(False, f"it comes to its end within {limit:g} s")
                return True
            return False

        def idle(seconds: float) -> None:
            on_idle(seconds)
            if until(seen) or late():
                source.stop()

        stamps: list[int | None] = []
        watch = _Stamps(stamps)
        failed = 0
        try:
            with closing(runtime.stream(source, [watch, *sinks], on_idle=idle)) as results:
                for result in results:
                    seen.append(Seen(result, clock(), stamps.pop()))
                    if until(seen) or late():
                        source.stop()
        except BaseException:
            failed = min(1, source.delivered - watch.count)
            raise
        finally:
            source.close()
            self.account(source, watch.count, failed)
            self.check_clean()
        return seen


class _Stamps:
    """A sink that reads the number that each picture carries."""

    def __init__(self, stamps: list[int | None]) -> None:
        self.count = 0
        self._stamps = stamps

    def write(self, frame: Frame, result: Result) -> None:
        """Keep the number, not the picture."""
        self.count += 1
        self._stamps.append(read_stamp(frame.image))


CaseFunction = Callable[[Drill], None]


@dataclass(frozen=True)
class Case:
    """A fault of the drill.

    Args:
        name: for people and for `--only`.
        promised: what the frame loop promises.
        function: does it.
        slow: whether `--quick` leaves it out.
    """

    name: str
    promised: str
    function: CaseFunction
    slow: bool = False

    def run(self, bundle: Bundle, folder: Path, runtime: Runtime, video: Path | None = None) -> Outcome:
        """Do it, and say what came of it; an exception of ours is a failure of the case, not of the drill."""
        outcome = Outcome(self.name, self.promised)
        started = time.monotonic()
        with _failures_of(outcome):
            self.function(Drill(bundle, folder, runtime, outcome, video))
        outcome.seconds = time.monotonic() - started
        return outcome


class NotHereError(Exception):
    """A case needs something that this machine lacks."""


@contextmanager
def _failures_of(outcome: Outcome) -> Iterator[None]:
    try:
        yield
    except NotHereError as error:
        outcome.skipped = str(error)
    except Exception as error:
        outcome.failures.append(f"no other exception: {type(error).__name__}: {first_line(error)}")


CASES: dict[str, Case] = {}


def case(name: str, *, slow: bool = False) -> Callable[[CaseFunction], CaseFunction]:
    """Put a function among the cases; its docstring says what is promised."""

    def add(function: CaseFunction) -> CaseFunction:
        CASES[name] = Case(name, function.__doc__ or "", function, slow)
        return function

    return add


def noisy(image: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """The picture with strong grey noise, so that the oracle patches the model."""
    noise = np.random.default_rng(seed).normal(0, 60, image.shape)
    grainy: NDArray[np.uint8] = np.clip(image + noise, 0, 255).astype(np.uint8)
    return grainy
