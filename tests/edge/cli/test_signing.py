"""Signed bundles from the command line: `rws bundle keygen` and `sign`, and `--key`, as a user and as a service."""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import stat
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from rws.edge.bundle.edit import write_bundle
from rws.edge.bundle.manifest import MAKER_SIGNATURE, MANIFEST
from support.command_line import invoke
from support.command_line import rws as rws_process
from support.fakes import write_images
from support.tiny import bundle_parts

pytest.importorskip("cryptography")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with keys `ours` and `other`, bundles `plain`, `signed` and `foreign`, and `images`, all unchanged."""
    folder = tmp_path_factory.mktemp("place")
    write_images(folder / "images", 2)
    for name in ("ours", "other"):
        invoke("bundle", "keygen", folder / name)
    for name, key in (("plain", None), ("signed", "ours"), ("foreign", "other")):
        write_bundle(folder / name, bundle_parts(name=name))
        if key is not None:
            invoke("bundle", "sign", folder / name, "--key", folder / f"{key}.key")
    return folder


def fails(done, code, message):
    """One line on stderr that begins with `error: `, and nothing on stdout."""
    lines = [line for line in done.stderr.splitlines() if "Traceback" in line or line.startswith("error: ")]
    assert (done.returncode, len(lines)) == (code, 1), done.stderr
    assert message in lines[0]
    assert done.stdout == ""


COMMANDS = {
    "run": lambda bundle, place: ("run", place / "images", "--bundle", bundle),
    "oracle": lambda bundle, place: ("oracle", place / "images", "--bundle", bundle),
    "drill": lambda bundle, place: ("drill", "--only", "empty frame", "--bundle", bundle),
    "verify": lambda bundle, place: ("verify", bundle),
    "inspect": lambda bundle, place: ("inspect", bundle),
    "switch": lambda bundle, place: ("bundle", "switch", place / "new", bundle),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_refuses_what_is_not_signed(command, place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    words = {name: COMMANDS[command](tmp_path / name, tmp_path) for name in ("plain", "signed", "foreign")}
    key = ("--key", tmp_path / "ours.pub")
    fails(invoke(*words["plain"], *key, check=False), 3, "not signed, expected a signature of one of the trusted keys")
    fails(invoke(*words["foreign"], *key, check=False), 3, "altered, or signed by none of the trusted keys")
    assert not (tmp_path / "new").exists()
    invoke(*words["signed"], *key)
    monkeypatch.setenv("RWS_KEY", str(tmp_path / "ours.pub"))
    fails(invoke(*words["plain"], check=False), 3, "not signed")
    shutil.rmtree(tmp_path / "new", ignore_errors=True)
    invoke(*words["signed"])
    monkeypatch.setenv("RWS_KEY", "")  # as in rws.env.example
    shutil.rmtree(tmp_path / "new", ignore_errors=True)
    invoke(*words["plain"])


def test_several_keys_for_a_change_of_keys(place, monkeypatch):
    ours, other = place / "ours.pub", place / "other.pub"
    for name in ("signed", "foreign"):
        invoke("verify", place / name, "--key", ours, "--key", other)
    monkeypatch.setenv("RWS_KEY", f"{ours}:{other}")
    for name in ("signed", "foreign"):
        assert "signed with the key" in invoke("verify", place / name).stdout
    fails(invoke("verify", place / "plain", check=False), 3, "not signed")
    # The command line comes before the environment.
    fails(invoke("verify", place / "foreign", "--key", ours, check=False), 3, "signed by none")


@pytest.mark.parametrize("value", ['"{0}/ours.pub"', '["{0}/ours.pub"]', '["{0}/other.pub", "{0}/ours.pub"]'])
def test_the_key_in_a_configuration_file(place, tmp_path, value):
    config = tmp_path / "run.toml"
    text = 'source = "{0}/images"\nbundle = "{0}/{1}"\nkey = {2}\n'
    config.write_text(text.format(place, "signed", value.format(place)))
    assert "images 2" in invoke("run", "--config", config).stdout
    config.write_text(text.format(place, "plain", value.format(place)))
    fails(invoke("run", "--config", config, check=False), 3, "not signed")


def test_a_key_that_cannot_be_used_ends_the_run_before_it_begins(place, tmp_path):
    (tmp_path / "empty.pub").touch()
    for path, message in (
        (tmp_path / "empty.pub", "holds 0 keys in PEM"),
        (tmp_path / "absent.pub", "No such file"),
        (place / "ours.key", "is a private key"),
        ("", "not a regular file"),
    ):
        fails(invoke("run", place / "images", "--bundle", place / "signed", "--key", path, check=False), 3, message)


def test_inspect_says_who_has_signed(place, tmp_path):
    def inspected(name, *more):
        done = invoke("inspect", place / name, "--json", tmp_path / "out.json", *more)
        record = json.loads((tmp_path / "out.json").read_text())
        return record["signed"], record["signed_by"], done.stdout

    signed, by, text = inspected("signed", "--key", place / "ours.pub")
    assert signed
    assert len(by) == 16
    assert f"signed with the key {by}" in text
    signed, by, text = inspected("signed")
    assert (signed, by, "signed, not checked" in text) == (True, None, True)
    signed, by, text = inspected("plain")
    assert (signed, by, "not signed" in text) == (False, None, True)


def test_a_change_says_that_the_signature_is_gone(place, tmp_path):
    for name, gone in (("signed", True), ("plain", False)):
        path = shutil.copytree(place / name, tmp_path / name)
        done = invoke("bundle", "remove", path, "fog")
        assert ("The maker's signature no longer holds and was removed" in done.stdout + done.stderr) == gone
        assert not (path / MAKER_SIGNATURE).exists()


def test_keys_are_made_once_and_private(place, tmp_path, monkeypatch):
    monkeypatch.setenv("RWS_PASSPHRASE", "correct horse")
    invoke("bundle", "keygen", tmp_path / "maker", "--passphrase")
    private = tmp_path / "maker.key"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert b"ENCRYPTED" in private.read_bytes()
    fails(invoke("bundle", "keygen", tmp_path / "maker", check=False), 3, "is there already")
    fails(invoke("bundle", "keygen", tmp_path / "no" / "maker", check=False), 3, "its folder does not exist")
    path = shutil.copytree(place / "plain", tmp_path / "bundle")
    invoke("bundle", "sign", path, "--key", private)
    invoke("verify", path, "--key", tmp_path / "maker.pub")
    monkeypatch.setenv("RWS_PASSPHRASE", "wrong")
    fails(invoke("bundle", "sign", path, "--key", private, check=False), 3, "cannot be decrypted")
    long, unasked = "has 2000 bytes, expected 1 to 1023", "cannot be asked for here"
    for value, message in (("", "has 0 bytes"), ("x" * 2000, long), (None, unasked)):
        monkeypatch.setenv("RWS_PASSPHRASE", value) if value is not None else monkeypatch.delenv("RWS_PASSPHRASE")
        fails(invoke("bundle", "sign", path, "--key", private, check=False), 2, message)
        fails(invoke("bundle", "keygen", tmp_path / "second", "--passphrase", check=False), 2, message)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bundle", "maker.key", "maker.pub"]


def test_a_passphrase_that_is_not_text_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("RWS_PASSPHRASE", os.fsdecode(b"\xff\xfe caf\xe9"))
    invoke("bundle", "keygen", tmp_path / "maker", "--passphrase")
    write_bundle(tmp_path / "bundle", bundle_parts())
    invoke("bundle", "sign", tmp_path / "bundle", "--key", tmp_path / "maker.key")


@pytest.mark.parametrize("name", ["", ".", "..", "/", "folder/.."])
def test_the_keys_need_a_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(invoke("bundle", "keygen", name, check=False), 2, "is a folder; give the name of the keys")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "code"), [(["\x03"], 130), (["\x04"], 130), (["secret\n"] * 2, 0), (["a\n", "b\n", "\x03"], 130)]
)
def test_a_passphrase_is_asked_for_and_not_shown(typed, code, tmp_path):
    def in_a_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell ignores it in its background

    master, slave = pty.openpty()
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("rws")), "bundle", "keygen", str(tmp_path / "maker"), "--passphrase"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={name: value for name, value in os.environ.items() if name != "RWS_PASSPHRASE"},
        start_new_session=True,
        preexec_fn=in_a_terminal,
    )
    os.close(slave)
    shown = b""
    with open(master, "r+b", buffering=0) as terminal:
        for number, text in enumerate(typed, 1):
            while len(re.findall(rb"Passphrase: |confirmation: ", shown)) < number:
                shown += terminal.read(1000)
            terminal.write(text.encode())
        with suppress(OSError):  # the other end is closed
            while more := terminal.read(1000):
                shown += more
    assert process.wait(timeout=30) == code
    assert b"secret\r" not in shown
    assert b"Traceback" not in shown
    assert (tmp_path / "maker.key").exists() == (code == 0)


def test_the_whole_way_with_the_installed_command(place, tmp_path):
    path = shutil.copytree(place / "plain", tmp_path / "bundle")
    rws_process("bundle", "keygen", tmp_path / "maker")
    rws_process("bundle", "sign", path, "--key", tmp_path / "maker.key")
    key = ("--key", tmp_path / "maker.pub")
    assert "ok  " in rws_process("verify", path, *key).stdout
    (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes().replace(b'"plain"', b'"other"'))
    for command in (("verify", path), ("run", place / "images", "--bundle", path)):
        fails(rws_process(*command, *key, check=False), 3, "altered, or signed by none")


def test_a_run_that_watches_takes_up_signed_bundles_only(place, tmp_path):
    path = Path(shutil.copytree(place / "signed", tmp_path / "bundle"))
    command = ["run", "pattern:64x64@50", "--bundle", path, "--watch", "--key", place / "ours.pub"]
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("rws")), *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watchdog = threading.Timer(90, process.kill)
    watchdog.start()
    try:
        lines = iter(process.stdout.readline, "")
        next(line for line in lines if line.startswith("model: "))
        invoke("bundle", "switch", path, place / "plain")
        assert "not signed" in next(line for line in lines if "bundle refused, " in line)
        invoke("bundle", "switch", path, place / "foreign")
        assert "signed by none" in next(line for line in lines if "bundle refused, " in line)
        write_bundle(tmp_path / "next", bundle_parts(name="next"))
        invoke("bundle", "sign", tmp_path / "next", "--key", place / "ours.key")
        invoke("bundle", "switch", path, tmp_path / "next", "--key", place / "ours.pub")
        assert "now next" in next(line for line in lines if "bundle swapped: " in line)
        process.terminate()
        assert process.wait(timeout=30) == 0
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()
