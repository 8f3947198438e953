import ast
import subprocess
from pathlib import Path

import pytest

import rws.benchmarks
import rws.edge
import rws.oracle
import rws.training
from rws.benchmarks.common.memory import can_measure, measure
from rws.edge.common.child import python_command

ROOMS = (rws.oracle, rws.edge, rws.training, rws.benchmarks)


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """The working directory holds packages with the names of ours, which fail when they are imported."""
    for room in ROOMS:
        (tmp_path / room.__name__.removeprefix("rws.")).mkdir()
        (tmp_path / room.__name__.removeprefix("rws.") / "__init__.py").write_text("raise SystemExit('not ours')\n")
    monkeypatch.chdir(tmp_path)


def run(command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
@pytest.mark.usefixtures("hostile")
def test_a_child_imports_our_packages_whatever_lies_in_the_working_directory(room):
    name = room.__name__
    assert run(python_command(f"import {name}; print({name}.__file__)")) == [room.__file__]


def test_a_child_gets_its_arguments():
    assert run(python_command("import sys; print(*sys.argv[1:])", "live", "8")) == ["live", "8"]


@pytest.mark.skipif(not can_measure(), reason="memory is counted on Linux alone")
@pytest.mark.usefixtures("hostile")
def test_memory_is_measured_by_our_module():
    assert measure("imports", 8).private > 0


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
def test_no_module_starts_python_with_imports_from_the_working_directory(room):
    for path in Path(room.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.List) and path.name != "child.py":
                written = [ast.unparse(part) for part in node.elts[:2]]
                assert written not in (["sys.executable", "'-m'"], ["sys.executable", "'-c'"]), path
