"""The files for devices: every option, variable and metric that they name exists, and what they run does run."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rws.cli import app
from rws.edge.monitoring.monitor import Monitor
from rws.edge.sources.arrays import ArraySource
from rws.records import SinkStatus
from support.fakes import make_result

DEPLOY = Path(__file__).parents[1] / "deploy"
DOCKERFILES = ("Dockerfile", "Dockerfile.jetson")
VARIABLES = {"RWS_SOURCE", "RWS_SERVE", "RWS_TOKEN", "RWS_OPTIONS"}


def read(name):
    return (DEPLOY / name).read_text(encoding="utf-8")


def instruction(name, word):
    """The last instruction of that word in a Dockerfile, its lines joined."""
    lines = re.sub(r"\\\n", "", read(name)).splitlines()
    return [line for line in lines if line.startswith(f"{word} ")][-1][len(word) :].strip()


def unit(name="rws.service"):
    """{key: [values]} of a unit file."""
    settings = {}
    for line in read(name).splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return settings


@functools.cache
def options(*command):
    """The options that a command's help shows."""
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, (command, result.output)
    return set(re.findall(r"--[a-z][a-z-]*", result.output))


def commands(text):
    """(command, options) of each line of a file that calls `rws`."""
    groups = r"run|verify|bundle (?:switch|add|remove)|bench (?:latency|gpu)"
    for line in re.sub(r"\\\n", " ", text).splitlines():
        found = re.search(rf"\brws ({groups})\b([^#`]*)", line)
        if found:
            yield tuple(found[1].split()), re.findall(r"--[a-z][a-z-]*", found[2])


@pytest.mark.parametrize("name", ["rws.service", *DOCKERFILES, "README.md"])
def test_every_option_of_rws_exists(name):
    found = list(commands(read(name)))
    assert found
    for command, used in found:
        assert set(used) <= options(*command), (command, used)
    for line in re.findall(r"RWS_OPTIONS=\"?(--[^\"\n`)]*)", read(name)):
        assert set(re.findall(r"--[a-z-]+", line)) <= options("run"), line


def test_the_examples_of_the_environment_exist():
    used = set(re.findall(r"--[a-z-]+", read("rws.env.example")))
    assert used
    assert used <= options("run")
    result = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"})
    assert "RWS_TOKEN" in result.output


def test_the_environment_names_what_the_others_use():
    lines = [line for line in read("rws.env.example").splitlines() if line and not line.startswith("#")]
    assert {line.partition("=")[0] for line in lines} == VARIABLES
    assert set(re.findall(r"RWS_[A-Z]+", unit()["ExecStart"][0])) <= VARIABLES
    for name in DOCKERFILES:
        assert set(re.findall(r"RWS_[A-Z]+", read(name))) <= VARIABLES | {"RWS_BUNDLE"}


def test_no_secret_is_in_a_file_that_others_can_read():
    for name in ("rws.service", "rws-jetson.conf", "compose.yaml", *DOCKERFILES):
        assert "rtsp://" not in read(name)
        assert not re.search(r"TOKEN[\"']?[=:] *[\"']?\w", read(name))
    assert unit()["EnvironmentFile"] == ["/etc/rws/rws.env"]


def test_systemd_accepts_the_unit_and_the_addition_for_jetson(tmp_path):
    if shutil.which("systemd-analyze") is None:
        if "RWS_REQUIRE_SYSTEM" in os.environ:
            pytest.fail("systemd-analyze is not installed")
        pytest.skip("needs systemd-analyze")
    (tmp_path / "rws.service.d").mkdir()
    shutil.copy(DEPLOY / "rws-jetson.conf", tmp_path / "rws.service.d" / "jetson.conf")
    (tmp_path / "rws.service").write_text(read("rws.service").replace("/opt/rws/bin/rws", "/bin/true"))
    found = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "rws.service"], capture_output=True, text=True, check=False
    )
    # Known from systemd 254 on, ignored before.
    known = re.compile(r".*Unknown key( name)? '(RestartSteps|RestartMaxDelaySec)'.*")
    complaints = [line for line in found.stderr.splitlines() if str(tmp_path) in line and not known.match(line)]
    assert complaints == []


def test_the_unit_restarts_indefinitely_and_watches():
    settings = unit()
    assert settings["Type"] == ["notify"]
    assert settings["Restart"] == ["always"]
    assert settings["StartLimitIntervalSec"] == ["0"]
    assert int(settings["WatchdogSec"][0]) > 10
    assert settings["ProtectSystem"] == ["strict"]


@pytest.mark.parametrize("name", DOCKERFILES)
@pytest.mark.parametrize("bundle", ["", "/srv/my bundles/v 1"])
def test_the_images_start_what_they_should(tmp_path, name, bundle):
    (tmp_path / "rws").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "rws").chmod(0o755)
    environ = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "RWS_SOURCE": "rtsp://user:a b$HOME*@camera/",
        "RWS_BUNDLE": bundle,
        "RWS_OPTIONS": "--provider cuda --oracle-every 2",
    }
    command = json.loads(instruction(name, "CMD"))
    found = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    expected = ["run", "--serve", "0.0.0.0:8080"]
    expected += ["--bundle", bundle, "--watch"] if bundle else []
    expected += ["--provider", "cuda", "--oracle-every", "2"]
    assert found.stdout.splitlines() == expected


class Health(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        allowed = self.path == "/health" and self.headers["Authorization"] == "Bearer 0123456789"
        self.send_response(type(self).status if allowed else 401)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("name", DOCKERFILES)
@pytest.mark.parametrize(("status", "token", "well"), [(200, "0123456789", 0), (503, "0123456789", 1), (200, "", 1)])
def test_the_health_check_of_the_images(monkeypatch, name, status, token, well):
    monkeypatch.setattr(Health, "status", status)
    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = json.loads(instruction(name, "HEALTHCHECK").partition(" CMD ")[2])
        assert command[0].startswith("python")
        code = command[2].replace(":8080", f":{server.server_port}")
        found = subprocess.run([sys.executable, "-c", code], env={"RWS_TOKEN": token}, capture_output=True, check=False)
        server.shutdown()
    assert found.returncode == well


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_images_do_not_run_as_root_and_do_not_report(name):
    assert int(instruction(name, "USER")) > 0
    assert "ORT_DISABLE_TELEMETRY=1" in read(name)
    copied = {line[1:] for line in read(f"{name}.dockerignore").splitlines() if line.startswith("!")}
    root = DEPLOY.parent
    assert all((root / item).exists() for item in copied)
    # What setuptools needs: the packages of pyproject.toml, and the files that it reads.
    assert {"pyproject.toml", "README.md", "LICENSE", "rws", "edge", "oracle", "training", "benchmarks"} <= copied
    for file in re.findall(r"--constraint (\S+)", read(name)):
        assert file in copied


def test_compose_is_read_only_and_sees_switches():
    yaml = pytest.importorskip("yaml")
    service = yaml.safe_load(read("compose.yaml"))["services"]["rws"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    sources = {volume.split(":")[1]: volume.split(":")[2:] for volume in service["volumes"]}
    bundle = Path(service["environment"]["RWS_BUNDLE"])
    assert sources[str(bundle.parent)] == ["ro"]
    assert str(bundle) not in sources


def test_the_alerts_ask_for_metrics_that_exist():
    yaml = pytest.importorskip("yaml")
    prometheus_client = pytest.importorskip("prometheus_client")
    from rws.edge.monitoring.metrics import registry

    monitor = Monitor(ArraySource(np.zeros((1, 8, 8, 3), np.uint8), name="camera"))
    monitor.add(make_result())
    monitor.sinks = lambda: {"jsonl": SinkStatus()}
    collected = registry(monitor)
    exposed = set(re.findall(r"^(\w+)[ {]", prometheus_client.generate_latest(collected).decode(), re.MULTILINE))
    # A series with labels appears with its first event.
    exposed |= {f"{family.name}_total" for family in collected.collect() if family.type == "counter"}
    rules = yaml.safe_load(read("alerts.yaml"))["groups"][0]["rules"]
    asked = {name for rule in rules for name in re.findall(r"\b(?:rws|process)_\w+", rule["expr"])}
    assert len(asked) >= 8
    assert asked <= exposed
    text = read("../edge/cli/session.py")
    for event in re.findall(r'event="(\w+)"', read("alerts.yaml")):
        assert f'"{event}"' in text


def test_the_guide_names_the_files_that_are_there():
    linked = set(re.findall(r"\]\(([\w.-]+)\)", read("README.md")))
    there = {path.name for path in DEPLOY.iterdir()} - {"README.md", "rws.env"}
    assert {name for name in there if not name.endswith(".dockerignore")} == linked
