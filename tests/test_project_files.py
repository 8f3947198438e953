"""The files around the code: workflows and citation are valid, and what the guides for contributors name exists."""

from __future__ import annotations

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from rws.edge.common.schema import tomllib

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
GUIDES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")


def check(schema: str, *paths: Path) -> None:
    """Validate files with a schema that check-jsonschema carries; nothing is downloaded."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def targets(text: str) -> set[str]:
    """Return the targets of `make` that a text calls."""
    return set(re.findall(r"(?:^ +|run: (?:sudo )?|`)make ([a-z]+)", text, re.MULTILINE))


@pytest.mark.parametrize("schema", ["vendor.github-workflows", "custom.github-workflows-require-timeout"])
def test_workflows_are_valid(schema):
    assert len(WORKFLOWS) == 3
    check(schema, *WORKFLOWS)


def test_actions_are_pinned_by_version():
    steps = [
        step
        for path in WORKFLOWS
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        for step in job["steps"]
        if "uses" in step
    ]
    assert len(steps) >= 10
    assert [step["uses"] for step in steps if not re.fullmatch(r"[\w./-]+@v\d+(\.\d+)*", step["uses"])] == []


def test_the_citation_is_valid_and_of_this_version():
    path = ROOT / "CITATION.cff"
    check("vendor.citation-file-format", path)
    citation = yaml.safe_load(path.read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["references"][0]["url"] == project["urls"]["Paper"]


def test_the_changelog_has_a_section_for_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    sections = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert version in {section.split(" - ")[0] for section in sections}


def test_make_has_the_targets_that_workflows_and_guides_call():
    defined = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = targets("".join(path.read_text() for path in (*WORKFLOWS, ROOT / "CONTRIBUTING.md")))
    assert {"check", "docs", "lint", "lock", "lowest", "system", "test"} == called
    assert called <= defined


def test_local_links_of_the_guides_lead_somewhere():
    for name in GUIDES:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text()):
            assert (ROOT / name).parent.joinpath(link).exists(), f"{name}: {link}"


def test_no_folder_of_tests_is_left_out(pytestconfig):
    tests = ROOT / "tests"
    folders = {name for path in tests.rglob("test_*.py") for name in path.relative_to(tests).parts[:-1]}
    left_out = [name for name in folders for pattern in pytestconfig.getini("norecursedirs") if fnmatch(name, pattern)]
    assert "build" in folders
    assert left_out == []
