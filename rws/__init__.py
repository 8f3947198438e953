"""Robust weight signatures: keep a deployed vision model accurate in noise, blur and bad weather.

The names below are imported when they are first used, so `import rws` is cheap and needs no extra.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rws import errors

if TYPE_CHECKING:
    from rws.edge.bundle.bundle import Bundle
    from rws.edge.bundle.options import ModelOptions
    from rws.edge.live.session import LiveSession
    from rws.edge.pipeline import Pipeline, Result
    from rws.edge.runtime import Runtime
    from rws.edge.sources.open import open_source
    from rws.records import Frame

_HOMES = {
    "Bundle": "rws.edge.bundle.bundle",
    "Frame": "rws.records",
    "LiveSession": "rws.edge.live.session",
    "ModelOptions": "rws.edge.bundle.options",
    "Pipeline": "rws.edge.pipeline",
    "Result": "rws.edge.pipeline",
    "Runtime": "rws.edge.runtime",
    "open_source": "rws.edge.sources.open",
}

__all__ = ["Bundle", "Frame", "LiveSession", "ModelOptions", "Pipeline", "Result", "Runtime", "errors", "open_source"]

if find_spec("rws.edge") is None:
    raise ImportError(
        "this folder is a source checkout of rws-edge that is not installed in editable mode; run "
        "`pip install --editable .` in it, or start Python elsewhere to use the installed package"
    )


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rws' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
