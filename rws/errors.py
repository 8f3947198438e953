"""Errors a user can cause; every message says what was found, what was expected and what to do."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import ClassVar


class RwsError(Exception):
    """Base of every error that this project raises on bad input.

    The command line prints it as one line and exits with its class's `exit_code`: 2 for wrong usage, 3 for refused
    input, 4 for a source that never opened or was lost.
    """

    exit_code: ClassVar[int] = 3


class InputError(RwsError, ValueError):
    """An image, array or argument has a shape, dtype or value that the callee cannot take."""


class UsageError(InputError):
    """Options or arguments have a value, or a combination of values, that the command cannot take."""

    exit_code = 2


class FormatError(RwsError, ValueError):
    """A file is truncated, altered, or not of the format that its name promises."""


class BundleError(FormatError):
    """A bundle, or the model in it, is missing a part, altered, or of another format than this version reads."""


class OperatorError(BundleError):
    """A model has an operator that torch cannot compute, so that nothing can be trained through it."""


class StrategyUnavailableError(BundleError):
    """No strategy, or not the one asked for, works for this model here, or it cannot do what was called."""


class SignatureError(RwsError, ValueError):
    """A signature is malformed, unknown, made for another model, or was asked for at an impossible strength."""


class SourceError(RwsError):
    """A camera, video, folder or image cannot be read."""

    exit_code = 4


class FrameError(RwsError):
    """A frame has no usable result: the oracle, the policy or the model has failed on it.

    `reason` is `bad_belief` (a run of the oracle that failed, or probabilities that are none), `bad_mix` (a strength
    that is not finite or out of range, an unknown signature) or `bad_output` (a run of the model that failed, or
    outputs that are not finite or of another shape).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class InUseError(RwsError):
    """Another process changes the same file or folder, and has not ended in time; the message names it."""


class MissingExtraError(RwsError, ImportError):
    """A command or backend needs packages of an extra that is not installed; the message names the extra."""


def check_known(kind: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise UsageError for the first name that is not among the known ones; it lists them and suggests the closest."""
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UsageError(f"unknown {kind} {name!r}; known: {', '.join(known)}{hint}")


def from_library(error: BaseException) -> bool:
    """Return whether ONNX, ONNX Runtime or Torch has raised this error: theirs share no base."""
    return type(error).__module__.partition(".")[0] in ("onnx", "onnxruntime", "torch")


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message, or the error's type if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
