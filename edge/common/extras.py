"""Heavy imports happen inside commands; a missing one is answered with the extra that installs it."""

from collections.abc import Iterator
from contextlib import contextmanager

from rws.errors import MissingExtraError


@contextmanager
def require(extra: str) -> Iterator[None]:
    """Wrap imports that only an extra of `rws-edge` installs; MissingExtraError names the absent module and the extra.

    A module of this project that is absent is a bug of this package and keeps its ModuleNotFoundError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "rws":
            raise
        fault = f"this needs the Python package {error.name!r}, which is not installed here"
        checkout = f"pip install -e '.[{extra}]' in a checkout"
        raise MissingExtraError(f"{fault}; install it with: pip install 'rws-edge[{extra}]', or {checkout}") from error
