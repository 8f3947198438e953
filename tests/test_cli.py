import errno
import json
import logging
import os
import subprocess
import sys
from enum import Enum
from functools import partial
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import rws.cli
from rws.cli import app
from rws.edge.cli.parameters import JsonOption
from rws.edge.common.extras import require
from rws.edge.common.provenance import write_json
from rws.errors import BundleError, InputError, MissingExtraError, SourceError, UsageError
from rws.terminal import claim_stdout, console, is_verbose, log_to, say, session, show
from support.fakes import write_video

runner = CliRunner()
log = logging.getLogger("rws.test")


Shape = Enum("Shape", {"round": "round", "square": "square"})


def good(name: str = "world", shape: Shape = Shape.round) -> None:
    """Greet.

    \b
    Examples:
        rws good --name you
    """
    typer.echo(f"hello {name}")


def misused() -> None:
    """Refuse options."""
    raise UsageError("--a and --b exclude each other")


def refused() -> None:
    """Refuse a file."""
    raise InputError("x.png:\n  is not an image")


def lost() -> None:
    """Lose a camera."""
    raise SourceError("camera 0: cannot be opened")


def unreachable() -> None:
    """Raise an OSError of a library, which has a text alone."""
    raise ConnectionError("no route")


def interrupted() -> None:
    """Be stopped with Ctrl-C."""
    raise KeyboardInterrupt


def interrupted_import() -> None:
    """Be stopped with Ctrl-C while a compiled module is initialised."""
    raise ImportError("initialization failed") from KeyboardInterrupt()


def buggy() -> None:
    """Raise an error that we caused."""
    raise ZeroDivisionError("oops")


def full() -> None:
    """Raise what a write to a full disk does: no file is named."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_descriptor() -> None:
    """Raise what the import of a compiled module does when no more files can be opened."""
    raise ImportError(f"x.so: {os.strerror(errno.EMFILE)}")


def no_memory_for_a_library() -> None:
    """Raise what the import of a compiled module does when its code cannot be mapped."""
    raise ImportError("x.so: failed to map segment from shared object")


def no_descriptor_left() -> None:
    """Raise what reading a bundle does when no more files can be opened."""
    raise BundleError("bundle: cannot be read") from OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def no_memory() -> None:
    """Raise what an array does that does not fit into memory."""
    raise MemoryError


def heavy() -> None:
    """Need an extra, as in pip install 'rws-edge[train]'."""
    with require("train"):
        import nowhere_to_be_found  # noqa: F401


def ours(report: JsonOption = None) -> None:
    """Print all that a command of ours prints."""
    say("a note")
    if is_verbose():
        say("a detail")
    show("a result")
    log.warning("a warning")
    log.info("an event")
    if report is not None:
        write_json(report, "test/1", {"a": 1})


tools = typer.Typer(help="A group.")


@tools.command()
def one() -> None:
    """One."""
    typer.echo("one")


NAMES = ("good", "misused", "refused", "lost", "buggy", "full", "unreachable", "interrupted", "interrupted_import")
NAMES += ("heavy", "tools", "no_descriptor", "no_descriptor_left", "no_memory", "no_memory_for_a_library")


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    here = __name__
    points = {name: f"{here}:{name}" for name in NAMES}
    points |= {"absent": "nowhere_to_be_found:command", "renamed": f"{here}:no_such_function"}
    all_points = EntryPoints(EntryPoint(name, value, rws.cli.GROUP) for name, value in points.items())
    monkeypatch.setattr(rws.cli, "entry_points", lambda **query: all_points.select(**query))
    monkeypatch.setattr(rws.cli, "COMMANDS", {"ours": f"{here}:ours", "our-tools": f"{here}:tools"})


def test_help_lists_every_command_even_those_that_cannot_be_loaded():
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for name, text in {
        "absent": "Unavailable here",
        "renamed": "Unavailable here",
        "good": "Greet.",
        "heavy": "Need an extra, as in pip install 'rws-edge[train]'",
        "tools": "A group.",
    }.items():
        (line,) = (line for line in result.output.splitlines() if line.split()[:1] == [name])
        assert text in line
    assert "..." not in result.output.partition("Commands:")[2]


def test_a_command_runs_with_its_options_and_keeps_its_examples():
    assert runner.invoke(app, ["good", "--name", "you"]).output == "hello you\n"
    assert "\n      rws good --name you\n" in runner.invoke(app, ["good", "--help"]).output


def test_a_group_stays_a_group_even_with_one_command():
    assert runner.invoke(app, ["tools", "one"]).output == "one\n"


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("misused", 2, "error: --a and --b exclude each other\n"),
        ("refused", 3, "error: x.png: is not an image\n"),
        ("lost", 4, "error: camera 0: cannot be opened\n"),
        ("full", 3, "error: No space left on device; free space, or choose another disk\n"),
        ("no_descriptor", 3, "error: x.so: Too many open files; raise the limit of open files (`ulimit -n`)\n"),
        ("no_descriptor_left", 3, "error: bundle: cannot be read; raise the limit of open files"),
        ("no_memory", 3, "error: Cannot allocate memory; end other programs, or raise the limit of memory\n"),
        ("no_memory_for_a_library", 3, "error: x.so: failed to map segment from shared object; end other programs"),
        ("unreachable", 3, "error: no route\n"),
        ("interrupted", 130, "error: interrupted\n"),
        ("interrupted_import", 130, "error: interrupted\n"),
        ("heavy", 3, "error: this needs the Python package 'nowhere_to_be_found', which is not installed here; "),
        ("absent", 3, "error: `rws absent` is installed but cannot be loaded here (ModuleNotFoundError: "),
        ("renamed", 3, "error: `rws renamed` is installed but cannot be loaded here (AttributeError: "),
    ],
)
def test_an_error_of_the_user_is_one_line_on_stderr_and_an_exit_code(command, code, message):
    result = runner.invoke(app, [command])
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_an_unloadable_command_takes_any_arguments():
    result = runner.invoke(app, ["absent", "file", "--option", "3"])
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)


def test_a_mistake_of_ours_keeps_its_traceback():
    result = runner.invoke(app, ["buggy"])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "options", [("ours",), ("-q", "ours"), ("ours", "--quiet"), ("ours", "-v"), ("-v", "ours", "-v")]
)
def test_quiet_and_verbose_stand_before_or_after_the_command(options):
    result = runner.invoke(app, options)
    assert result.exit_code == 0
    verbose, quiet = "-v" in options, {"-q", "--quiet"} & {*options}
    lines = [*([] if quiet else ["a note"]), *(["a detail"] if verbose else []), "a result"]
    assert result.stdout.splitlines() == lines
    logged = ["WARNING rws.test: a warning", "INFO rws.test: an event"] if verbose else []
    assert [line for line in result.stderr.splitlines() if line.startswith(("WARNING", "INFO"))] == logged
    assert logging.getLogger("rws").level == logging.NOTSET
    assert runner.invoke(app, ["ours"]).stdout == "a note\na result\n"


def test_a_document_takes_stdout_and_people_read_stderr():
    result = runner.invoke(app, ["ours", "--json", "-"])
    document = json.loads(result.stdout)
    assert (document["schema"], document["a"]) == ("test/1", 1)
    assert [line for line in result.stderr.splitlines() if "warning" not in line] == ["a note", "a result"]
    assert "result" not in runner.invoke(app, ["ours", "--json", "-", "-q"]).stderr


def test_a_result_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    result = runner.invoke(app, ["ours", "--json", str(tmp_path / "nowhere" / "x.json")])
    assert (result.exit_code, result.stdout) == (3, "")
    assert "its folder does not exist" in result.stderr


def test_one_document_only_takes_stdout():
    with session():
        claim_stdout(None)
        claim_stdout(Path("x.json"))
        claim_stdout(Path("-"))
        with pytest.raises(UsageError, match="only one output can go to stdout"):
            claim_stdout(Path("-"))


@pytest.mark.parametrize("arguments", [["-q", "-v", "ours"], ["ours", "-v", "-q"], ["-q", "ours", "-v"]])
def test_quiet_and_verbose_exclude_each_other(arguments):
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "error: --quiet and --verbose exclude each other; give one of them"


def test_verbose_shows_the_traceback_of_an_error():
    result = runner.invoke(app, ["-v", "refused"])
    assert result.exit_code == 3
    assert result.stderr.startswith("Traceback")
    assert result.stderr.splitlines()[-1] == "error: x.png: is not an image"


@pytest.mark.parametrize("command", [[], ["ours"], ["our-tools"], ["our-tools", "one"]])
def test_every_command_of_ours_has_the_common_options(command):
    text = runner.invoke(app, [*command, "-h"]).output
    assert all(option in text for option in ("-q, --quiet", "-v, --verbose", "-h, --help"))
    assert text == runner.invoke(app, [*command, "--help"]).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "No such command 'nope'"),
        (["godo"], "Did you mean 'good'?"),
        (["our-tools", "oen"], "Did you mean 'one'?"),
        (["good", "--nome", "x"], "--name"),
        (["good", "--shape", "squar"], "'squar' is not one of 'round', 'square'. Did you mean 'square'?"),
        (["good", "--shape", "x"], "'x' is not one of 'round', 'square'."),
        (["build", "--data", "x"], "`build` is now `rws adopt MODEL IMAGES`"),
    ],
)
def test_a_mistyped_word_is_refused_with_a_suggestion(arguments, message):
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in " ".join(result.stderr.split())


def test_version():
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("rws 0.")


def test_extras_error_is_typed():
    with pytest.raises(MissingExtraError):
        heavy()


PROBE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "matplotlib", "cv2", "onnx", "onnxruntime"}:
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Block())
sys.argv = ["rws", *sys.argv[1:]]
from rws.cli import main
main()
"""


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in its background
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
from rws.__main__ import main
sys.meta_path.insert(0, Interrupt())
main()
"""


def test_an_interrupt_while_the_first_modules_are_imported_is_one_line():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["oracle", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "AssertionError" not in done.stdout
    if "--help" in arguments:
        assert "rws run video.mp4" in done.stdout or "rws oracle photo.jpg" in done.stdout


def test_a_command_runs_if_its_parent_has_closed_stdout_and_stderr():
    command = [sys.executable, "-m", "rws", "run", "pattern:64x64", "--limit", "1"]
    done = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *command], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_video_is_read_whatever_its_parent_has_closed(tmp_path, closed):
    video = write_video(tmp_path / "clip.mp4", [80, 160])
    command = [sys.executable, "-m", "rws", "run", str(video), "--limit", "1"]
    assert (
        subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *command], capture_output=True, check=False).returncode == 0
    )


def complete(shell, line):
    """What the shell is given for a line whose last word is not complete."""
    words = line.split(" ")
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_ARGS": line}
    variables |= {"_RWS_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return subprocess.run(
        [sys.executable, "-c", PROBE], env=os.environ | variables, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rws bun", ["bundle"]),
        ("rws bundle s", ["switch", "sign"]),
        ("rws bench late", ["latency"]),
        ("rws -q run --bac", ["--backend"]),
        ("rws run --backend t", ["torch"]),
    ],
)
def test_bash_completes_commands_options_and_choices_and_imports_nothing_heavy(line, expected):
    assert complete("bash", line).split() == expected


def test_zsh_and_fish_show_what_each_command_is_for_on_a_line():
    for line in ("rws ", "rws bench ", "rws run --"):
        lines = complete("fish", line).splitlines()
        assert len(lines) > 5
        assert all("\t" in line for line in lines)
    assert '"bundle":"' in complete("zsh", "rws bun")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_shown_and_installed(shell, tmp_path):
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    run = partial(subprocess.run, env=environment, capture_output=True, text=True, check=True)
    shown = run([sys.executable, "-m", "rws", "--show-completion", shell]).stdout
    assert f"_RWS_COMPLETE=complete_{shell}" in shown
    run([sys.executable, "-m", "rws", "--install-completion", shell])
    installed = [path for path in tmp_path.rglob("*") if path.is_file() and "complete_" in path.read_text()]
    assert len(installed) == 1


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_no_line_of_the_list_of_commands_is_cut_off(columns):
    environment = os.environ | {"COLUMNS": str(columns)}
    for group in ([], ["bench"], ["bundle"]):
        command = [sys.executable, "-m", "rws", *group, "--help"]
        text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        listed = text.partition("Commands:")[2]
        assert "..." not in listed
        assert max(map(len, listed.splitlines())) <= min(columns, 120)


HOSTILE = "\x1b]0;title\x07 [/x] :warning: \udce9 http://me:hu sh@cam/hush"
HARMLESS = r"\x1b]0;title\x07 [/x] :warning: \xe9 http://cam"


@pytest.mark.parametrize(
    "arguments",
    [["inspect", HOSTILE], ["-v", "inspect", HOSTILE], ["run", HOSTILE], ["inspect", "x", HOSTILE], ["--\x1bx"]],
)
def test_what_was_typed_cannot_steer_the_terminal(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code in (2, 3, 4)
    assert "\x1b" not in result.output
    assert "hush" not in result.output
    assert result.output.encode()


def test_lines_results_and_log_are_shown_escaped(capsys):
    say(f"{HOSTILE}\nnext")
    show(HOSTILE)
    with log_to(sys.stdout):
        logging.getLogger("rws").warning("%s", HOSTILE)
    assert capsys.readouterr().out == f"{HARMLESS}\nnext\n{HARMLESS}\n{HARMLESS}\n"


def test_brackets_and_colons_in_a_name_are_no_markup(capsys):
    console().print("[red]a[/x] :warning:.png")
    assert capsys.readouterr().out == "[red]a[/x] :warning:.png\n"
