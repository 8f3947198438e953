import csv

from rich.console import Console

from rws.benchmarks.common.tables import Column, markdown, plain, spread, terminal, write_csv

COLUMNS = (
    Column("name", "name", words=True),
    Column("half", lambda row: row["bytes"] / 2, ".1f"),
    Column("bytes", "bytes", ","),
    Column("note", "note", words=True),
)
ROWS = [{"name": "a", "bytes": 1000}, {"name": "b", "bytes": 3, "note": "small"}]


def test_one_specification_gives_markdown():
    assert markdown(COLUMNS, ROWS).splitlines() == [
        "| name | half | bytes | note |",
        "| --- | ---: | ---: | --- |",
        "| a | 500.0 | 1,000 |  |",
        "| b | 1.5 | 3 | small |",
    ]


def test_one_specification_gives_csv_with_exact_values(tmp_path):
    write_csv(tmp_path / "new" / "rows.csv", "rows/1", COLUMNS, ROWS)
    with (tmp_path / "new" / "rows.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"schema": "rows/1", "name": "a", "half": "500.0", "bytes": "1000", "note": ""},
            {"schema": "rows/1", "name": "b", "half": "1.5", "bytes": "3", "note": "small"},
        ]


def test_one_specification_gives_a_table_for_the_terminal():
    console = Console(width=60)
    with console.capture() as capture:
        console.print(terminal(COLUMNS, ROWS, title="sizes"))
    lines = capture.get().splitlines()
    assert "sizes" in lines[0]
    assert lines[-1].split() == ["b", "1.5", "3", "small"]


def test_a_table_is_transposed():
    text = markdown(*spread(COLUMNS[1:3], ROWS, ("", "a", "b")))
    assert text.splitlines()[2:] == ["| half | 500.0 | 1.5 |", "| bytes | 1,000 | 3 |"]


def test_finished_cells_are_read_by_position():
    assert markdown(plain("words", "number"), [("x", "1")]).splitlines()[-1] == "| x | 1 |"
