"""Artefacts in files, each made once, and jobs that several processes share through a folder.

Next to a file is its note, `<name>.from`: what it was made from (JSON) and its SHA-256. The note is written first.
"""

import hashlib
import io
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from rws.edge.common.files import atomic_write_bytes, is_held, locked, read_regular, remove_leftovers
from rws.edge.common.schema import parse_json
from rws.errors import InputError, InUseError, RwsError, first_line
from rws.training.jobs.stopping import writing

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
log = logging.getLogger(__name__)

_LARGEST = 2**34  # bytes of an artefact
_looking: ContextVar[bool] = ContextVar("looking", default=False)


class Written:
    """How much this process has written."""

    bytes = 0


class NotMadeError(RwsError):
    """An artefact does not exist, and was only looked up."""


@dataclass(frozen=True)
class Codec(Generic[T]):
    """How a value becomes the bytes of a file, and is read from them."""

    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]


def _written(write: Callable[[io.BytesIO], None]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


JSON: Codec[Any] = Codec(lambda value: json.dumps(value).encode(), json.loads)

ARRAYS: Codec[Mapping[str, NDArray[Any]]] = Codec(
    lambda arrays: _written(lambda file: np.savez_compressed(file, **arrays)),  # type: ignore[arg-type]
    lambda content: dict(np.load(io.BytesIO(content), allow_pickle=False)),
)  # arrays by name, `.npz`


def _encode_state(state: Mapping[str, "torch.Tensor"]) -> bytes:
    import torch

    return _written(lambda file: torch.save(dict(state), file))


def _decode_state(content: bytes) -> Mapping[str, "torch.Tensor"]:
    import torch

    found: Mapping[str, torch.Tensor] = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    return found


STATE: Codec[Mapping[str, "torch.Tensor"]] = Codec(_encode_state, _decode_state)
"""A state dict, `.pt`; it comes back on the CPU."""


def _encode_scored(value: tuple[bytes, Any]) -> bytes:
    content, scores = value
    return ARRAYS.encode({"content": np.frombuffer(content, np.uint8), "scores": np.array(json.dumps(scores))})


def _decode_scored(content: bytes) -> tuple[bytes, Any]:
    found = ARRAYS.decode(content)
    return found["content"].tobytes(), json.loads(str(found["scores"]))


# The content of a file, and what was measured of it as plain data, `.npz`.
SCORED: Codec[tuple[bytes, Any]] = Codec(_encode_scored, _decode_scored)


class Entry(Generic[T]):
    """One artefact of a store; its identity, what it is made from, is JSON data in which dataclasses may stand."""

    def __init__(self, store: "Store", name: str, identity: Any, codec: Codec[T]) -> None:
        text = json.dumps(identity, default=asdict, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._store, self._identity, self._codec = store, json.loads(text), codec
        stem, suffix = Path(name).stem, Path(name).suffix
        self._name = name
        self._path = store.folder and store.folder / (f"{stem}-{digest}{suffix}" if store.other == "keep" else name)
        # Where a training may keep what it resumes from; removed when the artefact exists.
        self.checkpoint = store.folder and store.folder / f"{stem}-{digest}.checkpoint"

    def load(self) -> T | None:
        """Load the artefact; None if it does not exist yet; InputError if it cannot be read or the store refuses it."""
        if self._path is None or not self._store.resume or not self._path.exists():
            return None
        try:
            note, content = _read_note(self._path), read_regular(self._path, _LARGEST)
            same = note.get("identity") == self._identity
            if same and note.get("sha256") == hashlib.sha256(content).hexdigest():
                return self._codec.decode(content)
        except Exception as error:  # of the file system, or whatever NumPy, torch or JSON say to what is not theirs
            why = getattr(error, "strerror", "") or first_line(error)
            raise InputError(f"{self._path}: cannot be read ({why}); remove it to have it made again") from error
        if self._store.other == "refuse":
            wrong = "is damaged" if same else "was made from another recipe or data"
            raise InputError(f"{self._path} {wrong}; remove it to have it made again, or give another work folder")
        return None

    def save(self, value: T) -> T:
        """Write the artefact, atomically; return what `load` will return."""
        content = self._codec.encode(value)
        if self._path is not None:
            note = {"identity": self._identity, "sha256": hashlib.sha256(content).hexdigest()}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with writing():
                # The folder may hold thousands of artefacts, so it is tidied only if a process died: see `get`.
                atomic_write_bytes(_note(self._path), json.dumps(note, indent=1).encode(), tidy=False)
                atomic_write_bytes(self._path, content, tidy=False)
            Written.bytes += len(content)
        return self._codec.decode(content)

    def get(self, make: Callable[[], T]) -> T:
        """Return the artefact; make it if it does not exist and no other process makes it meanwhile; see `load`.

        Raises NotMadeError instead of making it within `missing`.
        """
        if _looking.get() and self._store.other == "refuse" and (why := self._why_missing()):
            raise NotMadeError(why)
        found = self.load()
        if found is not None:
            return found
        if _looking.get():
            raise NotMadeError(self._why_missing())
        if self._path is None:
            return self.save(make())
        was_held = is_held(self._path)
        with claim(self._path.parent, self._path.name, wait=True):
            if was_held:
                for path in (_note(self._path), self._path):
                    remove_leftovers(path)
            found = self.load()
            if found is None:
                log.info("making %s%s", self._path, ", damaged or outdated" if self._path.exists() else "")
                made = make()
                with writing():
                    found = self.save(made)
                    if self.checkpoint is not None:
                        self.checkpoint.unlink(missing_ok=True)
        return found

    def _why_missing(self) -> str:
        """Return why it has to be made; "" if a file is there whose note fits, whatever its content is."""
        if self._path is None:
            return "nothing is kept"
        if not self._store.resume:
            return f"{self._path.name} is not used again"
        if self._path.exists():
            changed = differences(_read_note(self._path).get("identity"), self._identity)
            damaged = "" if self._store.other == "refuse" else f"{self._path.name} is damaged"
            return f"{self._path.name} was made with other inputs: {changed}" if changed else damaged
        if self._store.other == "keep" and (other := self._of_other_inputs()) is not None:
            changed = differences(_read_note(other).get("identity"), self._identity)
            return f"{self._name} was made with other inputs: {changed}"
        return f"{self._path.name} does not exist"

    def _of_other_inputs(self) -> Path | None:
        """Return the newest file of the same name whose digest is another."""
        assert self._path is not None
        stem, suffix = Path(self._name).stem, self._path.suffix
        fits = re.compile(f"{re.escape(stem)}-[0-9a-f]{{16}}{re.escape(suffix)}")
        found = [path for path in self._path.parent.glob(f"*{suffix}") if fits.fullmatch(path.name)]
        return max(found, key=lambda path: path.stat().st_mtime, default=None)


def missing(make: Callable[[], object]) -> str:
    """Return why a function that gets artefacts would have to make one, in one line; "" if all exist. Makes none."""
    token = _looking.set(True)
    try:
        make()
    except NotMadeError as error:
        return str(error)
    finally:
        _looking.reset(token)
    return ""


def differences(before: Any, now: Any, place: str = "") -> str:
    """Return where two identities, plain data, differ: the first three places, as `place: before → now`."""
    return "; ".join(islice(_differences(before, now, place), 3))


def _differences(before: Any, now: Any, place: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _differences(before.get(key), now.get(key), f"{place}.{key}".lstrip("."))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, pair in enumerate(zip(before, now, strict=True)):
            yield from _differences(*pair, f"{place}[{index}]")
    elif before != now:
        old, new = (json.dumps(value)[:40] for value in (before, now))
        yield f"{place}: {old} → {new}"


@dataclass(frozen=True)
class Store:
    """A folder of artefacts, created when one is made; None keeps none. `resume`: existing files are used.

    A file that is damaged or was made from something else is an error (`refuse`) or replaced (`remake`, `keep`); `keep`
    has a file per identity, with its digest in the name.
    """

    folder: Path | None
    other: Literal["refuse", "remake", "keep"] = "remake"
    resume: bool = True

    def entry(self, name: str, identity: Any, codec: Codec[T]) -> Entry[T]:
        """Return one artefact; see `Entry`."""
        return Entry(self, name, identity, codec)

    def get(self, name: str, identity: Any, make: Callable[[], T], codec: Codec[T]) -> T:
        """Return the artefact of this name and identity; see `Entry.get`."""
        return self.entry(name, identity, codec).get(make)


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.from")


def _read_note(path: Path) -> Mapping[str, Any]:
    with suppress(FileNotFoundError, ValueError):
        found = parse_json(read_regular(_note(path), _LARGEST))
        return found if isinstance(found, dict) else {}
    return {}


@contextmanager
def claim(folder: Path, name: str, *, wait: bool) -> Iterator[bool]:
    """Hold a name in a folder; gives False at once if another process holds it and `wait` is off."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        held = False
        with suppress(InUseError):
            stack.enter_context(locked(folder / name, math.inf if wait else 0))
            held = True
        yield held
