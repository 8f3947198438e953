"""Hooks of MkDocs: reference pages made from the code, and the files of the repository that pages link to.

A page may link to any file of the checkout, as it must to work there (`../edge/live/README.md`). Such a file is added
to the site below `source/`, text as a page, and the link is rewritten.
"""

import inspect
import posixpath
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import rws.cli
from rws import errors
from rws.edge.cli.run import OF_CAMERAS

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "source"
ROOMS = ("rws", "edge", "oracle", "training", "benchmarks")
COMMON = ("-h", "-q", "-v", "--help")  # options of every command; the page says so once
VALUES = {"str": "text", "list[str]": "text, or a list", "FILE": "path", "int": "integer", "float": "number"}
# What is shown as code, and in which language; other files are copied.
LANGUAGES = {
    ".py": "python",
    ".toml": "toml",
    ".yaml": "yaml",
    ".c": "c",
    ".service": "ini",
    ".conf": "ini",
    "": "text",
}
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_COMMENT = re.compile(r"<!--(?!-).*?-->\n?")
_FENCE = re.compile(r"^(`{3,}).*?^\1\s*$|`[^`\n]+`", re.DOTALL | re.MULTILINE)

_added: dict[PurePosixPath, str] = {}
"""The files of the repository that are on the site, and where."""


@event_priority(100)  # before mkdocstrings, which overlooks a folder that does not exist yet
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show mkdocstrings the packages as they are installed: it does not follow an editable installation."""
    _added.clear()
    folder = ROOT / "build" / "reference"
    shutil.rmtree(folder, ignore_errors=True)
    for room in ROOMS:
        place = folder / "rws" if room == "rws" else folder / "rws" / room
        shutil.copytree(ROOT / room, place, ignore=_no_python, dirs_exist_ok=True)
    return config


def _no_python(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (name.endswith((".py", ".pyi")) or Path(folder, name).is_dir())]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the files of the repository that pages link to, and those that these link to."""
    docs = Path(config.docs_dir).relative_to(ROOT).as_posix()
    waiting = [PurePosixPath(docs, file.src_uri) for file in files.documentation_pages()]
    while waiting:
        page = waiting.pop()
        for target in _targets(page):
            if target.parts[0] == docs or target in _added or page.suffix != ".md":
                continue
            added = _added_file(target, config)
            files.append(added)
            _added[target] = added.src_uri
            waiting.append(target)
    return files


def _added_file(path: PurePosixPath, config: MkDocsConfig) -> File:
    uri, language = f"{SOURCE}/{path}", LANGUAGES.get(path.suffix)
    if language is None:
        return File.generated(config, uri, abs_src_path=str(ROOT / path))
    code = f"---\nsearch:\n  exclude: true\n---\n\n# {path.name}\n\n`{path}`\n\n"
    return File.generated(config, f"{uri}.md", content=f"{code}````{language}\n{(ROOT / path).read_text()}\n````\n")


def _targets(page: PurePosixPath) -> Iterator[PurePosixPath]:
    """Return the files of the repository that a page links to."""
    if page.suffix == ".md":
        for match in _LINK.finditer(_FENCE.sub("", (ROOT / page).read_text())):
            if target := _resolve(page, match[2]):
                yield target


def _resolve(page: PurePosixPath, link: str) -> PurePosixPath | None:
    if "://" in link or link.startswith(("/", "mailto:")):
        return None
    path = PurePosixPath(posixpath.normpath(page.parent / link))
    if (ROOT / path).is_dir():
        path /= "README.md"
    return path if path.parts[0] != ".." and (ROOT / path).is_file() else None


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write what is made from the code, rewrite links to files of the repository, and drop the generator's comments."""
    uri = page.file.src_uri
    for marker, make in GENERATED.items():
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    if uri == "changelog.md":
        markdown += (ROOT / "CHANGELOG.md").read_text()
        origin = PurePosixPath("CHANGELOG.md")
    elif uri.startswith(f"{SOURCE}/"):
        origin = PurePosixPath(uri).relative_to(SOURCE)
    else:
        origin = PurePosixPath("docs", uri)

    def rewritten(match: re.Match[str]) -> str:
        target = _resolve(origin, match[2])
        if target is None:
            return match[0]
        place = posixpath.relpath(_added.get(target) or target.relative_to("docs").as_posix(), posixpath.dirname(uri))
        return f"{match[1]}{place}{match[3]}"

    parts, end = [], 0
    for code in _FENCE.finditer(markdown):
        parts += [_LINK.sub(rewritten, _COMMENT.sub("", markdown[end : code.start()])), code[0]]
        end = code.end()
    return "".join([*parts, _LINK.sub(rewritten, _COMMENT.sub("", markdown[end:]))])


def _commands(group: Any, context: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any, Any]]:
    """Return the words, the command and its context, of every command below a group."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        own = type(context)(command, info_name=name, parent=context)
        yield " ".join((*words, name)), command, own
        if hasattr(command, "list_commands"):
            yield from _commands(command, own, (*words, name))


def commands() -> list[tuple[str, Any, Any]]:
    """Return every command of `rws` with its words and context; the first is `rws` itself."""
    group = typer.main.get_command(rws.cli.app)
    context = group.make_context("rws", [], resilient_parsing=True)
    return [("rws", group, context), *_commands(group, context, ("rws",))]


def command_reference() -> str:
    """Return the reference of every command: usage, what it does, arguments, options, examples."""
    return "\n\n".join(_command(*command) for command in commands())


def _command(words: str, command: Any, context: Any) -> str:
    heading = "#" * (2 if words.count(" ") < 2 else 3)
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"{heading} {words} {{ #{words.replace(' ', '-')} }}", f"```\n{words} {usage}\n```"]
    parts += _help(inspect.cleandoc(command.help or ""))
    if hasattr(command, "list_commands"):
        shorts = {name: command.get_command(context, name) for name in command.list_commands(context)}
        rows = [
            f"| [`{words} {name}`](#{words.replace(' ', '-')}-{name}) | {_cell(short.get_short_help_str(200))} |"
            for name, short in shorts.items()
        ]
        parts.append("\n".join(["| command | does |", "| --- | --- |", *rows]))
    for kind in ("argument", "option"):
        records = _records(command, context, kind)
        if rows := [_row(row) for row in records if words == "rws" or not row[0].startswith(COMMON)]:
            parts.append("\n".join([f"| {kind} | default | meaning |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts)


def _help(text: str) -> Iterator[str]:
    """Return the paragraphs of a help text; an indented block, as of examples, becomes code."""
    for block in text.replace("\b\n", "").split("\n\n"):
        title, _, code = block.partition("\n    ")
        yield _escaped(title)
        if code:
            yield f"```sh\n{inspect.cleandoc('    ' + code)}\n```"


def _records(command: Any, context: Any, kind: str) -> Iterator[tuple[str, str, str]]:
    """Return what each argument or option of a command is called, its default, and its help text."""
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context) if parameter.param_type_name == kind else None
        if record:
            text, facts = re.fullmatch(
                r"(.*?)(?:\s*\[((?:default|env var|required|x[<>]|\d+[<>])[^\]]*)\])?", record[1]
            ).groups()
            facts = (facts or "").split("; ")
            default = next((fact.removeprefix("default: ") for fact in facts if fact.startswith("default: ")), "")
            others = [fact for fact in facts if fact and not fact.startswith("default: ")]
            yield record[0], default, f"{text} ({', '.join(others)})" if others else text


def _row(record: tuple[str, str, str]) -> str:
    name, default, text = record
    return f"| {_code(name)} | {_code(default)} | {_cell(text)} |"


def _code(text: str) -> str:
    return "`" + text.replace("|", r"\|") + "`" if text else ""


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", r"\|")


def _escaped(text: str) -> str:
    """Keep what Markdown would take for HTML, in text but not in its code."""
    return "".join(
        part if part.startswith("`") else part.replace("<", "&lt;").replace("*", r"\*").replace("[", r"\[")
        for part in re.split(r"(`[^`]*`)", text)
    )


def config_reference() -> str:
    """Return the keys of a configuration file: the argument and the options of `rws run`."""
    _, command, context = next(found for found in commands() if found[0] == "rws run")
    rows = []
    for kind in ("argument", "option"):
        for name, default, text in _records(command, context, kind):
            spelled, _, value = name.partition(" ")
            long = next((part for part in re.split(r"[ ,/]+", name) if part.startswith("--")), spelled)
            key = long.removeprefix("--").replace("-", "_").lower().strip("[]{}.…")
            if key != "config" and not name.startswith(COMMON):
                value = re.sub(r"^[-/, \w]*(?=<)|\brange\b|[<>]", "", value).strip() if "<" in value else value
                typed = "true or false" if not value or value.startswith(("/", "-")) else value
                cells = (
                    _cell(VALUES.get(typed, typed)),
                    _code(default),
                    "yes" if key in OF_CAMERAS else "",
                    _cell(text),
                )
                rows.append(f"| `{key}` | {' | '.join(cells)} |")
    return "\n".join(["| key | value | default | of a camera | meaning |", "| --- | --- | --- | --- | --- |", *rows])


def error_reference() -> str:
    """Return a table of the errors a user can cause, and the exit code of each."""
    found = [value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == "rws.errors"]
    rows = [
        f"| `{error.__name__}` | {error.exit_code} | {_cell(inspect.getdoc(error).splitlines()[0])} |"
        for error in found
    ]
    return "\n".join(["| error | exit code | raised if |", "| --- | ---: | --- |", *rows])


GENERATED = {
    "<!-- commands -->": command_reference,
    "<!-- configuration keys -->": config_reference,
    "<!-- errors -->": error_reference,
}
