"""Bundles from outside, examined in a child process: what takes too much or breaks is refused in one line."""

import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest

from rws.edge.bundle import examine as module
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import BundleFiles
from rws.edge.bundle.examine import Examination, StoppedError, examine, limits_of
from rws.edge.bundle.self_test import self_test
from rws.edge.common.child import python_command
from rws.edge.common.confine import Limits
from rws.errors import BundleError, RwsError, SignatureError
from support.bundle_files import edit_manifest, make_costly, replace_file

SHORT = Limits(60.0, 3.0, 2**30)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs the limits of Linux")


def refusal(path, limits=None, kind=BundleError):
    with pytest.raises(kind) as caught:
        examine(BundleFiles.read(path), limits)
    message = str(caught.value)
    assert message.isprintable()
    assert str(path) in message
    return message


@pytest.fixture
def child(monkeypatch):
    """Replace what the child process does, or put code before it."""

    def replace(code, goes_on=False):
        monkeypatch.setattr(module, "python_command", lambda rest: python_command(f"{code}\n{rest if goes_on else ''}"))

    return replace


@pytest.fixture
def instead(child):
    """Let the child run lines of code when its rights are gone, and give the text of `found` as what was tested."""

    def replace(*lines):
        body = "\n    ".join(lines)
        function = f"def run(bundle, model):\n    {body}\n    return [str(found)]"
        child(f"import rws.edge.bundle.self_test as module\n{function}\nmodule.self_test = run", goes_on=True)

    return replace


class TestSound:
    def test_the_verdict_is_that_of_the_self_test(self, tiny_bundle):
        verdict = examine(BundleFiles.read(tiny_bundle.path))
        assert list(verdict.tested) == self_test(Bundle.load(tiny_bundle.path))
        assert verdict.signatures == 3

    def test_the_files_are_examined_as_they_were_read(self, bundle_path):
        files = BundleFiles.read(bundle_path)
        for path in bundle_path.iterdir():
            path.unlink()
        bundle_path.rmdir()
        assert len(examine(files).tested) == 4

    def test_larger_files_and_images_may_take_more(self, tiny_bundle):
        files = BundleFiles.read(tiny_bundle.path)
        least = limits_of(files)
        assert (least.processor, least.seconds) == (60, 240)
        assert 2**29 <= least.memory < 2**30
        contents = files.contents | {"model.onnx": bytes(10**8)}
        larger = limits_of(BundleFiles(files.path, files.document, files.manifest, contents))
        assert larger.processor == pytest.approx(least.processor + 100, abs=1)
        assert larger.memory > 10**9

    def test_a_folder_that_only_its_owner_can_read(self, bundle_path):
        bundle_path.chmod(0o700)
        for path in bundle_path.iterdir():
            path.chmod(0o600)
        assert len(examine(BundleFiles.read(bundle_path)).tested) == 4


class TestRefused:
    def test_what_the_check_of_the_file_finds_keeps_its_type(self, bundle_path):
        replace_file(bundle_path, "signatures.safetensors", b"\xff" * 100)
        assert "not a whole safetensors file" in refusal(bundle_path, kind=SignatureError)

    def test_a_file_that_is_no_network(self, bundle_path):
        replace_file(bundle_path, "model.onnx", b"\xff" * 100)
        refusal(bundle_path)

    def test_settings_that_do_not_fit(self, bundle_path):
        edit_manifest(bundle_path, lambda document: document["policy"].update(odd=1))
        assert "policy does not fit" in refusal(bundle_path)

    def test_work_without_end(self, bundle_path):
        make_costly(bundle_path)
        assert "its networks did not finish within 3 s" in refusal(bundle_path, SHORT)

    @LINUX
    @pytest.mark.parametrize("side", [2**15, 2**17, 2**30, 2**40])
    def test_memory_without_end(self, bundle_path, side):
        make_costly(bundle_path, side, products=1)
        message = refusal(bundle_path)
        assert "need more than" in message or "Integer overflow" in message

    def test_the_processor_time_is_limited_alone(self, bundle_path):
        make_costly(bundle_path)
        message = refusal(bundle_path, Limits(1.0, 100.0, 2**30))
        assert "did not finish within 1 s of processor time" in message


class TestHostileChild:
    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"died \(signal 11, "),
            ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"died \(signal 9, "),
            ("import os; os.abort()", r"died \(signal 6, "),
            ("raise SystemExit(3)", r"died \(exit code 3\)"),
            ("import os, time; os.close(1); time.sleep(60)", r"died \(signal 9, "),
            ("import time; time.sleep(60)", "did not finish within 3 s"),
            ("import os, time; os.write(1, b'{}'); time.sleep(60)", "did not finish within 3 s"),
            ("print('\\x1b[2J' * 50_000_000)", "more than 65536 bytes instead of an answer"),
            ("while True: print('x' * 1000)", "more than 65536 bytes instead of an answer"),
            ("print('noise')", "not JSON|line 1 column 1"),
            ("print('[' * 60_000)", "deep instead of an answer"),
            ("print('[]')", "do not use it"),
            ("print('{\"signatures\": 1e400}')", "finite instead of an answer"),
            ('print(\'{"error": "SystemExit", "message": "\\\\u001b[2J"}\')', "printable text"),
            ('print(\'{"tested": ["\\\\u001b[2J"]}\')', "printable text"),
            ("print('{\"other\": 1}')", "key 'other' is unknown|key other is unknown"),
        ],
    )
    def test_each_answer_but_a_verdict_is_refused(self, tiny_bundle, child, code, message, capfd):
        child(code)
        found = refusal(tiny_bundle.path, SHORT if "within 3 s" in message else None)
        assert re.search(message, found), found
        assert len(found) < 600
        assert capfd.readouterr() == ("", "")

    def test_an_error_of_another_type_is_a_bundle_error(self, tiny_bundle, child):
        child(f"print({json.dumps(json.dumps({'error': 'KeyboardInterrupt', 'message': f'{tiny_bundle.path}: no'}))})")
        assert refusal(tiny_bundle.path).endswith(": no")

    def test_what_native_code_prints_is_not_seen(self, tiny_bundle, instead, capfd):
        instead(
            "import os, sys", "for fd in (1, 2): os.write(fd, b'x' * 10**7)", "print('y' * 10**7)", "found = 'done'"
        )
        assert examine(BundleFiles.read(tiny_bundle.path)).tested == ("done",)
        assert capfd.readouterr() == ("", "")

    def test_no_process_can_be_started(self, tiny_bundle, monkeypatch):
        def full(*_, **__):
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(module.subprocess, "Popen", full)
        assert "no process can be started that tests it (Too many open files)" in refusal(tiny_bundle.path)


@LINUX
class TestRights:
    @pytest.mark.parametrize(
        "attempt",
        [
            "open('/etc/hostname')",
            "open('/dev/shm/rws-examine', 'w')",
            "os.memfd_create('x')",
            "__import__('socket').socket()",
            "os.fork()",
            "__import__('_thread').start_new_thread(print, ())",
            "os.pipe()",
            "os.dup(0)",
            "__import__('resource').setrlimit(7, (64, 64))",
            "os.setuid(0)" if os.geteuid() == 0 else "os.setgroups([])",
        ],
    )
    def test_it_has_none(self, tiny_bundle, instead, attempt):
        tried = f"try: {attempt}", "except (OSError, RuntimeError, ValueError) as error: found = type(error).__name__"
        instead("import os, socket, resource", *tried, "else: found = 'done'")
        (found,) = examine(BundleFiles.read(tiny_bundle.path)).tested
        assert found in ("OSError", "PermissionError", "BlockingIOError", "RuntimeError", "error", "ValueError")

    def test_root_becomes_nobody(self, tiny_bundle, instead):
        no_new_rights = "ctypes.CDLL(None).prctl(39, 0, 0, 0, 0)"
        instead("import ctypes, os", f"found = [{no_new_rights}, os.getgroups(), *os.getresuid()]")
        (found,) = examine(BundleFiles.read(tiny_bundle.path)).tested
        no_new_rights, groups, *users = json.loads(found)
        assert no_new_rights == 1
        if os.geteuid() == 0:
            assert 0 not in users
            assert groups == []

    def test_it_gets_no_secret(self, tiny_bundle, instead, monkeypatch):
        monkeypatch.setenv("RWS_TOKEN", "secret")
        monkeypatch.setenv("RWS_SOURCE", "rtsp://u:p@host/")
        instead("import os", "found = sorted(os.environ)")
        (found,) = examine(BundleFiles.read(tiny_bundle.path)).tested
        assert "RWS_TOKEN" not in found
        assert "RWS_SOURCE" not in found

    @pytest.mark.parametrize("seconds", [0.0, 0.5, 2.0])
    def test_it_ends_with_the_process_that_waits_for_it(self, bundle_path, seconds):
        make_costly(bundle_path)
        code = f"""
from rws.edge.bundle import examine as module
from rws.edge.bundle.contents import BundleFiles
start = module.subprocess.Popen
def popen(*arguments, **options):
    process = start(*arguments, **options)
    print(process.pid, flush=True)
    return process
module.subprocess.Popen = popen
module.examine(BundleFiles.read({str(bundle_path)!r}))
"""
        parent = subprocess.Popen(python_command(code), stdout=subprocess.PIPE)
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(seconds)  # before and after the moment when its rights are gone
        assert alive(child)
        parent.kill()
        parent.communicate()
        deadline = time.monotonic() + 20
        while alive(child):
            assert time.monotonic() < deadline
            time.sleep(0.05)


class TestStop:
    def test_it_ends_an_examination(self, bundle_path):
        make_costly(bundle_path)
        running = Examination(BundleFiles.read(bundle_path))
        timer = threading.Timer(1.0, running.stop)
        timer.start()
        with pytest.raises(StoppedError, match="the test was stopped"):
            running.run()

    def test_it_ends_one_that_has_not_begun(self, tiny_bundle, monkeypatch):
        running = Examination(BundleFiles.read(tiny_bundle.path))
        running.stop()
        monkeypatch.setattr(module.subprocess, "Popen", None)
        with pytest.raises(RwsError, match="the test was stopped"):
            running.run()

    def test_it_does_nothing_after_the_end(self, tiny_bundle):
        running = Examination(BundleFiles.read(tiny_bundle.path))
        assert running.run().signatures == 3
        running.stop()


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
