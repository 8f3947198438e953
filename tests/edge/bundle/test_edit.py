import multiprocessing
import os

import pytest

from rws.edge.bundle import edit
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.edit import add_signatures, changing, remove_signature, write_bundle
from rws.edge.common.files import locked
from rws.errors import BundleError, InUseError
from support.tiny import bundle_parts, clean, make_signatures

SPAWN = multiprocessing.get_context("spawn")


def add(path, name, ready, go):
    ready.release()
    assert go.wait(60)
    add_signatures(path, make_signatures(clean(), [name]))


def test_several_that_add_at_once_lose_nothing(bundle_path):
    before = set(Bundle.load(bundle_path).signatures.names)
    names = ["one", "two", "three"]
    ready, go = SPAWN.Semaphore(0), SPAWN.Event()
    adding = [SPAWN.Process(target=add, args=(bundle_path, name, ready, go)) for name in names]
    for process in adding:
        process.start()
    for _ in adding:
        assert ready.acquire(timeout=60)
    go.set()
    for process in adding:
        process.join()
    assert [process.exitcode for process in adding] == [0, 0, 0]
    assert set(Bundle.load(bundle_path).signatures.names) == before | set(names)
    assert os.listdir(bundle_path.parent) == ["bundle"]


@pytest.mark.parametrize(
    "change",
    [
        lambda path: add_signatures(path, make_signatures(clean(), ["new"])),
        lambda path: remove_signature(path, "fog"),
        lambda path: write_bundle(path, bundle_parts()),
    ],
    ids=["add", "remove", "write"],
)
def test_a_change_waits_for_another_only_so_long(bundle_path, tmp_path, monkeypatch, change):
    monkeypatch.setattr(edit, "locked", lambda path: locked(path, 0.1))
    (tmp_path / "link").symlink_to(bundle_path)
    before = (bundle_path / "bundle.json").read_bytes()
    for path in (bundle_path, tmp_path / "link"):
        with changing(bundle_path), pytest.raises(InUseError, match=f"is being changed by process {os.getpid()}"):
            change(path)
    assert (bundle_path / "bundle.json").read_bytes() == before


def test_a_change_through_a_link_stays_in_the_folder_that_it_led_to_at_first(bundle_path, tmp_path, monkeypatch):
    other = write_bundle(tmp_path / "other", bundle_parts(name="other")).path
    (tmp_path / "link").symlink_to(bundle_path)
    load = Bundle.load

    def load_and_point_elsewhere(path):
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to(other)
        monkeypatch.undo()
        return load(path)

    monkeypatch.setattr(Bundle, "load", load_and_point_elsewhere)
    assert add_signatures(tmp_path / "link", make_signatures(clean(), ["new"])).path == tmp_path / "link"
    assert "new" in Bundle.load(bundle_path).signatures.names
    assert "new" not in Bundle.load(other).signatures.names


def test_a_place_where_nothing_can_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"bundle: cannot be written \(.*\); give a folder that can"):
        write_bundle(tmp_path / "file" / "bundle", bundle_parts())
    with pytest.raises(BundleError, match=r"bundle: cannot be written \(No such file or directory\)"):
        remove_signature(tmp_path / "none" / "bundle", "fog")
    with pytest.raises(BundleError, match="no such folder"):
        remove_signature(tmp_path / "bundle", "fog")
