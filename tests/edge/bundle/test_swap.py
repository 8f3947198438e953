"""`rws bundle switch`: all of the new bundle or all of the old one."""

import json
import os
import shutil
import threading

import pytest
from typer.testing import CliRunner

from rws.cli import app
from rws.edge.bundle import edit
from rws.edge.bundle import swap as switch
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.edit import write_bundle
from rws.edge.bundle.examine import examine
from rws.edge.bundle.manifest import FILES
from rws.edge.bundle.swap import switch_bundle
from rws.errors import BundleError, InputError, RwsError
from support.tiny import CLASSES, bundle_parts


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory):
    """A bundle with the classes of the tiny one that no test may change."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "other", bundle_parts(name="other")).path


@pytest.fixture
def new(other_bundle, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    return shutil.copytree(other_bundle, tmp_path / "elsewhere" / "v2")


@pytest.fixture
def current(bundle_path):
    return bundle_path


@pytest.fixture
def link(current):
    """`current`, a relative link to `bundle`."""
    link = current.with_name("current")
    link.symlink_to("bundle")
    return link


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rws(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_folder_is_replaced_by_a_copy(current, new, tmp_path):
    before = content(new)
    changed = switch_bundle(current, new)
    assert (changed.path, changed.manifest.name) == (current, "other")
    assert content(current) == content(new) == before
    assert Bundle.load(current).manifest.name == "other"
    assert sorted(os.listdir(tmp_path)) == ["bundle", "elsewhere"]


def test_what_is_not_there_yet_is_made(new, tmp_path):
    assert switch_bundle(tmp_path / "first", new).manifest.name == "other"
    assert content(tmp_path / "first") == content(new)


def test_a_reader_sees_one_bundle_or_the_other(current, new, tiny_bundle):
    stop = threading.Event()
    seen, errors = set(), []

    def read():
        while not stop.is_set():
            folder = os.open(current, os.O_RDONLY)
            try:
                files = {}
                for name in os.listdir(folder):
                    with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=folder), "rb") as file:
                        files[name] = file.read()
            except FileNotFoundError:
                continue  # the folder that was opened has been replaced and is being removed
            finally:
                os.close(folder)
            if len(files) < 1 + len(FILES):
                continue  # the same, caught between two removals
            for name, entry in json.loads(files["bundle.json"])["files"].items():
                if len(files[name]) != entry["bytes"]:
                    errors.append(name)
            seen.add(json.loads(files["bundle.json"])["name"])

    reader = threading.Thread(target=read)
    reader.start()
    for source in (new, tiny_bundle.path, new, tiny_bundle.path):
        switch_bundle(current, source)
    stop.set()
    reader.join()
    assert errors == []
    assert seen <= {"tiny", "other"}


def test_a_link_is_pointed_to_a_copy_next_to_the_old_folder(link, current, new, tmp_path):
    before = content(current)
    changed = switch_bundle(link, new)
    assert changed.path == link
    assert os.readlink(link) == "v2"
    assert content(tmp_path / "v2") == content(new)
    assert content(current) == before
    # And back: the old one is in its place already.
    assert switch_bundle(link, current).manifest.name == "tiny"
    assert os.readlink(link) == "bundle"
    assert sorted(os.listdir(tmp_path)) == ["bundle", "current", "elsewhere", "v2"]


def test_an_absolute_link_stays_absolute_and_others_are_followed(current, new, tmp_path):
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "current"
    link.symlink_to(current)
    switch_bundle(link, new)
    assert os.readlink(link) == str(tmp_path / "v2")
    chain = tmp_path / "links" / "chain"
    chain.symlink_to("current")
    switch_bundle(chain, current)
    assert os.readlink(chain) == "../bundle"
    assert os.readlink(link) == str(tmp_path / "v2")


def test_a_link_does_not_take_another_bundles_place(link, current, new, tmp_path):
    shutil.copytree(current, tmp_path / "v2")
    before = content(tmp_path / "v2")
    with pytest.raises(InputError, match=r"v2: is there already, and .*current would"):
        switch_bundle(link, new)
    assert content(tmp_path / "v2") == before
    assert os.readlink(link) == "bundle"


@pytest.mark.parametrize("linked", [False, True])
def test_other_classes_must_be_said(current, link, new, tmp_path, linked):
    target = link if linked else current
    write_bundle(new, bundle_parts(classes=("circle", "square", "star", "heart")))
    with pytest.raises(InputError, match=r"other classes than .* \(without wave; with heart\); add --other-classes"):
        switch_bundle(target, new)
    assert Bundle.load(target).manifest.classes == CLASSES
    assert switch_bundle(target, new, other_classes=True).manifest.classes[-1] == "heart"


def test_the_same_classes_in_another_order_are_others(current, new):
    write_bundle(new, bundle_parts(classes=CLASSES[::-1]))
    with pytest.raises(InputError, match=r"\(the same in another order\)"):
        switch_bundle(current, new)


def test_a_broken_current_bundle_can_be_replaced_on_demand(current, new):
    (current / "bundle.json").write_text("{")
    with pytest.raises(BundleError, match="add --other-classes to replace it anyway"):
        switch_bundle(current, new)
    assert (current / "bundle.json").read_text() == "{"
    switch_bundle(current, new, other_classes=True)
    assert content(current) == content(new)


def damage(new):
    (new / "oracle.onnx").write_bytes((new / "oracle.onnx").read_bytes()[:-1])


def drop(new):
    (new / "model.onnx").unlink()


@pytest.mark.parametrize("harm", [damage, drop, shutil.rmtree])
@pytest.mark.parametrize("linked", [False, True])
def test_a_new_bundle_that_is_not_whole_is_refused(current, link, new, tmp_path, harm, linked):
    before = content(current)
    harm(new)
    with pytest.raises(BundleError, match="v2"):
        switch_bundle(link if linked else current, new)
    assert content(current) == before
    assert sorted(os.listdir(tmp_path)) == ["bundle", "current", "elsewhere"]


def test_a_new_bundle_that_does_not_work_is_refused(current, new, monkeypatch):
    def fail(files):
        raise RwsError(f"{files.path}: does not run")

    monkeypatch.setattr(switch, "examine", fail)
    before = content(current)
    with pytest.raises(RwsError, match="does not run"):
        switch_bundle(current, new)
    assert content(current) == before


def test_what_was_tested_is_what_is_put_in_place(current, new, tiny_bundle, monkeypatch):
    def change(files):
        for path in tiny_bundle.path.iterdir():
            shutil.copy(path, new)
        return examine(files)

    monkeypatch.setattr(switch, "examine", change)
    before = content(new)
    assert switch_bundle(current, new).manifest.name == "other"
    assert content(current) == before != content(new)


@pytest.mark.parametrize("linked", [False, True])
def test_a_disk_that_fails_leaves_all_as_it_was(current, link, new, tmp_path, monkeypatch, linked):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    before = content(current)
    with pytest.raises(BundleError, match=r"cannot be written \(No space left on device\)"):
        switch_bundle(link if linked else current, new)
    assert content(current) == before
    assert os.readlink(link) == "bundle"
    assert sorted(os.listdir(tmp_path)) == ["bundle", "current", "elsewhere"]


def test_a_disk_that_fails_while_a_bundle_is_signed(current, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(edit, "sign", lambda *_: (bytes(64), "id"))
    with pytest.raises(BundleError, match=r"bundle: cannot be written \(No space left on device\); give a folder"):
        edit.sign_bundle(current, tmp_path / "maker.key", bytes)
    assert not (current / "bundle.sig").exists()


def test_a_folder_that_is_not_a_bundle_is_never_replaced(current, new, tmp_path):
    (current / "notes.txt").touch()
    with pytest.raises(BundleError, match=r"holds 'notes\.txt', which is not part of a bundle"):
        switch_bundle(current, new)
    with pytest.raises(BundleError, match="holds 'v2', which is not part"):
        switch_bundle(new.parent, new)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="file: cannot be written, it is a file"):
        switch_bundle(tmp_path / "file", new)
    assert new.is_dir()


@pytest.mark.parametrize("same", ["bundle", "current", "elsewhere/../bundle"])
def test_a_bundle_is_not_switched_with_itself(current, link, new, tmp_path, same):
    with pytest.raises(InputError, match="already; give the folder of another bundle"):
        switch_bundle(current, tmp_path / same)


def test_the_command(current, link, new, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = rws("bundle", "switch", "bundle", "elsewhere/v2")
    assert result.exit_code == 0
    assert result.output == f"{tmp_path / 'bundle'} is now other: 4 classes, 3 signatures\n"
    result = rws("bundle", "switch", "current", "elsewhere/v2")
    assert result.exit_code == 0
    assert f"{tmp_path / 'current'} -> v2 is now other" in result.output
    damage(new)
    result = rws("bundle", "switch", "bundle", "elsewhere/v2")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "truncated" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    result = rws("bundle", "switch", "--help")
    assert "rws bundle switch" in result.output
