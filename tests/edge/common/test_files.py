import os

import pytest

from rws.edge.common import files as atomic
from rws.edge.common.files import atomic_path, atomic_write_bytes, check_target, read_regular, write_text


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "file"
    for content in (b"old", b"new"):
        atomic_write_bytes(path, content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_stays_and_its_target_changes(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    atomic_write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert check_target(fifo) == fifo
    write_text(fifo, "text")
    assert os.read(reading, 100) == b"text"
    os.close(reading)
    assert fifo.is_fifo()
    assert os.listdir(tmp_path) == ["fifo"]


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def exchange(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)


def write_folder(path, content):
    with atomic_path(path, folder=True) as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "deep" / content).write_text(content)


@pytest.mark.usefixtures("exchange")
def test_a_folder_takes_the_place_of_a_folder(tmp_path):
    for content in ("old", "new"):
        write_folder(tmp_path / "folder", content)
        assert os.listdir(tmp_path / "folder" / "deep") == [content]
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path, error):
    def fail():
        with atomic_path(tmp_path / "folder", folder=True) as temporary:
            (temporary / "half").write_text("half")
            raise error

    write_folder(tmp_path / "folder", "old")
    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(tmp_path / "folder" / "deep") == ["old"]


def test_the_old_folder_comes_back_when_the_second_rename_fails(tmp_path, monkeypatch):
    rename = os.rename
    calls = []

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError("no space")
        rename(source, target)

    write_folder(tmp_path / "folder", "old")
    monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
    monkeypatch.setattr(atomic.os, "rename", second_fails)
    with pytest.raises(OSError, match="no space"):
        write_folder(tmp_path / "folder", "new")
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(tmp_path / "folder" / "deep") == ["old"]


def test_a_text_goes_to_a_new_folder_or_to_stdout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "new" / "a.csv", "é\n")
    assert (tmp_path / "new" / "a.csv").read_bytes() == "é\n".encode()
    assert capsys.readouterr().out == ""
    write_text(check_target("-"), "a,b\n")
    assert capsys.readouterr().out == "a,b\n"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_only_regular_files_up_to_a_size_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    assert read_regular(tmp_path / "link", 5) == b"12345"
    for path, message in ((tmp_path / "pipe", "not a regular file"), ("/dev/zero", "not a regular file")):
        with pytest.raises(OSError, match=message):  # at once
            read_regular(path, 5)
    with pytest.raises(OSError, match="has 5 bytes, expected at most 4"):
        read_regular(tmp_path / "file", 4)
    with pytest.raises(OSError, match="link"):
        read_regular(tmp_path / "link", 5, follow=False)
    with pytest.raises(OSError, match=r"directory|regular"):
        read_regular(tmp_path, 5)
