import pytest
import typer
from typer.testing import CliRunner

from rws.benchmarks.cli.reproduce import reproduce
from rws.benchmarks.common import committed
from rws.benchmarks.pages import render as readme
from rws.edge.common.schema import tomllib
from rws.errors import InputError


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """As from a wheel: without committed results, in an empty working directory."""
    monkeypatch.setattr(committed, "ROOT", tmp_path / "site-packages")
    monkeypatch.setattr(committed, "RESULTS", tmp_path / "site-packages" / "benchmarks" / "results")
    monkeypatch.setattr("rws.benchmarks.paper.run.RESULTS", committed.RESULTS / "reproduce")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rws_reproduce(*arguments):
    app = typer.Typer()
    app.command()(reproduce)
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.mark.usefixtures("installed")
def test_pages_are_written_in_a_checkout_only():
    with pytest.raises(InputError, match="clone the repository"):
        readme.main()


def test_results_go_below_the_working_directory(installed, monkeypatch):
    made = {}
    monkeypatch.setattr("rws.benchmarks.paper.run.reproduce", lambda chosen, place, **given: made.update(given) or [])
    assert rws_reproduce("table1", "--column", "cifar10-vgg16").exit_code == 0
    assert (installed / made["out"]).resolve() == installed / "runs" / "reproduce"
    assert not (installed / "site-packages").exists()


def test_status_reads_the_work_folder_if_no_results_are_committed(installed):
    path = installed / "runs" / "reproduce" / "small" / "table1-cifar10-vgg16.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert "1 of" in rws_reproduce("--status").stdout


def test_status_reads_the_committed_results_of_a_checkout():
    assert f"done in {committed.RESULTS / 'reproduce'}" in rws_reproduce("--status").stdout


def test_the_wheel_carries_no_committed_results():
    settings = tomllib.loads((committed.ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "rws.benchmarks.paper" in settings["packages"]
    assert not [name for name in settings["packages"] if name.startswith("rws.benchmarks.results")]
    assert settings["include-package-data"] is False  # else old egg-info brings them back
