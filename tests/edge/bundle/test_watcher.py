"""A bundle that changes beneath a running loop: copied file by file, broken, switched, taken back."""

import os
import shutil
import threading
import time

import pytest

from rws.edge.bundle import examine
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.edit import write_bundle
from rws.edge.bundle.manifest import FILES, FOLDER, MANIFEST
from rws.edge.bundle.swap import switch_bundle
from rws.edge.bundle.watcher import BundleWatcher
from rws.edge.common.child import python_command
from rws.edge.common.confine import Limits
from rws.errors import RwsError
from support.bundle_files import edit_manifest, make_costly, replace_file
from support.tiny import bundle_parts


class Clock:
    """Stands until a test moves it on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Watched:
    """A watch, a clock, and what was built so far."""

    def __init__(self, path, build=lambda bundle: bundle.manifest.name, limits=None):
        self.clock, self.built = Clock(), []
        self.build = build
        self.watch = BundleWatcher(path, self._build, interval=1.0, clock=self.clock, limits=limits)

    def _build(self, bundle):
        self.built.append(bundle.manifest.name)
        return self.build(bundle)

    def step(self, seconds=1.0):
        """What `poll` gives after some time, when the thread has done its work."""
        self.clock.now += seconds
        ready = self.watch.poll()
        if self.watch._thread is not None:
            self.watch._thread.join()
        return ready

    def begin(self):
        """Let the watch see a change, and begin to examine it."""
        for _ in range(2):
            self.clock.now += 1
            assert self.watch.poll() is None
        deadline = time.monotonic() + 20
        while self.watch._examination is None or self.watch._examination._process is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self.watch._examination._process

    def steps(self, count=5):
        return [ready for ready in (self.step() for _ in range(count)) if ready is not None]


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    """Bundles that no test may change, by name."""
    folder = tmp_path_factory.mktemp("others")
    return {name: write_bundle(folder / name, bundle_parts(name=name)).path for name in ("second", "third")}


def test_nothing_happens_while_nothing_changes(bundle_path):
    watched = Watched(bundle_path)
    assert watched.steps(10) == []
    assert watched.built == []
    assert (watched.watch.failures, watched.watch.error) == (0, "")


@pytest.mark.parametrize("linked", [False, True])
def test_a_switch_is_taken_up_once(bundle_path, others, tmp_path, linked):
    path = tmp_path / "current" if linked else bundle_path
    if linked:
        path.symlink_to("bundle")
    watched = Watched(path)
    for name in ("second", "third"):
        switch_bundle(path, others[name])
        # Seen, then unchanged for one interval and built, then given.
        assert [watched.step() for _ in range(5)] == [None, None, name, None, None]
    assert watched.built == ["second", "third"]
    if linked:
        switch_bundle(path, bundle_path)
        assert watched.steps() == ["tiny"]
    assert watched.watch.failures == 0


def test_the_folder_is_looked_at_once_an_interval(bundle_path, monkeypatch):
    watched = Watched(bundle_path)
    looks = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *arguments, **more: looks.append(arguments) or stat(*arguments, **more))
    for _ in range(16):
        watched.step(0.25)
    assert len(looks) == 4 * len(FOLDER)


@pytest.mark.parametrize("order", [(MANIFEST, *FILES), (*FILES, MANIFEST), (FILES[0], MANIFEST, *FILES[1:])])
def test_a_folder_that_is_copied_file_by_file_is_loaded_when_it_is_whole(bundle_path, others, order):
    watched = Watched(bundle_path)
    for name in order:
        (bundle_path / name).write_bytes((others["second"] / name).read_bytes())
        assert watched.step() is None
        assert watched.built == []
    assert watched.steps() == ["second"]
    assert watched.watch.failures == 0


def test_a_copy_that_pauses_is_an_error_until_it_goes_on(bundle_path, others):
    watched = Watched(bundle_path)
    shutil.copy(others["second"] / MANIFEST, bundle_path)
    content = (others["second"] / FILES[0]).read_bytes()
    (bundle_path / FILES[0]).write_bytes(content[:100])
    assert watched.steps(10) == []
    assert watched.watch.failures == 1
    assert "truncated" in watched.watch.error
    assert "\n" not in watched.watch.error
    (bundle_path / FILES[0]).write_bytes(content)
    assert watched.steps() == ["second"]
    assert (watched.watch.failures, watched.watch.error) == (1, "")


def test_what_fails_is_not_tried_again_until_it_changes(bundle_path, others):
    def refuse(bundle):
        if bundle.manifest.name == "second":
            raise RwsError("does not run here\nand more")
        return bundle.manifest.name

    watched = Watched(bundle_path, refuse)
    switch_bundle(bundle_path, others["second"])
    assert watched.steps(10) == []
    assert watched.built == ["second"]
    assert (watched.watch.failures, watched.watch.error) == (1, "does not run here")
    (bundle_path / MANIFEST).touch()
    os.utime(bundle_path / MANIFEST, ns=(0, 0))
    assert watched.steps() == []
    assert watched.watch.failures == 2
    switch_bundle(bundle_path, others["third"])
    assert watched.steps() == ["third"]
    assert (watched.watch.failures, watched.watch.error) == (2, "")


def test_a_folder_that_goes_away_and_comes_back_is_no_new_bundle(bundle_path, tmp_path):
    watched = Watched(bundle_path)
    bundle_path.rename(tmp_path / "aside")
    assert watched.steps() == []
    assert watched.watch.failures == 1
    assert "no such folder" in watched.watch.error
    shutil.copytree(tmp_path / "aside", bundle_path)
    assert watched.steps() == []
    assert watched.built == []
    assert (watched.watch.failures, watched.watch.error) == (1, "")


def test_the_same_bundle_written_again_is_not_built_again(bundle_path, tiny_bundle):
    watched = Watched(bundle_path)
    shutil.rmtree(bundle_path)
    shutil.copytree(tiny_bundle.path, bundle_path)
    assert watched.steps() == []
    assert watched.built == []


def test_a_change_during_a_load_waits_for_its_end(bundle_path, others):
    gate, entered = threading.Event(), threading.Event()

    def build(bundle):
        entered.set()
        assert gate.wait(10)
        return bundle.manifest.name

    watched = Watched(bundle_path, build)
    switch_bundle(bundle_path, others["second"])
    for _ in range(2):
        watched.clock.now += 1
        assert watched.watch.poll() is None
    assert entered.wait(10)
    # While the thread is busy the loop goes on, and another change waits.
    switch_bundle(bundle_path, others["third"])
    for _ in range(5):
        watched.clock.now += 1
        assert watched.watch.poll() is None
    assert watched.built == ["second"]
    gate.set()
    watched.watch._thread.join()
    assert watched.steps() == ["second", "third"]
    assert watched.built == ["second", "third"]


def test_after_close_nothing_is_loaded_or_given(bundle_path, others):
    gate, entered = threading.Event(), threading.Event()

    def build(bundle):
        entered.set()
        gate.wait(10)
        return bundle.manifest.name

    watched = Watched(bundle_path, build)
    switch_bundle(bundle_path, others["second"])
    with watched.watch as watch:
        for _ in range(2):
            watched.clock.now += 1
            watch.poll()
        assert entered.wait(10)
        watch.close(timeout=0.01)
        assert watch._thread.is_alive()
        assert watch._thread.daemon
        gate.set()
    assert not watch._thread.is_alive()
    switch_bundle(bundle_path, others["third"])
    assert watched.steps() == []
    assert watched.built == ["second"]


def test_a_bundle_that_changed_before_it_was_loaded_is_noticed(bundle_path, others):
    watched = Watched(bundle_path)
    switch_bundle(bundle_path, others["second"])
    assert Bundle.load(bundle_path).manifest.name == "second"
    assert watched.steps() == ["second"]


def test_an_examination_without_end_is_ended_by_a_newer_bundle(bundle_path, others):
    watched = Watched(bundle_path)
    make_costly(bundle_path)
    process = watched.begin()
    switch_bundle(bundle_path, others["second"])
    assert watched.steps() == ["second"]
    assert process.returncode not in (None, 0)
    assert watched.built == ["second"]
    assert (watched.watch.failures, watched.watch.error) == (0, "")


def test_it_is_examined_again_if_it_comes_back(bundle_path, others, tmp_path):
    watched = Watched(bundle_path)
    switch_bundle(bundle_path, others["second"])
    watched.begin()
    bundle_path.rename(tmp_path / "second")
    watched.clock.now += 1
    assert watched.watch.poll() is None
    (tmp_path / "second").rename(bundle_path)
    assert watched.steps() == ["second"]
    assert watched.watch.failures == 0


def test_closing_ends_an_examination_at_once(bundle_path):
    watched = Watched(bundle_path)
    make_costly(bundle_path)
    process = watched.begin()
    watched.watch.close()
    assert not watched.watch._thread.is_alive()
    assert process.returncode not in (None, 0)
    assert (watched.watch.failures, watched.built) == (0, [])


def test_what_is_built_is_what_was_examined(bundle_path, others, monkeypatch):
    """Whatever is in the folder by then, and even if its files look the same from outside."""
    gate = bundle_path.with_name("gate")
    wait = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
    monkeypatch.setattr(examine, "python_command", lambda code: python_command(wait + code))
    built = []
    watched = Watched(bundle_path, lambda bundle: built.append(bundle.read("model.onnx")))
    switch_bundle_without_examining(bundle_path, others["second"])
    watched.begin()
    good = (bundle_path / "model.onnx").read_bytes()
    for path in bundle_path.iterdir():
        status = path.stat()
        path.write_bytes(b"\xff" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    gate.touch()
    watched.steps(1)
    assert watched.built == ["second"]
    assert built == [good]


def switch_bundle_without_examining(current, new):
    for path in new.iterdir():
        shutil.copy(path, current)


def test_bad_bundles_in_a_row_and_then_a_good_one(bundle_path, others, tiny_bundle, tmp_path):
    watched = Watched(bundle_path, limits=Limits(3.0, 60.0, 2**30))
    whole = (bundle_path / "model.onnx").read_bytes()
    harms = {
        "did not finish within 3 s of processor time": lambda: make_costly(bundle_path),
        "need more than": lambda: make_costly(bundle_path, 2**17, 1),
        "altered": lambda: (bundle_path / "model.onnx").write_bytes(whole[::-1]),
        "not a whole safetensors file": lambda: replace_file(bundle_path, "policy.safetensors", b"{}"),
        "cannot be read": lambda: (bundle_path / "oracle.onnx").unlink(),
        "not valid JSON": lambda: (bundle_path / "bundle.json").write_text("{"),
        "no such folder": lambda: shutil.rmtree(bundle_path),
    }
    for count, (message, harm) in enumerate(harms.items(), start=1):
        switch_bundle_without_examining(bundle_path, tiny_bundle.path)
        edit_manifest(bundle_path, lambda document, name=f"bad{count}": document.update(name=name))
        harm()
        assert watched.steps() == []
        assert watched.watch.failures == count
        assert message in watched.watch.error
    shutil.copytree(others["second"], bundle_path)
    assert watched.steps() == ["second"]
    assert watched.built == ["second"]
    assert (watched.watch.failures, watched.watch.error) == (7, "")
