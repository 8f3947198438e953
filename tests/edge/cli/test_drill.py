import json

from typer.testing import CliRunner

from rws.cli import app
from rws.edge.faults.harness import Case
from rws.edge.sources.test_pattern import PatternSource

runner = CliRunner()


def play(drill):
    """It is said."""
    drill.play(PatternSource(64, 64, 1000.0), lambda seen: len(seen) >= 5)


def raise_something(drill):
    """It is said."""
    raise ZeroDivisionError("oh")


def test_the_command_prints_and_writes_promises_and_counts(tmp_path):
    result = runner.invoke(app, ["drill", "--only", "an empty frame", "--json", str(tmp_path / "d.json")])
    assert result.exit_code == 0, result.output
    assert "in 5 = out 4 + dropped 0 + rejected 1" in result.output
    assert "1 of 1 passed" in result.output
    (case,) = json.loads((tmp_path / "d.json").read_text())["cases"]
    assert (case["passed"], case["accounted"], case["rejected_by_reason"]) == (True, True, {"empty": 1})


def test_the_command_fails_when_a_promise_is_broken(monkeypatch):
    monkeypatch.setattr("rws.edge.faults.cases.CASES", [Case("bad one", "It is said.", raise_something)])
    result = runner.invoke(app, ["drill"])
    assert result.exit_code == 1
    assert "not kept: bad one: no other exception" in result.output


def test_an_unknown_fault_is_a_clear_error():
    result = runner.invoke(app, ["drill", "--only", "meteorite"])
    assert result.exit_code == 2
    assert "no fault's name contains 'meteorite'" in result.stderr


def test_quick_leaves_out_what_takes_long(monkeypatch):
    cases = [Case("fast one", "It is said.", play), Case("slow one", "It is said.", raise_something, slow=True)]
    monkeypatch.setattr("rws.edge.faults.cases.CASES", cases)
    result = runner.invoke(app, ["drill", "--quick"])
    assert result.exit_code == 0, result.output
    assert "1 of 1 passed" in result.output


def test_only_a_soak_is_hostile():
    result = runner.invoke(app, ["drill", "--hostile"])
    assert result.exit_code == 2
    assert "add --soak SECONDS" in result.output
