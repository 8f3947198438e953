import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rws.errors import InputError
from rws.training.jobs.graph import Job, run
from rws.training.jobs.store import ARRAYS, JSON, SCORED, STATE, Codec, Store, claim
from rws.training.jobs.workers import Here

NAMES = [f"job{number}" for number in range(6)]
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Recipe:
    """What an identity may hold."""

    epochs: int = 2
    widths: tuple[int, ...] = (8, 8)


class Counted:
    """Makes the given values, one after another."""

    def __init__(self, *values) -> None:
        self.values, self.calls = list(values), 0

    def __call__(self):
        self.calls += 1
        return self.values[self.calls - 1]


def never():
    raise AssertionError("made again")


def make_slowly(folder):
    time.sleep(0.2)
    with open(folder / "log", "a") as handle:
        handle.write(f"{os.getpid()}\n")
    return {"made": 1}


def get_slowly(folder):
    assert Store(folder).get("a.json", 1, partial(make_slowly, folder), JSON) == {"made": 1}


def make_job(folder, name):
    time.sleep(0.05)
    with open(folder / "log", "a") as handle:
        handle.write(f"{name} {os.getpid()}\n")
    return "done"


def share(folder):
    store = Store(folder)
    jobs = {name: partial(store.get, f"{name}.json", 0, partial(make_job, folder, name), JSON) for name in NAMES}
    graph = {name: Job(job) for name, job in jobs.items()}
    run(graph, Here(graph, folder), quiet=True)


def hold(folder, started):
    with claim(folder, "job0", wait=True):
        started.set()
        time.sleep(60)


def write_and_die(folder, started):
    def die():
        started.set()
        time.sleep(60)

    Store(folder).get("a.json", 1, die, JSON)


def test_what_is_made_from_the_same_is_made_once(tmp_path):
    make = Counted({"ta": 90.5})
    for recipe in (Recipe(), Recipe(2, (8, 8))):
        assert Store(tmp_path).get("a.json", ["digest", recipe], make, JSON) == {"ta": 90.5}
    assert make.calls == 1


@pytest.mark.parametrize("other", [["digest", Recipe(3)], ["other", Recipe()], [Recipe()], None])
def test_what_is_made_from_something_else_is_made_again(tmp_path, other):
    store, make = Store(tmp_path), Counted(1, 2, 3)
    assert store.get("a.json", ["digest", Recipe()], make, JSON) == 1
    assert store.get("a.json", other, make, JSON) == 2
    assert store.get("a.json", ["digest", Recipe()], make, JSON) == 3


def test_a_store_may_refuse_what_was_made_from_something_else(tmp_path):
    store = Store(tmp_path, "refuse")
    assert store.get("a.json", 1, Counted(5), JSON) == 5
    with pytest.raises(InputError, match=r"a\.json was made from another recipe or data; remove it"):
        store.get("a.json", 2, never, JSON)
    (tmp_path / "b.json").write_text("6")
    with pytest.raises(InputError, match=r"b\.json was made from another recipe"):
        store.get("b.json", 1, never, JSON)
    assert store.get("a.json", 1, never, JSON) == 5


def test_a_store_may_keep_a_file_for_each_identity(tmp_path):
    store = Store(tmp_path, "keep")
    assert [store.get("a.json", identity, Counted(identity), JSON) for identity in (1, 2)] == [1, 2]
    assert [store.get("a.json", identity, never, JSON) for identity in (1, 2)] == [1, 2]
    assert len(list(tmp_path.glob("a-*.json"))) == 2


def test_a_store_without_a_folder_or_without_resuming_always_makes(tmp_path):
    make = Counted(1, 2, 3, 4)
    for store in (Store(None), Store(tmp_path, resume=False)):
        assert [store.get("a.json", 1, make, JSON) for _ in range(2)] == [make.calls - 1, make.calls]
    assert Store(tmp_path).get("a.json", 1, never, JSON) == 4


def test_looking_writes_nothing(tmp_path):
    assert Store(tmp_path / "none").entry("a.json", 1, JSON).load() is None
    assert not (tmp_path / "none").exists()
    store = Store(tmp_path)
    store.get("a.json", 1, Counted(1), JSON)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert store.entry("a.json", 2, JSON).load() is None
    assert store.entry("b.json", 1, JSON).load() is None
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@given(place=st.integers(0, 10**6), mask=st.integers(1, 255), cut=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_a_damaged_file_is_made_again_or_refused_by_name(tmp_path, place, mask, cut):
    made, identity = {"x": np.arange(20), "text": np.array("fog")}, ["digest", 7]
    entry = Store(tmp_path).entry("a.npz", identity, ARRAYS)
    entry.save(made)
    path = tmp_path / "a.npz"
    content = bytearray(path.read_bytes())
    place %= len(content)
    content[place] ^= mask
    path.write_bytes(content[:place] if cut else content)
    assert entry.load() is None
    with pytest.raises(InputError, match=r"a\.npz is damaged; remove it"):
        Store(tmp_path, "refuse").get("a.npz", identity, never, ARRAYS)
    found = entry.get(lambda: made)
    np.testing.assert_array_equal(found["x"], made["x"])


@pytest.mark.parametrize("note", [b"", b"[1]", b'{"identity": 1}', b"\xff"])
def test_a_file_with_a_damaged_note_is_made_again(tmp_path, note):
    store = Store(tmp_path)
    store.get("a.json", 1, Counted(1), JSON)
    (tmp_path / "a.json.from").write_bytes(note)
    assert store.get("a.json", 1, Counted(2), JSON) == 2


@pytest.mark.parametrize("other", ["remake", "refuse", "keep"])
@pytest.mark.parametrize("written", [0, 1])
def test_a_write_that_was_stopped_half_way_is_repeated(tmp_path, monkeypatch, written, other):
    from rws.training.jobs import store as module

    write, done = module.atomic_write_bytes, []

    def stop(path, content, **settings):
        if len(done) == written:
            raise KeyboardInterrupt
        done.append(write(path, content, **settings))

    monkeypatch.setattr(module, "atomic_write_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path, other).get("a.json", 1, Counted(1), JSON)
    monkeypatch.undo()
    assert Store(tmp_path, other).get("a.json", 1, Counted(2), JSON) == 2
    assert Store(tmp_path, other).get("a.json", 1, never, JSON) == 2


def test_making_that_was_killed_is_repeated(tmp_path):
    started = FORK.Event()
    process = FORK.Process(target=write_and_die, args=(tmp_path, started))
    process.start()
    assert started.wait(10)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert Store(tmp_path).get("a.json", 1, Counted(2), JSON) == 2


def test_two_processes_make_it_once(tmp_path):
    others = [FORK.Process(target=get_slowly, args=(tmp_path,)) for _ in range(2)]
    for process in others:
        process.start()
    get_slowly(tmp_path)
    for process in others:
        process.join()
    assert [process.exitcode for process in others] == [0, 0]
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_a_making_that_fails_leaves_nothing_and_keeps_its_checkpoint(tmp_path):
    entry = Store(tmp_path).entry("a.pt", Recipe(), STATE)

    def stop():
        entry.checkpoint.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        entry.get(stop)
    assert entry.load() is None
    assert entry.checkpoint.read_bytes() == b"half"
    assert Store(tmp_path).entry("a.pt", Recipe(3), STATE).checkpoint != entry.checkpoint
    entry.get(lambda: {"w": torch.ones(2)})
    assert not entry.checkpoint.exists()


def test_making_leaves_a_line_in_the_log(tmp_path, caplog):
    caplog.set_level("INFO", "rws.training.jobs.store")
    for identity in (1, 1, 2):
        Store(tmp_path).get("a.json", identity, Counted(identity), JSON)
    assert caplog.messages == [f"making {tmp_path / 'a.json'}", f"making {tmp_path / 'a.json'}, damaged or outdated"]


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (JSON, {"rows": [{"ta": 90.5, "name": None}]}),
        (ARRAYS, {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array("text")}),
        (STATE, {"w": torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last), "n": torch.tensor(3)}),
        (SCORED, (b"\x00network", {"recall": 97.5})),
    ],
)
def test_values_come_back_as_they_were(tmp_path, codec, value):
    made = Store(tmp_path).get("a.x", 0, lambda: value, codec)
    for found in (made, Store(tmp_path).get("a.x", 0, never, codec)):
        if codec in (JSON, SCORED):
            assert found == value
        else:
            assert found.keys() == value.keys()
            assert all(np.array_equal(found[key], value[key]) for key in value)


def test_the_note_says_what_a_file_was_made_from(tmp_path):
    Store(tmp_path).get("a.json", ["digest", Recipe()], Counted(1), JSON)
    note = json.loads((tmp_path / "a.json.from").read_text())
    assert note["identity"] == ["digest", {"epochs": 2, "widths": [8, 8]}]


def test_processes_share_the_jobs_and_all_are_done_when_any_of_them_returns(tmp_path):
    others = [FORK.Process(target=share, args=(tmp_path,)) for _ in range(2)]
    for process in others:
        process.start()
    share(tmp_path)
    assert all((tmp_path / f"{name}.json").exists() for name in NAMES)
    for process in others:
        process.join()
    done = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(name for name, _ in done) == NAMES
    assert len({process for _, process in done}) > 1


def test_a_claim_is_refused_while_it_is_held_and_free_when_its_process_dies(tmp_path):
    started = FORK.Event()
    holder = FORK.Process(target=hold, args=(tmp_path, started))
    holder.start()
    assert started.wait(10)
    with claim(tmp_path, "job0", wait=False) as held:
        assert not held
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with claim(tmp_path, "job0", wait=False) as held:
        assert held


@pytest.mark.parametrize("other", ["remake", "refuse", "keep"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "folder as note", "pipe as note"])
def test_a_folder_or_pipe_is_named_before_anything_is_made(tmp_path, other, kind):
    store = Store(tmp_path, other)
    store.get("a.json", 1, Counted(1), JSON)
    (path,) = tmp_path.glob("a*.from" if "note" in kind else "a*.json")
    path.unlink()
    path.mkdir() if "folder" in kind else os.mkfifo(path)
    with pytest.raises(InputError, match=r"json: cannot be read .*remove it"):
        store.get("a.json", 1, never, JSON)


@pytest.mark.parametrize("codec", [JSON, ARRAYS, STATE, SCORED], ids=["json", "arrays", "state", "scored"])
def test_content_of_another_kind_is_named_even_if_its_note_agrees(tmp_path, codec):
    for content in (b"", b"[" * 100_000, b"PK\x03\x04", b"\x80\x04."):
        raw = Codec(lambda value: value, lambda data: data)
        Store(tmp_path).entry("a", 1, raw).save(content)
        with pytest.raises(InputError, match=r"a: cannot be read .*remove it to have it made again"):
            Store(tmp_path).get("a", 1, never, codec)


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    (tmp_path / ".a.json.0123abcd.tmp").write_bytes(b"half")
    (tmp_path / ".a.json.lock").write_text("99999999")  # of a process that is dead
    assert Store(tmp_path).get("a.json", 1, Counted(1), JSON) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.json.from"]
