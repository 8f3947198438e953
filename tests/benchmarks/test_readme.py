from benchmarks.readme import ROOT, render


def test_every_number_in_the_readme_is_that_of_the_committed_results():
    text = (ROOT / "README.md").read_text()
    assert render(text) == text
