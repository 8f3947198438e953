"""Errors a user can cause; every message says what was found, what was expected and what to do."""

from __future__ import annotations


class RwsError(Exception):
    """Base of every error that this project raises on bad input; the CLI prints it as one line and exits with 2."""


class InputError(RwsError, ValueError):
    """An image, array or argument has a shape, dtype or value that the callee cannot take."""


class FormatError(RwsError, ValueError):
    """A file is truncated, altered, or not of the format that its name promises."""
