import errno
import os
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import typer
from typer.testing import CliRunner

import rws.cli
from rws.cli import app
from rws.edge.common.extras import require
from rws.errors import MissingExtraError, SourceError

runner = CliRunner()


def good(name: str = "world") -> None:
    """Greet.

    \b
    Examples:
        rws good --name you
    """
    typer.echo(f"hello {name}")


def refused() -> None:
    """Raise an error that the user caused."""
    raise SourceError("camera 0:\n  cannot be opened")


def buggy() -> None:
    """Raise an error that we caused."""
    raise ZeroDivisionError("oops")


def full() -> None:
    """Raise what a write to a full disk does: no file is named."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def heavy() -> None:
    """Need an extra, as in pip install 'rws-edge[train]'."""
    with require("train"):
        import nowhere_to_be_found  # noqa: F401


tools = typer.Typer(help="A group.")


@tools.command()
def one() -> None:
    """One."""
    typer.echo("one")


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    here = __name__
    points = {name: f"{here}:{name}" for name in ("good", "refused", "buggy", "full", "heavy", "tools")}
    points |= {"absent": "nowhere_to_be_found:command", "renamed": f"{here}:no_such_function"}
    all_points = EntryPoints(EntryPoint(name, value, rws.cli.GROUP) for name, value in points.items())
    monkeypatch.setattr(rws.cli, "entry_points", lambda **query: all_points.select(**query))
    monkeypatch.setattr(rws.cli, "COMMANDS", {})


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


def test_a_command_runs_with_its_options_and_keeps_its_examples():
    assert runner.invoke(app, ["good", "--name", "you"]).output == "hello you\n"
    assert "\n      rws good --name you\n" in runner.invoke(app, ["good", "--help"]).output


def test_a_group_stays_a_group_even_with_one_command():
    assert runner.invoke(app, ["tools", "one"]).output == "one\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("refused", "error: camera 0: cannot be opened\n"),
        ("full", "error: No space left on device\n"),
        ("heavy", "error: this needs the Python package 'nowhere_to_be_found', which is not installed here; "),
        ("absent", "error: `rws absent` is installed but cannot be loaded here (ModuleNotFoundError: "),
        ("renamed", "error: `rws renamed` is installed but cannot be loaded here (AttributeError: "),
    ],
)
def test_a_user_error_is_one_line_on_stderr_and_exit_code_2(command, message):
    result = runner.invoke(app, [command])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_an_unloadable_command_takes_any_arguments():
    result = runner.invoke(app, ["absent", "file", "--option", "3"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_a_mistake_of_ours_keeps_its_traceback():
    result = runner.invoke(app, ["buggy"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_an_unknown_command_or_option_is_refused():
    for arguments in (["nope"], ["good", "--nope"]):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 2
        assert "nope" in result.stderr.lower()


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
        if name.split(".")[0] in {"torch", "torchvision", "matplotlib", "cv2"}:
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Block())
sys.argv = ["rws", *sys.argv[1:]]
from rws.cli import main
main()
"""


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["oracle", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "AssertionError" not in done.stdout
    if "--help" in arguments:
        assert "rws run video.mp4" in done.stdout or "rws oracle photo.jpg" in done.stdout
