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
from packaging.requirements import Requirement
from typer.testing import CliRunner

from rws.cli import app
from rws.edge.common.schema import tomllib
from rws.edge.faults.servers import free_port
from rws.edge.monitoring.monitor import Monitor
from rws.edge.sources.arrays import ArraySource
from rws.records import SinkStatus
from support.fakes import make_result

DEPLOY = Path(__file__).parents[1] / "deploy"
DOCKERFILES = ("Dockerfile", "Dockerfile.jetson")
LOCKS = {
    # What each leaves out of what pyproject.toml and requirements.in ask for, and the versions of Python it is for.
    "requirements.txt": ({"opencv-python-headless"}, ("3.10", "3.11", "3.12", "3.13")),
    "requirements-headless.txt": ({"opencv-python"}, ("3.10", "3.11", "3.12", "3.13")),
    "requirements-jetson.txt": ({"opencv-python", "onnxruntime"}, ("3.10",)),
}
VARIABLES = {"RWS_SOURCE", "RWS_SERVE", "RWS_TOKEN", "RWS_KEY", "RWS_OPTIONS"}


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
    assert "RWS_KEY" in result.output


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
    for file in re.findall(r"--requirement (\S+)", read(name)):
        assert file in copied


def locked(name):
    """(requirement, hashes) of each package of a lock file."""
    for line in re.sub(r"\\\n", " ", read(name)).splitlines():
        if not line.startswith("#"):
            spec, *hashes = re.split(r"\s+--hash=", line.strip())
            yield Requirement(spec), hashes


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_has_one_version_and_hashes_of_each_package_and_no_place(name):
    found = list(locked(name))
    assert len(found) > 30
    for requirement, hashes in found:
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), requirement
        assert not requirement.url
        assert hashes
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), requirement
    assert not re.search(r"://|^ *-[ief]|^ *--(?!hash)", read(name), re.MULTILINE)


@pytest.mark.parametrize("name", LOCKS)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_lock_file_fits_what_the_project_asks_for(name, machine):
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    lines = project["project"]["dependencies"] + project["build-system"]["requires"]
    lines += extras["serve"] + extras["sign"] + extras["mqtt"]
    lines += [line for line in read("requirements.in").splitlines() if line and line[0] != "#"]
    if name == "requirements-jetson.txt":
        constraints = [line for line in read("constraints.jetson.txt").splitlines() if line and line[0] != "#"]
        lines += [line for line in constraints if not line.startswith("opencv-python<")]
    left_out, pythons = LOCKS[name]
    for python in pythons:
        here = {"python_version": python, "python_full_version": f"{python}.1", "platform_machine": machine}
        here |= {"sys_platform": "linux", "platform_system": "Linux"}
        versions = {
            one.name: next(iter(one.specifier)).version
            for one, _ in locked(name)
            if one.marker is None or one.marker.evaluate(here)
        }
        assert not left_out & versions.keys()
        for asked in map(Requirement, lines):
            if asked.name not in left_out and (asked.marker is None or asked.marker.evaluate(here)):
                assert asked.specifier.contains(versions[asked.name]), (asked, python)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_an_image_installs_has_a_hash(name):
    installs = re.findall(r"pip install (.*?)(?: \\|\n)", read(name))
    assert len(installs) >= 2
    for arguments in installs:
        by_hash = "--require-hashes" in arguments
        by_address = '"onnxruntime-gpu @ ${ONNXRUNTIME}"' in arguments and "--no-deps" in arguments
        ourselves = arguments.endswith(" .") and {"--no-deps", "--no-build-isolation"} <= set(arguments.split())
        assert by_hash or by_address or ourselves, arguments
    assert all(re.search(r"#sha256=[0-9a-f]{64}$", line) for line in re.findall(r"^ARG \w+=(http.*)", read(name), re.M))


def test_the_images_start_from_digests_and_a_release_refuses_others(tmp_path):
    yaml = pytest.importorskip("yaml")
    names = {line.partition("=")[0] for line in read("digests.env").splitlines() if not line.startswith("#")}
    for name in DOCKERFILES:
        for image in re.findall(r"^FROM (\S+)", read(name), re.MULTILINE):
            base, _, digest = image.partition("@")
            assert digest[2:-1] in names, image
            assert f"imagetools inspect --format '{{{{.Manifest.Digest}}}}' {base}" in read("digests.env")
            assert f"ARG {digest[2:-1]}\n" in read(name)  # without a default
    arguments = yaml.safe_load(read("compose.yaml"))["services"]["rws"]["build"]["args"]
    assert all(value.startswith(f"${{{name}:?") and name in names for name, value in arguments.items())
    jobs = yaml.safe_load((DEPLOY.parent / ".github/workflows/wheels.yml").read_text())["jobs"]
    script = next(step["run"] for step in jobs["image"]["steps"] if "digest" in step.get("name", ""))
    digest = "sha256:" + "0123456789abcdef" * 4

    def released(digests, base="@${PYTHON_DIGEST}"):
        shutil.copytree(DEPLOY, tmp_path / "deploy", dirs_exist_ok=True)
        (tmp_path / "deploy/Dockerfile").write_text(read("Dockerfile").replace("@${PYTHON_DIGEST}", base))
        (tmp_path / "deploy/digests.env").write_text(digests)
        return subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, capture_output=True, check=False).returncode

    filled = re.sub(r"_DIGEST=.*", f"_DIGEST={digest}", read("digests.env"))
    assert released(filled) == 0
    for bad in ("", "latest", digest[:-1], f"{digest}0", digest.upper()):
        assert released(filled.replace(digest, bad, 1)) != 0, bad
    assert released(filled, base="") != 0
    assert released(filled, base=f"@{digest[:20]}") != 0


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
    exposed = exposed_metrics("")
    rules = yaml.safe_load(read("alerts.yaml"))["groups"][0]["rules"]
    asked = {name for rule in rules for name in re.findall(r"\b(?:rws|process)_\w+", rule["expr"])}
    assert len(asked) >= 8
    assert asked <= exposed
    text = read("../edge/cli/running/session.py") + read("../edge/cli/running/camera.py")
    for event in re.findall(r'event="(\w+)"', read("alerts.yaml")):
        assert f'"{event}"' in text


def exposed_metrics(camera):
    prometheus_client = pytest.importorskip("prometheus_client")
    from rws.edge.monitoring.metrics import registry

    monitor = Monitor(ArraySource(np.zeros((1, 8, 8, 3), np.uint8), name="camera"))
    monitor.add(make_result())
    monitor.sinks = lambda: {"jsonl": SinkStatus()}
    collected = registry({camera: monitor})
    exposed = set(re.findall(r"^(\w+)[ {]", prometheus_client.generate_latest(collected).decode(), re.MULTILINE))
    # A series with labels appears with its first event.
    return exposed | {f"{family.name}_total" for family in collected.collect() if family.type == "counter"}


def test_the_dashboard_asks_for_metrics_that_exist():
    dashboard = json.loads(read("grafana.json"))
    variables = {one["name"] for one in dashboard["templating"]["list"]}
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) >= 10
    asked = {name for text in expressions for name in re.findall(r"\b(?:rws|process)_\w+", text)}
    assert asked <= exposed_metrics("door")
    assert {name for text in expressions for name in re.findall(r"\$(\w+)", text)} <= variables
    places = [tuple(panel["gridPos"].values())[:2] for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_the_broker_of_compose_has_a_digest_and_its_configuration_is_accepted(tmp_path):
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load(read("compose.mqtt.yaml"))["services"]
    name = re.search(r"@\$\{(\w+):\?", services["broker"]["image"])[1]
    assert f"{name}=" in read("digests.env")
    assert all(port.startswith("127.0.0.1:") for port in services["broker"]["ports"])
    assert services["rws"]["environment"]["RWS_MQTT"] == "mqtt://broker/rws"
    program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("no mosquitto is installed here")
    text = (
        read("mosquitto.conf").replace("/mosquitto/data/", f"{tmp_path}/").replace("1883", f"{free_port()} 127.0.0.1")
    )
    (tmp_path / "mosquitto.conf").write_text(f"{text}user root\n")
    broker = subprocess.Popen(
        [program, "-v", "-c", str(tmp_path / "mosquitto.conf")], stderr=subprocess.PIPE, text=True
    )
    try:
        assert any("running" in line for line in broker.stderr)
    finally:
        broker.kill()
        broker.wait()


def test_the_guide_names_the_files_that_are_there():
    linked = set(re.findall(r"\]\(([\w.-]+)\)", read("README.md")))
    there = {path.name for path in DEPLOY.iterdir()} - {"README.md", "rws.env"}
    assert {name for name in there if not name.endswith(".dockerignore")} == linked
