"""What is installed: the package list, the data files, and `rws` from a wheel and from an editable installation."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

import rws

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ROOMS = ("edge", "oracle", "training", "benchmarks")
NOT_INSTALLED = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def run(*command: object, folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, with none of our paths in its environment."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=PLAIN, capture_output=True, text=True, check=False, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def pip(*arguments: object, folder: Path) -> None:
    run(sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-build-isolation", "--quiet", folder=folder)


def environment(folder: Path) -> Path:
    """Make a virtual environment that has what we depend on, but not this project; return its Python.

    The `.pth` files of a folder that a `.pth` file adds are not read: no editable installation comes along.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder.parent)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    python = folder / "bin" / "python"
    absent = run(python, "-c", "import rws", folder=folder, check=False)
    assert "No module named 'rws'" in absent.stderr
    return python


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what is installed: the tests build in it, and the checkout stays as it is."""
    target = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    for name in ("rws", *ROOMS):
        shutil.copytree(ROOT / name, target / name, ignore=NOT_INSTALLED)
    return target


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", source, "--wheel-dir", folder, folder=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request, source, tmp_path_factory) -> Path:
    """The Python of an environment in which the project is installed."""
    folder = tmp_path_factory.mktemp("environment")
    python = environment(folder / "venv")
    what = ["--editable", source] if request.param == "editable" else [request.getfixturevalue("wheel")]
    pip("--python", python, "install", "--ignore-installed", *what, folder=folder)
    return python


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A folder of a user whose own packages are called as our rooms are."""
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text(f"raise ImportError('the {room} of the user')\n")
    return tmp_path


def test_the_list_of_packages_is_that_of_the_folders():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [path.parent.relative_to(ROOT) for room in ("rws", *ROOMS) for path in (ROOT / room).rglob("__init__.py")]
    names = [".".join(folder.parts if folder.parts[0] == "rws" else ("rws", *folder.parts)) for folder in folders]
    assert sorted(listed) == sorted(names)
    modules = {path.parent.relative_to(ROOT) for room in ("rws", *ROOMS) for path in (ROOT / room).rglob("*.py")}
    assert modules == set(folders)


def test_the_wheel_holds_all_files_but_pages_and_results(source, wheel):
    expected = set()
    for name in ("rws", *ROOMS):
        for path in (source / name).rglob("*"):
            inside = path.relative_to(source)
            if path.is_file() and path.suffix != ".md" and inside.parts[:2] != ("benchmarks", "results"):
                expected.add("/".join(inside.parts if name == "rws" else ("rws", *inside.parts)))
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name for name in names if not name.endswith((".so", ".pyd"))} == expected
    assert "rws/edge/bundle/cifar10/model.onnx" in expected


def test_the_sdist_holds_all_tracked_files(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = run("git", "ls-files", "-z", folder=ROOT).stdout.split("\0")[:-1]
    for name in tracked:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    run(sys.executable, "-c", "from setuptools.build_meta import build_sdist; build_sdist('dist')", folder=tmp_path)
    (path,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = [member.name.partition("/")[2] for member in archive if member.isfile()]
    made = {name for name in members if name in ("PKG-INFO", "setup.cfg") or name.startswith("rws_edge.egg-info/")}
    assert sorted(set(members) - made) == sorted(tracked)
    assert {"CHANGELOG.md", "examples/opencv_loop.py", "tests/test_packaging.py"} < set(members)


def test_the_metadata_names_the_tested_versions_of_python(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    assert re.findall(r"^Classifier: .*Python :: (3\.\d+)$", metadata, re.MULTILINE) == list(PYTHONS)
    assert "Project-URL: Paper, https://proceedings.mlr.press/v202/cai23a.html" in metadata
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    assert tuple(jobs["all"]["strategy"]["matrix"]["python"]) == PYTHONS
    builds = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]["build"]
    assert builds == [f"cp{version.replace('.', '')}-*" for version in PYTHONS]


def test_the_packages_of_a_user_do_not_shadow_ours(installed, foreign):
    cv2.imwrite(str(foreign / "image.png"), np.full((32, 32, 3), 128, np.uint8))
    names = ", ".join(rws.__all__)
    code = f"from rws import {names}; print(Bundle.load().manifest.name, *map(repr, ({names},)))"
    assert "Runtime" in run(installed, "-c", code, folder=foreign).stdout
    run(installed, "-m", "rws", "verify", folder=foreign)
    script = installed.with_name("rws")
    run(script, "verify", folder=foreign)
    run(script, "run", "image.png", "--json", "out.json", folder=foreign)
    assert json.loads((foreign / "out.json").read_text())["frames"] == 1


def test_the_environments_run_what_was_installed_in_them(installed, source, foreign):
    code = "import rws.edge.live.kernel as kernel; print(kernel.__file__)"
    place = Path(run(installed, "-c", code, folder=foreign).stdout.strip())
    assert source in place.parents or installed.parents[1] in place.parents


def test_a_checkout_that_is_not_installed_says_what_to_do(installed, source, tmp_path):
    editable = str(source) in run(installed, "-c", "import rws; print(rws.__file__)", folder=tmp_path).stdout
    for python in (installed, environment(tmp_path / "venv")):
        for code in ("import rws", "import rws.edge", "from rws import Bundle"):
            done = run(python, "-c", code, folder=source, check=False)  # the current folder is the first on the path
            if python == installed and editable:
                assert done.returncode == 0, done.stderr
            else:
                assert done.returncode == 1
                assert "run `pip install --editable .` in it" in done.stderr.splitlines()[-1]


def test_the_lowest_versions_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = project["dependencies"] + extras["serve"] + extras["sign"] + extras["mqtt"]
    # A package may have a floor for each version of Python; some versions may be left out (`!=`).
    floors = sorted(line.partition(";")[0].partition(",")[0].split(">=") for line in listed)
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pinned = sorted(line.partition(";")[0].split("==") for line in lines if not line.startswith("#"))
    assert [name for name, _ in pinned] == [name for name, _ in floors]
    for (name, version), (_, floor) in zip(pinned, floors, strict=True):
        assert f"{version}.".startswith(f"{floor}."), name
