"""Examining a bundle from outside: a confined child process checks it and runs its networks."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from rws.edge.bundle.contents import BundleFiles
from rws.edge.bundle.manifest import FILES, Manifest
from rws.edge.common.child import child_environment, python_command
from rws.edge.common.confine import Limits, confine
from rws.edge.common.schema import MAX_TEXT, STRICT, Text, parse_json, validate
from rws.errors import BundleError, FormatError, InputError, RwsError, SignatureError, first_line
from rws.text import printable

_LARGEST_ANSWER = 2**16  # bytes
_NO_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory")  # what ONNX Runtime says
_ERRORS = {kind.__name__: kind for kind in (BundleError, FormatError, InputError, RwsError, SignatureError)}
# A confined process can neither start a thread nor open a file.
_ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RWS_CACHE": "off"}


@dataclass(frozen=True, config=STRICT)
class Verdict:
    """What a child process says of a bundle: what it has tested, or the type of an error and its message."""

    tested: Annotated[tuple[Text, ...], Field(max_length=10)] = ()
    signatures: Annotated[int, Field(ge=0, lt=2**31)] = 0  # number of them
    error: Text = ""
    message: Text = ""


def limits_of(files: BundleFiles) -> Limits:
    """Return what examining a bundle may take: a base, and more for larger files and larger images."""
    pixels = files.manifest.input.height * files.manifest.input.width
    # A convolutional network was measured to take 7 bytes per byte of its file, and 2,200 per pixel.
    memory = 12 * files.size + 4096 * pixels
    if hasattr(os, "sysconf"):
        memory = min(memory, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    processor = round(60 + files.size / 1e6 + pixels / 1e5)
    return Limits(processor, 4 * processor, 2**29 + memory)


class StoppedError(BundleError):
    """An examination was stopped before its end, by `Examination.stop`."""


class Examination:
    """Examines one bundle, once; `stop` ends it from another thread."""

    def __init__(self, files: BundleFiles, limits: Limits | None = None) -> None:
        self._files, self._limits = files, limits or limits_of(files)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._late = self._stopped = False

    def run(self) -> Verdict:
        """Return what was tested; else what `Bundle.load` and `self_test` raise, or BundleError if it takes too much.

        The child is given the files as they were read: what they say now, on the disk, does not matter.
        """
        try:
            process = self._start()
        except OSError as error:
            why = f"no process can be started that tests it ({error.strerror or error}); try again"
            raise self._refused(why) from error
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(self._limits.seconds, self._time_out)
        sender = threading.Thread(target=self._send, args=[process.stdin], daemon=True)
        try:
            timer.start()
            sender.start()
            answer = process.stdout.read(_LARGEST_ANSWER + 1)
        finally:
            timer.cancel()
            self._kill()
            code = process.wait()
            process.stdout.close()
        if self._stopped:
            raise self._refused("the test was stopped; test it again", StoppedError)
        if self._late or code == -getattr(signal, "SIGXCPU", 0):
            limits = self._limits
            most = f"{limits.seconds:g} s" if self._late else f"{limits.processor:g} s of processor time"
            raise self._refused(f"its networks did not finish within {most}; give a smaller model")
        return self._checked(answer, code)

    def stop(self) -> None:
        """End the examination, now and for good; it raises a StoppedError."""
        self._stopped = True
        self._kill()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._lock:
            if self._stopped:
                raise self._refused("the test was stopped; test it again", StoppedError)
            self._process = subprocess.Popen(
                python_command("from rws.edge.bundle.examine import answer; answer()"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=child_environment() | _ALONE,
                start_new_session=True,  # Ctrl-C is for this process alone
            )
            return self._process

    def _send(self, stdin: IO[bytes]) -> None:
        files = self._files
        parts = [files.document, *(files.contents[name] for name in FILES)]
        about = {
            "parent": os.getpid(),
            "path": str(files.path),
            "sizes": [len(part) for part in parts],
            "limits": asdict(self._limits),
        }
        with suppress(OSError), stdin:  # a child that has died is noticed where its answer is read
            for part in (json.dumps(about).encode() + b"\n", *parts):
                stdin.write(part)

    def _time_out(self) -> None:
        self._late = True
        self._kill()

    def _kill(self) -> None:
        with self._lock, suppress(OSError):
            if self._process is None or self._process.returncode is not None:
                return
            if sys.platform == "win32":
                self._process.kill()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)

    def _checked(self, answer: bytes, code: int) -> Verdict:
        if not answer:
            how = f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"
            raise self._refused(f"the process that runs its networks died ({how}); export them again, or free memory")
        where, cure = str(self._files.path), "its networks have altered the process that ran them; do not use it"
        if len(answer) > _LARGEST_ANSWER:
            raise self._refused(f"more than {_LARGEST_ANSWER} bytes instead of an answer; {cure}")
        try:
            document = parse_json(answer)
        except ValueError as error:
            raise self._refused(f"{first_line(error)} instead of an answer; {cure}") from error
        verdict = validate(Verdict, document, where, cure=cure, error=BundleError)
        if verdict.error == "MemoryError":
            most = f"{self._limits.memory // 2**20} MiB of memory, with {self._files.size / 1e6:.1f} MB of files"
            raise self._refused(f"its networks need more than {most}; give a smaller model")
        if verdict.error:
            raise _ERRORS.get(verdict.error, BundleError)(verdict.message)
        return verdict

    def _refused(self, why: str, kind: type[BundleError] = BundleError) -> BundleError:
        return kind(f"{self._files.path}: {why}")


def examine(files: BundleFiles, limits: Limits | None = None) -> Verdict:
    """Check a bundle, and run each of its networks once, in a confined child process; see `Examination.run`."""
    return Examination(files, limits).run()


def answer() -> None:
    """Be the child process: read a bundle from stdin, give up all rights, examine it, write the verdict to stdout."""
    # All that is imported later could not be: no file can be opened then.
    import numpy.ma
    import numpy.random  # noqa: F401

    from rws.edge.bundle.bundle import Bundle
    from rws.edge.bundle.options import ModelOptions
    from rws.edge.bundle.self_test import self_test

    output, silent = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # native code writes there, too
        os.dup2(silent, descriptor)
    stdin = sys.stdin.buffer
    about = json.loads(stdin.readline())
    document, *contents = (stdin.read(size) for size in about["sizes"])
    tempfile.tempdir = os.devnull  # where a file would be written if one could
    path = Path(about["path"])
    verdict: dict[str, Any]
    try:
        confine(Limits(**about["limits"]))
        if sys.platform == "linux" and os.getppid() != about["parent"]:
            os._exit(1)  # nobody waits for an answer
        manifest = Manifest.parse(document, str(path))
        bundle = Bundle.parse(BundleFiles(path, document, manifest, dict(zip(FILES, contents, strict=True))))
        tested = self_test(bundle, bundle.model(ModelOptions(threads=1, provider="cpu")))
        verdict = {"tested": tested, "signatures": len(bundle.signatures.names)}
    except Exception as error:
        text = first_line(error)
        full = isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY)
        message = printable(text if str(path) in text else f"{path}: {text}")[:MAX_TEXT]
        verdict = {"error": "MemoryError" if full else type(error).__name__, "message": message}
    os.write(output, json.dumps(verdict).encode())
    os._exit(0)
