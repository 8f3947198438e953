import json

import pytest

from rws.benchmarks.pages.render import PAGES, RESULTS, ROOT, main, render
from rws.benchmarks.pages.results import made_by


@pytest.mark.parametrize("page", PAGES)
def test_every_number_on_a_page_is_that_of_the_committed_results(page):
    assert render(page, PAGES[page]) == (ROOT / page).read_text()


@pytest.mark.parametrize("page", PAGES)
def test_no_line_of_text_begins_with_a_value(page):
    """A line that begins with a comment would be HTML to its end."""
    lines = (ROOT / page).read_text().splitlines()
    assert not [line for line in lines if line.startswith("<!--") and not line.endswith("-->")]


def test_every_result_says_how_and_at_which_commit_it_was_made():
    for path in RESULTS.rglob("*.json"):
        result = json.loads(path.read_text())
        assert result["command"].split()[0] in ("rws", "python"), path
        assert result["commit"], path


def test_results_of_one_commit_are_cited_together():
    made = {"machine": {"processor": "a CPU"}, "seed": 3}
    files = [("a.json", "1234567"), ("deep/b.json", "89abcde"), ("c.json", "1234567"), ("d.json", None)]
    assert made_by(*({**made, "file": file, "commit": commit} for file, commit in files)) == (
        "[a.json](benchmarks/results/a.json), [c.json](benchmarks/results/c.json), made at 1234567; "
        "[b.json](benchmarks/results/deep/b.json), made at 89abcde; "
        "[d.json](benchmarks/results/d.json), made at an unknown commit (a CPU, seed 3)"
    )


def test_every_machine_and_seed_of_cited_results_is_named():
    made = {"commit": "1234567", "machine": {"processor": "a CPU"}}
    results = [{**made, "file": "a.json", "seed": 0}, {**made, "file": "b.json", "seed": 3, "device": "a GPU"}]
    assert made_by(*results).endswith("made at 1234567 (a CPU, a GPU, seed 0, 3)")


def test_a_check_of_the_pages_writes_nothing(monkeypatch):
    monkeypatch.setattr("pathlib.Path.write_text", pytest.fail)
    main(check=True)
