"""The documentation site: it is built strictly, and its reference is complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer

import rws
import rws.cli

pytest.importorskip("mkdocs", reason="needs the extra `docs`")

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """The anchors of a page, and what it links to and loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.targets, self.loaded = set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.targets.append(values["href"])
        loads = {"img": "src", "script": "src", "link": "href"}.get(tag)
        if loads and values.get(loads) and values.get("rel") != "canonical":
            self.loaded.append(values[loads])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def every_command(group, context, words=("rws",)):
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        own = type(context)(command, info_name=name, parent=context)
        yield "-".join((*words, name)), command, own
        if hasattr(command, "list_commands"):
            yield from every_command(command, own, (*words, name))


def test_every_public_name_is_in_the_reference(site, pages):
    anchors = pages[site / "reference" / "api.html"].anchors
    assert {f"rws.{name}" for name in rws.__all__} - anchors == set()


def test_every_command_and_its_options_are_in_the_reference(site, pages):
    page = site / "reference" / "cli.html"
    group = typer.main.get_command(rws.cli.app)
    commands = list(every_command(group, group.make_context("rws", [], resilient_parsing=True)))
    assert len(commands) > 20
    assert {anchor for anchor, _, _ in commands} - pages[page].anchors == set()
    text = page.read_text()
    options = {
        option
        for _, command, _ in commands
        for parameter in command.params
        if not getattr(parameter, "hidden", False)
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("--")
    }
    assert {option for option in options if f"<code>{option}" not in text and f" {option}" not in text} == set()


def test_every_key_of_the_configuration_file_is_in_the_reference(site, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("no_such_key = 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "rws", "run", "--config", str(config)], capture_output=True, text=True, check=False
    )
    keys = re.search(r"known: ([^;]*)", done.stderr)
    assert keys is not None, done.stderr
    text = (site / "reference" / "config.html").read_text()
    assert len(keys[1].split(", ")) > 15
    assert {key for key in keys[1].split(", ") if f"<code>{key}</code>" not in text} == set()


def test_every_error_has_its_exit_code(site):
    text = (site / "reference" / "exit_codes.html").read_text()
    names = {name for name, value in vars(rws.errors).items() if getattr(value, "exit_code", None)}
    assert {name for name in names if f"<code>{name}</code>" not in text} == set()


def test_no_link_or_image_is_broken(site, pages):
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are those of the root
            continue
        for target in page.targets + page.loaded:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            found = there.is_file() and (not parts.fragment or there not in pages or _has(pages[there], parts.fragment))
            if not found:
                broken.append(f"{path.relative_to(site)}: {target}")
    assert broken == []


def _has(page: Page, fragment: str) -> bool:
    return unquote(fragment) in page.anchors or fragment.startswith("__")


def test_a_page_loads_nothing_from_elsewhere(pages):
    assert {target for page in pages.values() for target in page.loaded if re.match(r"(https?:)?//", target)} == set()


def test_nothing_of_the_generator_is_left_on_a_page(site, pages):
    left = [path.relative_to(site) for path in pages if re.search(r"&lt;!--|<!-- /|\]\(\.\./", path.read_text())]
    assert left == []
