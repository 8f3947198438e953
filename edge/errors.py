"""Errors a user of the runtime can cause; every message says what was found, what was expected and what to do."""

from __future__ import annotations

from rws.oracle.errors import FormatError, InputError, RwsError

__all__ = [
    "BundleError",
    "FormatError",
    "InputError",
    "MissingExtraError",
    "RwsError",
    "SignatureError",
    "SourceError",
    "first_line",
]


def first_line(error: BaseException) -> str:
    """What a library's error says first, or its name if it says nothing: enough for a message of one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class BundleError(FormatError):
    """A bundle, or the model in it, is missing a part, altered, or of another format than this version reads."""


class SignatureError(RwsError, ValueError):
    """A signature is malformed, unknown, made for another model, or was asked for at an impossible strength."""


class SourceError(RwsError):
    """A camera, video, folder or image cannot be read."""


class MissingExtraError(RwsError, ImportError):
    """A command or backend needs packages of an extra that is not installed; the message names the extra."""
