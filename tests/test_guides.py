"""What README.md and the guides tell a reader to type: each command exists, and what ends in seconds is run."""

from __future__ import annotations

import glob
import re
import shlex
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer
from typer.core import TyperGroup
from typer.main import get_command

from rws import terminal
from rws.cli import app
from rws.edge.bundle.contents import CIFAR10_BUNDLE, SHIPPED
from support.command_line import invoke

pytestmark = pytest.mark.torch  # a guide replays a test set

ROOT = Path(__file__).parents[1]
GUIDES = ("docs/get_started.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/guides/*.md")))
PAGES = ("README.md", *GUIDES)
SHELL, PYTHON, TOML = ("bash", "console", "sh", "shell"), ("python", "py"), ("toml",)
SLOW = {"adopt", "bench", "demo", "drill", "extract", "reproduce", "train"}
ENDLESS = {"serve", "show", "watch"}
"""Options of `rws run` that wait for a person."""
USAGE_ERROR = typer.BadParameter.__bases__[0]  # of the click that typer uses, its own or the installed one
OPENED = ("source", "images", "data", "bundle", "path", "current", "new", "config", "onto")
"""Parameters that name what must exist: a file, a folder, a glob, or the test pattern."""
_FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w*).*?\n(?P<text>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?<=\n\n)(?:(?: {4}.*)?\n)+(?=\S|\Z)")
_NOTE = re.compile(r"<!-- (not run: .+|output) -->\n\Z")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Block:
    """A block of code of a page, and the note in the comment before it: `not run: reason`, or `output`."""

    kind: str
    text: str
    note: str

    @property
    def runs(self) -> bool:
        return self.kind in (*SHELL, *PYTHON) and not self.note

    def commands(self) -> list[list[str]]:
        """Return the words of each command of a shell block, without `sudo` and what is set before it."""
        found: list[list[str]] = []
        for line in re.sub(r"\\\n\s*", " ", self.text).splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
            lexer.whitespace_split = True
            found.append([])
            for word in lexer:
                if set(word) <= set(";&|"):
                    found.append([])
                elif found[-1] or not (word == "sudo" or re.match(r"\w+=", word)):
                    found[-1].append(word)
        return [words for words in found if words]


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page in order: fenced, or indented by four spaces, which are taken for shell."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found: list[tuple[int, Block]] = []
    for match in _FENCE.finditer(text):
        note = _NOTE.search(text, 0, match.start())
        code = match["text"].replace(f"\n{match['indent']}", "\n")
        found.append((match.start(), Block(match["kind"], code, note[1] if note else "")))
    outside = _FENCE.sub(lambda match: re.sub(r"[^\n]", "x", match[0]), text)
    for match in _INDENTED.finditer(outside):
        found.append((match.start(), Block("bash", re.sub(r"^ {4}", "", match[0], flags=re.MULTILINE), "")))
    return [block for _, block in sorted(found, key=lambda item: item[0])]


def commands(page: str) -> list[list[str]]:
    return [words for block in blocks(page) if block.kind in SHELL for words in block.commands()]


def rws_words(words: list[str]) -> list[str] | None:
    """Return what follows `rws`, or None for another program."""
    return words[1:] if Path(words[0]).name == "rws" else None


def descend(words: list[str]) -> tuple[Any, list[str], typer.Context]:
    """Return the command that the words name, and the words after its name."""
    command: Any = get_command(app)
    context = typer.Context(command, info_name="rws")
    while isinstance(command, TyperGroup) and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        found = command.get_command(context, words[0])
        assert found is not None, f"rws has no command {words[0]}: {' '.join(words)}"
        command, words = found, words[1:]
        context = typer.Context(command, info_name=command.name, parent=context)
    return command, words, context


def parse(words: list[str]) -> dict[str, object]:
    """Parse a command line as `rws` would, without running it; its parameters."""
    command, rest, context = descend(words)
    with terminal.session(), suppress(typer.Exit):
        return command.make_context(command.name, list(rest), parent=context.parent).params
    return {}


def runs_here(words: list[str]) -> bool:
    """Tell whether a command ends by itself in seconds, and all that it opens is in the working directory."""
    given = parse(words)
    if words[0] in SLOW or any(given.get(name) for name in ENDLESS):
        return False
    named = [given[name] for name in OPENED if given.get(name) is not None]
    values = [str(value) for one in named for value in (one if isinstance(one, list | tuple) else [one])]
    bounded = given.get("limit") is not None
    known = {*SHIPPED, *(["pattern"] if bounded else [])}
    return all(value in known or Path(value).exists() or glob.glob(value) for value in values)


@pytest.fixture
def folder(clear, tmp_path, monkeypatch) -> Path:
    """A working directory with what the pages name: images, a video, bundles, a model, a log."""
    images = clear[0]
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(images[:6]):
        cv2.imwrite(str(tmp_path / "photos" / f"{number}.jpg"), image[:, :, ::-1])
    shutil.copy(tmp_path / "photos/0.jpg", tmp_path / "photo.jpg")
    video = cv2.VideoWriter(str(tmp_path / "video.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 30, (64, 64))
    for image in images[:20]:
        video.write(cv2.resize(image[:, :, ::-1], (64, 64)))
    video.release()
    for name in ("my_bundle", "current"):
        shutil.copytree(CIFAR10_BUNDLE, tmp_path / name)
    shutil.copy(CIFAR10_BUNDLE / "model.onnx", tmp_path / "model.onnx")
    for name in ("images", "photos"):
        shutil.copytree(ROOT / "examples" / name, tmp_path / "examples" / name)
    (tmp_path / "power.log").write_text("RAM 2448/7620MB VDD_IN 5081mW/5012mW VDD_SOC 1571mW/1568mW\n" * 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_files(page: str) -> None:
    """Write each block of TOML that begins with `# NAME.toml` into the working directory."""
    for block in blocks(page):
        if block.kind in TOML and (name := re.match(r"# (\w+\.toml)\n", block.text)):
            Path(name[1]).write_text(block.text)


@pytest.mark.parametrize("page", PAGES)
def test_each_command_exists_and_takes_its_options(page, folder):
    write_files(page)
    for words in filter(None, map(rws_words, commands(page))):
        try:
            parse(words)
        except USAGE_ERROR as error:
            pytest.fail(f"{page}: rws {' '.join(words)}: {error.format_message()}")


@pytest.mark.parametrize("page", [*PAGES, "docs/concepts.md"])
def test_commands_in_a_sentence_exist(page):
    text = _FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for span in re.findall(r"`rws ([^`]+)`", text):
        command, rest, context = descend(span.split())
        known = {option for parameter in command.get_params(context) for option in parameter.opts}
        known |= {option for parameter in command.get_params(context) for option in parameter.secondary_opts}
        assert {word for word in rest if word.startswith("-") and word != "-"} <= known, f"{page}: rws {span}"


@pytest.mark.parametrize("page", PAGES)
def test_what_can_run_here_runs(page, folder, capsys):
    write_files(page)
    ran, printed = 0, ""
    for block in blocks(page):
        if block.note == "output":
            compare(block.text, printed)
        elif block.runs:
            done = run_python(page, block.text, capsys) if block.kind in PYTHON else run_commands(page, block)
            ran, printed = ran + len(done), "".join(done)
    assert ran or page == "README.md"


def run_python(page: str, code: str, capsys) -> list[str]:
    """Run a block of Python as it stands; what it prints."""
    exec(compile(code, page, "exec"), {"__name__": "__main__"})
    return [capsys.readouterr().out]


def run_commands(page: str, block: Block) -> list[str]:
    """Run the commands of a block that can run here, which in a guide are all; what each prints."""
    done = []
    for words in filter(None, map(rws_words, block.commands())):
        if runs_here(words):
            done.append(invoke(*words).stdout)
        else:
            assert page not in GUIDES, f"{page}: mark as not run, with the reason: rws {' '.join(words)}"
    return done


def compare(shown: str, printed: str) -> None:
    """Compare output on a page with what was printed: the words exactly, numbers roughly, milliseconds not at all."""

    def kind_of(line: str) -> str:
        return " ".join(_NUMBER.sub("0", line).split())

    lines = {kind_of(line): line for line in printed.splitlines()}
    for line in filter(str.strip, shown.splitlines()):
        kind = kind_of(line)
        assert kind in lines, f"{line!r} is not among {list(lines.values())}"
        if not re.match(r"ms|p\d\d| ms$", line.strip()):
            found, expected = (np.array(_NUMBER.findall(text), float) for text in (lines[kind], line))
            np.testing.assert_allclose(found, expected, atol=3)


@pytest.mark.parametrize("page", PAGES)
def test_targets_extras_and_files_exist(page):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    # tomllib is missing in Python 3.10.
    project = (ROOT / "pyproject.toml").read_text()
    extras = set(
        re.findall(r"^(\w+) = \[", project.split("[project.optional-dependencies]")[1].split("[project.")[0], re.M)
    )
    for program, *words in commands(page):
        text = " ".join(words)
        if program == "make":
            assert {word for word in words if "=" not in word} <= targets, text
        if program.endswith("pip"):
            named = re.findall(r"(?:\.|whl\)|rws-edge)\[([\w,]+)\]", text)
            assert {extra for group in named for extra in group.split(",")} <= extras, text
    # Links relative to the page are the site's to check.
    rooms = "benchmarks|deploy|docs|edge|examples|oracle|training"
    text = (ROOT / page).read_text(encoding="utf-8")
    for path in re.findall(rf"(?<![\w./-])(?:{rooms})/[\w./-]+\.\w+", text):
        assert (ROOT / path).exists(), path
