"""The cache of learned graphs: used only if it is ours, whole and for this model; never in the way."""

import json
import os
import stat
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from rws.edge.common.child import python_command
from rws.edge.live import cache
from rws.edge.live.cache import cache_folder, processor
from rws.edge.live.session import LiveSession
from rws.edge.onnx.graph import prepare
from support.tiny import network

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there is no cache on Windows")
RNG = np.random.default_rng(0)
X = RNG.random((2, 3, 8, 8), np.float32)
FC = ("head.weight", "head.bias")


# All that a session needs is imported and read once before the process is confined.
CONFINED = """
import os
import numpy.ma, numpy.random
from rws.edge.common.confine import Limits, confine
from rws.edge.live.session import LiveSession
data = open({model!r}, "rb").read()
LiveSession(data, provider="cpu", threads=1, layers=2, cache={folder!r})
confine(Limits(60, 120, 2**31))
LiveSession(data, provider="cpu", threads=1, layers=2, cache={folder!r})
os.write(1, b"opened")
"""


def no_thread(*work):
    raise RuntimeError("can't start new thread")


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(network(3, 4, seed=0).SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


def opened(model, folder, **options) -> LiveSession:
    options = options or {"layers": 2}
    return LiveSession(model, provider="cpu", threads=1, cache=folder, **options)


def entry(folder: Path) -> Path:
    (found,) = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return found


def check(session: LiveSession, model: Path) -> None:
    """Weights that are written must give what a file with them gives; `reset` what the file gives."""
    fresh = prepare(onnx.load(model))
    clean = onnxruntime.InferenceSession(fresh.SerializeToString()).run(None, {"image": X})[0]
    assert session.run(None, {"image": X})[0].tobytes() == clean.tobytes()
    for name in session.tensor_names:
        tensor = next(tensor for tensor in fresh.graph.initializer if tensor.name == name)
        array = RNG.normal(0, 0.3, tuple(tensor.dims)).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, name))
        session.write(name, array)
    expected = onnxruntime.InferenceSession(fresh.SerializeToString()).run(None, {"image": X})[0]
    assert session.run(None, {"image": X})[0].tobytes() == expected.tobytes()
    session.reset()
    assert session.run(None, {"image": X})[0].tobytes() == clean.tobytes()


class TestUsed:
    @pytest.mark.parametrize("options", [{"layers": 2}, {"tensors": FC}, {"tensors": ("features.0.bias", *FC)}])
    def test_the_second_session_is_as_live_as_the_first(self, model, folder, options):
        first, second = opened(model, folder, **options), opened(model, folder, **options)
        assert (first.from_cache, second.from_cache) == (False, True)
        assert second.tensor_names == first.tensor_names
        assert second.description == first.description
        for session in (first, second):
            check(session, model)

    def test_for_bytes_and_for_a_model_in_memory(self, model, folder):
        given = model.read_bytes()
        opened(given, folder)
        for same in (given, model):
            session = opened(same, folder)
            assert session.from_cache
            check(session, model)
        proto = onnx.load(model)
        opened(proto, folder)
        assert opened(proto, folder).from_cache

    def test_in_another_process(self, model, folder):
        code = (
            "import sys; from rws import LiveSession\n"
            "s = LiveSession(sys.argv[1], layers=2, provider='cpu', threads=1, cache=sys.argv[2])\n"
            "print(s.from_cache)"
        )
        command = [sys.executable, "-c", code, str(model), str(folder)]
        said = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
        assert said == ["False\n", "True\n"]

    def test_on_a_sample_of_ones_own(self, model, folder):
        sample = {"image": X}
        opened(model, folder, layers=1, sample=sample)
        assert opened(model, folder, layers=1, sample=sample).from_cache
        assert not opened(model, folder, layers=1, sample={"image": 1 - X}).from_cache
        assert not opened(model, folder, layers=1, sample=(8, 8)).from_cache

    @pytest.mark.parametrize(
        "changes",
        [{"layers": 1}, {"layers": 2, "strategy": "split"}, {"tensors": FC}],
        ids=["layers", "strategy", "tensors"],
    )
    def test_other_options_are_another_entry(self, model, folder, changes):
        opened(model, folder)
        assert not opened(model, folder, **changes).from_cache

    def test_the_processor_and_the_versions_count(self, model, folder, monkeypatch):
        opened(model, folder)
        monkeypatch.setattr(cache, "processor", lambda: "another one")
        assert not opened(model, folder).from_cache
        assert opened(model, folder).from_cache
        monkeypatch.setattr(onnxruntime, "__version__", "99.0")
        assert not opened(model, folder).from_cache
        assert processor()

    def test_another_model_of_the_same_structure(self, model, folder):
        opened(model, folder)
        model.write_bytes(network(3, 4, seed=1).SerializeToString())
        session = opened(model, folder)
        assert not session.from_cache
        check(session, model)

    def test_a_model_that_looks_the_same_where_it_is_sampled(self, model, folder, monkeypatch):
        monkeypatch.setattr(cache, "_SAMPLE", 1)
        proto = network(3, 4, seed=0)
        opened(model, folder)
        weights = next(tensor for tensor in proto.graph.initializer if tensor.name == "features.1.weight")
        weights.raw_data = weights.raw_data[:400] + np.float32(2.5).tobytes() + weights.raw_data[404:]
        model.write_bytes(proto.SerializeToString())
        session = opened(model, folder)
        assert not session.from_cache
        check(session, model)

    def test_a_model_with_weights_in_another_file_is_not_kept(self, model, folder):
        onnx.save(onnx.load(model), model, save_as_external_data=True, location="weights.bin", size_threshold=0)
        for _ in range(2):
            assert not opened(model, folder).from_cache


def damaged(name):
    def change(path: Path) -> None:
        data = bytearray((path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (path / name).write_bytes(data)

    return change


def truncated(name):
    def change(path: Path) -> None:
        (path / name).write_bytes((path / name).read_bytes()[:-7])

    return change


def linked(path: Path) -> None:
    (path / "graph.onnx").rename(path.parent / ".elsewhere")
    (path / "graph.onnx").symlink_to(path.parent / ".elsewhere")


def endless(path: Path) -> None:
    (path / "layout.bin").unlink()
    os.mkfifo(path / "layout.bin")


def rewritten(**changes):
    """Change the description, with checksums that hold."""

    def change(path: Path) -> None:
        import hashlib

        about = json.loads((path / "entry.json").read_bytes().split(b"\n", 1)[1]) | changes
        text = json.dumps(about).encode()
        (path / "entry.json").write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)

    return change


def other_graph(path: Path) -> None:
    """Another graph that fits, with a checksum that holds: only its outputs tell."""
    graph = onnx.load(path / "graph.onnx")
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name.startswith("head.weight"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    (path / "graph.onnx").write_bytes(graph.SerializeToString())
    rewritten(graph=zlib.crc32((path / "graph.onnx").read_bytes()))(path)


HARM = {
    **{f"damaged {name}": damaged(name) for name in ("graph.onnx", "layout.bin", "entry.json")},
    **{f"truncated {name}": truncated(name) for name in ("graph.onnx", "layout.bin", "entry.json")},
    **{f"missing {name}": lambda path, name=name: (path / name).unlink() for name in ("graph.onnx", "layout.bin")},
    "a link": linked,
    "a pipe": endless,
    "another graph": other_graph,
    "huge": rewritten(lengths=[10**18, 10**18]),
    "negative": rewritten(lengths=[-1, 5]),
    "no description": rewritten(clean=None),
    "of another model": rewritten(model="0" * 64),
    "other outputs": rewritten(outputs="0" * 64),
    "written by the group": lambda path: path.chmod(0o770),
    "written by others": lambda path: (path / "graph.onnx").chmod(0o606),
    "a folder written by others": lambda path: path.parent.chmod(0o777),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM.keys())
def test_an_entry_that_cannot_be_believed_is_not_used(model, folder, harm):
    opened(model, folder)
    harm(entry(folder))
    session = opened(model, folder)
    assert not session.from_cache
    check(session, model)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can give files away")
def test_an_entry_of_another_user_is_not_used(model, folder):
    opened(model, folder)
    os.chown(entry(folder) / "graph.onnx", 12345, 12345)
    assert not opened(model, folder).from_cache
    assert opened(model, folder).from_cache  # rebuilt
    os.chown(folder, 12345, 12345)
    assert not opened(model, folder).from_cache


def test_an_entry_is_for_its_user_alone(model, folder):
    before = os.umask(0)
    try:
        opened(model, folder)
    finally:
        os.umask(before)
    made = entry(folder)
    for path in (folder, made, *made.iterdir()):
        assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO), path
    assert opened(model, folder).from_cache


class TestNone:
    @pytest.mark.parametrize("choice", [False, None, "", "off"])
    def test_it_can_be_switched_off(self, model, choice, monkeypatch):
        assert cache_folder(choice) is None
        assert not opened(model, choice).from_cache
        monkeypatch.setenv("RWS_CACHE", "off")
        assert cache_folder(True) is None

    def test_where_it_is(self, tmp_path, monkeypatch):
        monkeypatch.delenv("RWS_CACHE")
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache_folder(True) == tmp_path / "rws"
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache_folder(True) == tmp_path / ".cache" / "rws"
        monkeypatch.setenv("RWS_CACHE", str(tmp_path / "mine"))
        assert cache_folder(True) == tmp_path / "mine"

    def test_a_user_without_a_home(self, model, monkeypatch):
        monkeypatch.delenv("RWS_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        assert cache_folder(True) is None
        assert not LiveSession(model, layers=2, threads=1).from_cache

    @pytest.mark.parametrize("written", [False, True])
    def test_where_no_thread_can_be_started(self, model, folder, written, monkeypatch):
        if written:
            opened(model, folder)
        monkeypatch.setattr(ThreadPoolExecutor, "submit", no_thread)
        session = opened(model, folder)
        assert session.from_cache == written
        check(session, model)

    @pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limits")
    def test_in_a_confined_process(self, model, folder):
        opened(model, folder)
        code = CONFINED.format(model=str(model), folder=str(folder))
        done = subprocess.run(python_command(code), capture_output=True, text=True, check=False, timeout=120)
        assert done.stdout == "opened", done.stderr

    def test_a_place_that_cannot_be_written(self, model, tmp_path):
        (tmp_path / "file").write_text("")
        for place in (tmp_path / "file", "/proc/nowhere"):
            assert not opened(model, place).from_cache
            check(opened(model, place), model)

    def test_no_room(self, model, folder, monkeypatch):
        monkeypatch.setattr(cache, "LIMIT", 100)
        for _ in range(2):
            assert not opened(model, folder).from_cache
        assert not any(folder.iterdir())


def test_what_was_not_used_for_longest_is_removed(model, folder, monkeypatch):
    monkeypatch.setattr(cache, "LIMIT", 3 * 20_000)
    sizes = []
    for seed in range(8):
        model.write_bytes(network(3, 4, seed=seed).SerializeToString())
        opened(model, folder)
        os.utime(folder / max(os.listdir(folder), key=lambda name: (folder / name).stat().st_mtime), (seed, seed))
        sizes.append(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
    assert max(sizes) <= 3 * 20_000
    assert opened(model, folder).from_cache
    model.write_bytes(network(3, 4, seed=0).SerializeToString())
    assert not opened(model, folder).from_cache


def test_what_a_killed_writer_left_is_removed(model, folder):
    opened(model, folder)
    left = folder / f".{'0' * 32}.12345678.tmp"
    left.mkdir()
    opened(model, folder, layers=1)
    assert not left.exists()
