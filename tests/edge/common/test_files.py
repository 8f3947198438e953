import itertools
import multiprocessing
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from contextlib import suppress

import pytest

from rws.edge.common import files as atomic
from rws.edge.common.child import python_command
from rws.edge.common.files import (
    OpenFolder,
    atomic_path,
    atomic_write_bytes,
    check_target,
    locked,
    read_regular,
    write_text,
)
from rws.errors import InUseError

FORK = multiprocessing.get_context("fork")


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


def test_a_read_only_folder_is_replaced_and_not_left_behind(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_bytes(b"")
    target.chmod(0o555)
    command = ["setpriv", "--bounding-set", "-dac_override,-fowner", "--inh-caps", "-dac_override,-fowner"]
    ordinary = command if os.geteuid() == 0 and shutil.which(command[0]) else []  # root may do all
    code = "import sys; from rws.edge.common.files import atomic_path\n"
    code += "with atomic_path(sys.argv[1], folder=True) as new: (new / 'new').touch()"
    subprocess.run([*ordinary, *python_command(code, str(target))], check=True)
    assert os.listdir(tmp_path) == ["target"]
    assert os.listdir(target) == ["new"]


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


def test_what_no_regular_file_can_be_is_a_clear_error(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**40)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    cases = {
        "a\0b": "no file can have this name",
        "\ud800": "no file can have this name",
        "x" * 5000: "too long",
        tmp_path / "sparse": f"has {2**40} bytes, expected at most 9",
        tmp_path / "none": "No such file",
        tmp_path / "sparse" / "x": "Not a directory",
        tmp_path / "socket": "No such device or address",
        "/proc/self/status": "expected at most 9",  # its size says 0
    }
    for path, message in cases.items():
        with pytest.raises(OSError, match=message):
            read_regular(path, 9)
    server.close()
    assert read_regular("/proc/self/status", 2**20).startswith(b"Name:")
    assert len(os.listdir("/proc/self/fd")) < 100


def test_a_folder_is_read_from_after_another_took_its_place(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with OpenFolder(tmp_path / "one") as folder:
        assert not folder.is_replaced()
        os.rename(tmp_path / "one", tmp_path / "old")
        assert folder.is_replaced()
        os.rename(tmp_path / "two", tmp_path / "one")
        assert folder.is_replaced()
        assert folder.read("file", 9) == b"one"


def test_a_folder_where_a_file_belongs_is_named(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder where a file belongs"):
        atomic_write_bytes(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]


def count_up(path, times):
    for _ in range(times):
        with locked(path):
            value = int(path.read_text())
            time.sleep(0.001)
            path.write_text(str(value + 1))


def hold(path, started):
    with locked(path):
        started.set()
        time.sleep(60)


def test_a_lock_is_held_by_one_process_and_one_thread_at_a_time(tmp_path):
    path = tmp_path / "number"
    path.write_text("0")
    others = [FORK.Process(target=count_up, args=(path, 30)) for _ in range(2)]
    others += [threading.Thread(target=count_up, args=(path, 30)) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert path.read_text() == "120"
    assert os.listdir(tmp_path) == ["number"]


def test_who_holds_a_lock_is_named_and_a_kill_frees_it(tmp_path):
    started = FORK.Event()
    process = FORK.Process(target=hold, args=(tmp_path / "folder", started))
    process.start()
    assert started.wait(10)
    named = f"folder: is being changed by process {process.pid}; try again"
    with pytest.raises(InUseError, match=named), locked(tmp_path / "folder", 0.1):
        pass
    process.kill()
    process.join()
    assert os.listdir(tmp_path) == [".folder.lock"]
    with locked(tmp_path / "folder", 0):
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_file_that_is_a_link_or_a_pipe_harms_nobody(tmp_path):
    (tmp_path / "victim").write_text("text")
    (tmp_path / ".folder.lock").symlink_to("victim")
    with pytest.raises(OSError, match="link"), locked(tmp_path / "folder", 0):
        pass
    assert (tmp_path / "victim").read_text() == "text"


def test_leftovers_of_killed_writers_go_and_all_else_stays(tmp_path):
    kept = ["file.tmp", ".file.tmp", ".file.abcdef01.tmp.bak", ".file.ABCDEF01.tmp", ".other.abcdef01.tmp", "x.old"]
    for name in [*kept, ".file.abcdef01.tmp", ".file.abcdef02.old"]:
        (tmp_path / name).write_text("left")
    (tmp_path / ".file.abcdef03.tmp").mkdir()
    (tmp_path / ".file.abcdef03.tmp" / "part").write_text("left")
    os.mkfifo(tmp_path / ".file.abcdef04.tmp")  # nobody's that we know
    (tmp_path / "file").write_text("old")
    with atomic_path(tmp_path / "file") as living:
        living.write_text("living")
        atomic_write_bytes(tmp_path / "file", b"new")
        assert living.read_text() == "living"
        assert sorted(os.listdir(tmp_path)) == sorted([*kept, "file", ".file.abcdef04.tmp", living.name])
    assert (tmp_path / "file").read_text() == "living"


def test_a_folder_that_was_moved_aside_by_a_killed_writer_comes_back(tmp_path):
    (tmp_path / ".folder.abcdef01.old").mkdir()
    (tmp_path / ".folder.abcdef01.old" / "part").write_text("old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "folder", folder=True):
        raise RuntimeError
    assert (tmp_path / "folder" / "part").read_text() == "old"
    assert os.listdir(tmp_path) == ["folder"]


def write_endlessly(path, folder):
    for number in itertools.count():
        with atomic_path(path, folder=folder) as temporary:
            for part in [temporary / "a", temporary / "b"] if folder else [temporary]:
                part.write_text(str(number) * 10000)


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.usefixtures("exchange")
def test_killed_at_any_moment_a_writer_leaves_a_whole_target_and_the_next_cleans_up(tmp_path, folder):
    path = tmp_path / "target"
    moments = random.Random(0)
    for _ in range(12):
        process = FORK.Process(target=write_endlessly, args=(path, folder))
        process.start()
        time.sleep(moments.uniform(0.02, 0.1))
        process.kill()
        process.join()
        with suppress(KeyError), atomic_path(path, folder=folder):
            raise KeyError  # cleans up, and writes nothing
        assert os.listdir(tmp_path) in (["target"], [])
        texts = {part.read_text() for part in (path.iterdir() if folder else [path])} if path.exists() else set()
        assert len(texts) <= 1
        assert all(len(text) % 10000 == 0 for text in texts)


def test_a_file_that_grows_or_vanishes_while_it_is_read(tmp_path, monkeypatch):
    path, opened = tmp_path / "file", atomic.open_regular
    path.write_bytes(b"12345")

    def grown(*arguments, **options):
        file = opened(*arguments, **options)
        with path.open("ab") as more:
            more.write(b"6" * 1000)
        return file

    def vanished(*arguments, **options):
        file = opened(*arguments, **options)
        path.unlink()
        return file

    monkeypatch.setattr(atomic, "open_regular", grown)
    with pytest.raises(OSError, match="expected at most 500"):
        read_regular(path, 500)
    monkeypatch.setattr(atomic, "open_regular", vanished)
    assert len(read_regular(path, 2000)) == 1005
    assert not path.exists()
