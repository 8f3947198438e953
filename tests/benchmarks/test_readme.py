import pytest

from benchmarks.readme import PAGES, ROOT, render


@pytest.mark.parametrize("page", PAGES)
def test_every_number_on_a_page_is_that_of_the_committed_results(page):
    text = (ROOT / page).read_text()
    assert render(text, PAGES[page]) == text
