"""Learned graphs on disk, so that a model opens faster the second time.

An entry is a folder: the optimised graph, the clean values with their layout, and a description. It is believed only if
it, and each folder and file on the way, belongs to this user or root and no one else can write there, as ssh does with
its keys; if its checksums hold; and if it was made of the same bytes, on the same processor, by the same versions. The
cache is bounded. If it cannot be read or written, it is as if there were none. There is none on Windows.
"""

import hashlib
import io
import json
import os
import platform
import re
import shutil
import stat
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from rws.edge.common.files import atomic_path, open_regular, remove_leftovers
from rws.edge.live.layout import Layout, place
from rws.edge.live.sessions import FeedSpecs
from rws.edge.live.strategies.live import LearnedGraph
from rws.edge.live.strategies.packed import Mapped

FORMAT = 1  # raised if the meaning of an entry changes
LIMIT = 2**30  # bytes of all entries together
VARIABLE = "RWS_CACHE"
_OFF = ("", "0", "off", "none")
_GRAPH, _LAYOUT, _DESCRIPTION = "graph.onnx", "layout.bin", "entry.json"
_LARGEST = 2**31 - 1  # bytes of a model
_CHUNK = 2**20
_SAMPLE = 4096
_SAMPLES = 16  # blocks of a model that its entry's name depends on, so that it is found before all is hashed
_NAME = re.compile(r"\.?([0-9a-f]{32})(\.[0-9a-f]{8}\.\w+)?")  # of an entry, or of what a killed writer has left

ModelSource = str | os.PathLike[str] | bytes
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Entry:
    """What is known of a model that was opened before."""

    graph: LearnedGraph
    clean: Mapping[str, NDArray[np.float32]]
    specs: FeedSpecs  # of the random inputs that it was checked on
    outputs: str  # digest of the clean outputs for them
    model: str  # digest of the model
    sound: "Future[bool] | None" = None  # whether the graph is what was written


def cache_folder(choice: str | os.PathLike[str] | bool | None) -> Path | None:
    """Return the folder of the cache, or None if it is off: `choice`, RWS_CACHE, or the platform's place for caches."""
    if choice is True:
        choice = os.environ.get(VARIABLE, "auto")
    if not choice or os.name == "nt" or str(choice).lower() in _OFF:
        return None
    if choice != "auto":
        return Path(choice)
    given = os.environ.get("XDG_CACHE_HOME", "")
    place = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    base = given if os.path.isabs(given) else os.path.expanduser(place)
    return Path(base) / "rws" if os.path.isabs(base) else None


class Cache:
    """The entry of one model in a folder.

    Args:
        folder: made, for this user alone, when an entry is written.
        model: a path or bytes; an OSError if it cannot be read.
        options: what else the learned graph depends on, JSON-ready.
    """

    def __init__(self, folder: Path, model: ModelSource, options: Mapping[str, Any]) -> None:
        self._folder, self._model = folder, model
        parts = {
            "format": FORMAT,
            "versions": [_version(), onnxruntime.__version__, onnxruntime.get_build_info(), sys.byteorder],
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "model": self._sample(),
            **options,
        }
        self._name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
        self._thread = ThreadPoolExecutor(1, "hash")
        self._digest: Future[str] | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the model as it was when the entry was looked for; raises an OSError if it cannot be read."""
        return (self._digest or self._meanwhile(self._sha256)).result()

    def load(self, files: ExitStack) -> Entry | None:
        """Return the entry, None if there is none to be believed; its graph stays open as long as `files`.

        The graph is damaged unless it is `sound`, and for another model unless its `model` is our `digest`: both are
        found out meanwhile, on another core.
        """
        try:
            return self._load(files)
        finally:
            self._digest = self._meanwhile(self._sha256)
            self._thread.shutdown(wait=False)

    def _load(self, files: ExitStack) -> Entry | None:
        with suppress(OSError, ValueError, LookupError, TypeError, MemoryError):
            folder = files.enter_context(_open_folder(self._folder))
            folder = files.enter_context(_open_folder(self._name, folder))
            first, _, text = _read(_DESCRIPTION, folder).partition(b"\n")
            if hashlib.sha256(text).hexdigest().encode() != first:
                return None
            about, data = json.loads(text), _read(_LAYOUT, folder)
            graph = files.enter_context(_open_file(_GRAPH, folder))
            if about["layout"] != zlib.crc32(data):
                return None
            sound = self._meanwhile(lambda: _checksum(graph) == about["graph"])
            files.callback(sound.exception)  # before the file is closed
            with suppress(OSError):
                os.utime(folder)  # the entries that were not used for longest are removed first
            open_file = Path(f"/proc/self/fd/{graph.fileno()}")
            file = open_file if open_file.exists() else self._folder / self._name / _GRAPH
            return replace(_entry(file, about, data), sound=sound)
        return None

    def _meanwhile(self, work: Callable[[], T]) -> "Future[T]":
        """Start work in the thread; where no thread can be started, do it first."""
        with suppress(RuntimeError):
            return self._thread.submit(work)
        done: Future[T] = Future()
        try:
            done.set_result(work())
        except OSError as error:
            done.set_exception(error)
        return done

    def store(self, entry: Entry) -> None:
        """Write the entry, if there is room and the model has not changed meanwhile."""
        graph, layout = entry.graph, entry.graph.layout
        arrays = [layout.pieces, layout.channels, *entry.clean.values(), *layout.slots.values()]
        data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        about: dict[str, Any] = {
            "model": entry.model,
            "outputs": entry.outputs,
            "specs": list(entry.specs.items()),
            "clean": [(name, array.shape) for name, array in entry.clean.items()],
            "slots": [(name, slot.shape) for name, slot in layout.slots.items()],
            "lengths": [len(layout.pieces), len(layout.channels)],
            "owners": dict(graph.mapped.owners),
            "unread": dict(graph.mapped.unread),
        }
        with suppress(OSError):
            self._folder.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
            size = graph.file.stat().st_size + len(data)
            if size > LIMIT or shutil.disk_usage(self._folder).free < 2 * size or self._sha256() != entry.model:
                return
            with _open_folder(self._folder), atomic_path(self._folder / self._name, folder=True) as made:
                made.chmod(stat.S_IRWXU)
                shutil.copyfile(graph.file, made / _GRAPH)
                with open(made / _GRAPH, "rb") as file:
                    about["graph"], about["layout"] = _checksum(file), zlib.crc32(data)
                (made / _LAYOUT).write_bytes(data)
                text = json.dumps(about).encode()
                (made / _DESCRIPTION).write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
                for path in made.iterdir():
                    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
            _prune(self._folder)

    def _sha256(self) -> str:
        hasher = hashlib.sha256()
        with self._open_model() as file:
            for block in _blocks(file):
                hasher.update(block)
        return hasher.hexdigest()

    def _sample(self) -> str:
        """Return a digest of the model's length and of parts of it: enough to find its entry."""
        with self._open_model() as file:
            length = file.seek(0, os.SEEK_END)
            hasher = hashlib.sha256(str(length).encode())
            for place in range(_SAMPLES):
                file.seek(length * place // _SAMPLES)
                hasher.update(file.read(_SAMPLE))
        return hasher.hexdigest()

    def _open_model(self) -> BinaryIO:
        return io.BytesIO(self._model) if isinstance(self._model, bytes) else open_regular(self._model, _LARGEST)


@cache
def processor() -> str:
    """Return what ONNX Runtime may choose a layout by: the processor's kind and features, as far as the system says."""
    lines = [platform.machine(), platform.processor()]
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                break  # the first core
            if not line.startswith(
                ("cpu MHz", "bogomips", "BogoMIPS", "processor", "apicid", "initial apicid", "core id")
            ):
                lines.append(" ".join(line.split()))
    return "\n".join(lines)


def digest_arrays(arrays: Sequence[Any]) -> str:
    """Return a digest of arrays (dtype, shape, values; −0 counts as 0), or of what else a model gives."""
    hasher = hashlib.sha256()
    for array in arrays:
        if isinstance(array, np.ndarray) and not array.dtype.hasobject:
            hasher.update(f"{array.dtype} {array.shape}".encode())
            hasher.update(np.ascontiguousarray(array + 0 if array.dtype.kind == "f" else array).tobytes())
        else:
            hasher.update(repr(array).encode())
    return hasher.hexdigest()


def _entry(file: Path, about: Mapping[str, Any], data: bytes) -> Entry:
    """Read an entry; raises ValueError, LookupError or TypeError if it is malformed."""
    position = 0

    def take(shape: Sequence[int], dtype: type[np.generic]) -> NDArray[Any]:
        nonlocal position
        array = np.frombuffer(data, dtype, prod(shape), position).reshape(shape)
        position += array.nbytes
        return array

    pieces = take((about["lengths"][0], 5), np.int64)
    channels = take(about["lengths"][1:], np.int64)
    clean = {name: take(shape, np.float32) for name, shape in about["clean"]}
    slots = {name: take(shape, np.int32) for name, shape in about["slots"]}
    graph = LearnedGraph(file, Layout(slots, *place(slots), pieces, channels), Mapped(about["owners"], about["unread"]))
    specs = {name: (dtype, tuple(shape)) for name, (dtype, shape) in about["specs"]}
    return Entry(graph, clean, specs, about["outputs"], about["model"])


@contextmanager
def _open_folder(path: str | Path, folder: int | None = None) -> Iterator[int]:
    """Open a folder that no other user can change; in another folder, only if it is not a link. Raises an OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if folder is None else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, dir_fd=folder)
    try:
        _check_owner(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _open_file(name: str, folder: int) -> BinaryIO:
    file = open_regular(name, LIMIT, follow=False, folder=folder)
    try:
        _check_owner(file.fileno())
    except OSError:
        file.close()
        raise
    return file


def _check_owner(descriptor: int) -> None:
    status = os.fstat(descriptor)
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError("others can write it")


def _read(name: str, folder: int) -> bytes:
    with _open_file(name, folder) as file:
        return file.read()


def _blocks(file: BinaryIO) -> Iterator[memoryview]:
    file.seek(0)
    block = memoryview(bytearray(_CHUNK))
    while length := file.readinto(block):  # type: ignore[attr-defined]
        yield block[:length]


def _checksum(file: BinaryIO) -> int:
    number = 0
    for block in _blocks(file):
        number = zlib.crc32(block, number)
    return number


def _prune(folder: Path) -> None:
    """Remove what killed writers have left, and the entries that were not used for longest until `LIMIT` holds."""
    for path in folder.iterdir():
        if (found := _NAME.fullmatch(path.name)) and found[2]:
            remove_leftovers(folder / found[1])
    entries = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and not path.is_symlink()]
    total = 0
    for path in sorted(entries, key=lambda path: path.stat().st_mtime, reverse=True):
        total += sum(file.stat().st_size for file in path.iterdir())
        if total > LIMIT:
            shutil.rmtree(path, ignore_errors=True)


@cache
def _version() -> str:
    with suppress(PackageNotFoundError):
        # `version` would parse all of it, the README included.
        found = re.search(r"^Version: (.*)$", distribution("rws-edge").read_text("METADATA") or "", re.MULTILINE)
        return found[1] if found else ""
    return ""
