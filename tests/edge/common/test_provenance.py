import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from rws.cli import app
from rws.edge.common.provenance import KNOWN_SAFE, portable_command, provenance, write_json

ROOT = Path(__file__).parents[3]
OPTIONS = ["--data", "--work", "--json", "--out", "--bundle", "--model", "-v", ""]
FORMS = ["{}", "cifar10={}", "file://{}", "filesrc location={} ! decodebin", "a.png,{}", "x:{}", '"{}"']
ROOTS = ["/folder", "~", "~folder", "..", "../..", "folder/../..", ""]


def test_the_command_is_recorded_without_passwords(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/rws", "run", "rtsp://me:secret@camera:554/a", "--limit", "3"])
    record = provenance(seed=3)
    assert record["command"] == "rws run rtsp://camera:554 --limit 3"
    assert record["seed"] == 3
    assert {"python", "numpy", "onnxruntime", "rws-edge"} <= set(record["versions"])
    write_json(tmp_path / "deep" / "result.json", "anything/1", record)
    written = json.loads((tmp_path / "deep" / "result.json").read_text())
    assert list(written)[:2] == ["schema", "written_at"]
    assert written.pop("schema") == "anything/1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", written.pop("written_at"))
    assert written == record


def test_the_commit_is_that_of_the_checkout():
    git = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if git.returncode != 0:
        pytest.skip("not in a checkout")
    found = re.fullmatch(r"([0-9a-f]{7,40})\+?", provenance()["commit"])
    assert found
    assert git.stdout.startswith(found[1])


@pytest.mark.parametrize(
    ("arguments", "command"),
    {
        ("replay", "--data", "/srv/sets/cifar10", "--json", "/srv/out/a.json"): (
            "replay --data $DATA/cifar10 --json $OUT/a.json"
        ),
        ("reproduce", "--data", "~/data", "--work", "../runs", "--bundle=/srv/bundle"): (
            "reproduce --data $DATA --work $WORK/runs --bundle=$BUNDLE"
        ),
        ("run", "../data/bikes.mp4", "--corrupt", "fog:3"): "run $DATA/bikes.mp4 --corrupt fog:3",
        ("replay", "--data", "data/cifar10", "--json", "out/a.json"): "replay --data data/cifar10 --json out/a.json",
        ("run", "http://camera:8080/stream?size=1/2"): "run http://camera:8080",
        ("run", "/srv/data/video/a.mp4"): "run $DATA/video/a.mp4",
        ("run", "/dev/video0"): "run /dev/video0",
        ("bench", "latency", "--model", "vgg16:32"): "bench latency --model vgg16:32",
    }.items(),
)
def test_paths_of_the_machine_become_variables(arguments, command):
    assert portable_command(["rws", *arguments]) == f"rws {command}"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(OPTIONS),
            st.sampled_from(["", "="]),
            st.sampled_from(FORMS),
            st.sampled_from(ROOTS),
            st.lists(st.just("folder"), max_size=3),
            st.sampled_from(["/name", "/name.json", "/a=b", ""]),
        ),
        max_size=4,
    )
)
def test_no_path_of_the_machine_survives(parts):
    arguments = []
    for option, equals, form, root, folders, name in parts:
        # A name is never empty: the last part of a path may stay.
        path = "/".join([root, *folders]) + (name or "/name")
        value = form.format(path)
        arguments += [f"{option}={value}"] if option and equals else [option, value]
    command = portable_command(["rws", *arguments])
    assert "folder" not in command
    assert not re.search(r"(^|[\s=:,'\"])(~|\.\.|/)", command)


# Folders of a machine that an example would not name. The brackets keep this pattern from finding itself.
MACHINE = re.compile(rb"(?<![\w$}.-])/(?:[w]ork|[t]mp|[r]oot|[h]ome|[U]sers)/|\.\./[s]hared\b|<[m]achine>")


def test_no_tracked_file_holds_a_path_of_a_machine():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not in a checkout")
    files = [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]
    found = [str(path.relative_to(ROOT)) for path in files if path.is_file() and MACHINE.search(path.read_bytes())]
    assert found == []


def test_an_option_says_which_variable_replaces_a_path():
    words = ["rws", "bench", "streams", "--baselines", "/mine/b", "--csv=/mine/a.csv", "--bundle", "~/c", "--json", "-"]
    expected = "rws bench streams --baselines $WORK/b --csv=$OUT/a.csv --bundle $BUNDLE/c --json -"
    assert portable_command(words) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("run 0 --token hush --limit 3", "run 0 --token *** --limit 3"),
        ("run 0 --token=hush -q", "run 0 --token=*** -q"),
        ("run 0 --token -hush", "run 0 --token ***"),
        ("run 0 --token --hush", "run 0 --token ***"),
        ("run 0 --api-key hush clip.mp4", "run 0 --api-key *** clip.mp4"),
        ("run 0 --serve 10.0.0.5:8080 --watch", "run 0 --serve *** --watch"),
        ("bench latency --source rtsp://me:hush@cam/a", "bench latency --source rtsp://cam"),
        ("bench latency --source=http://cam/hush", "bench latency --source=http://cam"),
        ("run me:hush@cam/one", "run ***"),
        ("run http:/me:hush@cam/one", "run ***"),
        ("run http://me:h/ush@cam/one", "run http://***"),
        ("run a.png,http://cam/hush", "run http://cam"),
        ("reproduce --seed -1", "reproduce --seed -1"),
    ],
)
def test_a_command_keeps_the_values_of_known_safe_options_only(arguments, expected):
    assert portable_command(["rws", *arguments.split()]) == f"rws {expected}"


def test_a_pipeline_and_text_that_is_no_unicode_are_not_recorded_as_they_are():
    pipeline = "rtspsrc location=rtsp://cam/hush user-pw=hush ! decodebin ! appsink"
    assert portable_command(["rws", "run", pipeline]) == "rws run $PIPELINE"
    assert portable_command(["rws", "run", "rtsp://me:hu sh@cam/one"]) == "rws run rtsp://cam"
    assert portable_command(["rws", "run", "Caf\udce9\x1b.png"]) == r"rws run Caf\xe9\x1b.png"


def options(command):
    yield from (name for option in command.params for name in (*option.opts, *option.secondary_opts))
    for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
        yield from options(command.get_command(None, name))


def test_of_each_option_it_is_decided_whether_its_value_may_be_published():
    ours = {name for name in options(typer.main.get_command(app)) if name.startswith("-")}
    hidden = {
        "--token",
        "--serve",
        "--key",
        "--mqtt",
        "--on-event",
        "--passphrase",
        "--install-completion",
        "--show-completion",
    }
    assert {name for name in ours if not KNOWN_SAFE.fullmatch(name)} == hidden
