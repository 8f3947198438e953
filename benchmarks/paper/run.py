"""Make the tables and figures: train what is missing, measure, draw; and say what is done so far."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from rws.benchmarks.common import committed
from rws.benchmarks.common.plots import small_png
from rws.benchmarks.common.tables import Record
from rws.benchmarks.paper.columns import COLUMNS, SCALES, Place
from rws.benchmarks.paper.entries import ENTRIES
from rws.benchmarks.paper.jobs import Task, open_graph
from rws.edge.common.files import atomic_write_bytes
from rws.edge.common.provenance import write_json
from rws.errors import check_known
from rws.training.jobs.driver import HERE, Where, do_jobs
from rws.training.jobs.graph import Work
from rws.training.jobs.progress import JobLines

RESULTS = committed.RESULTS / "reproduce"
_STYLE = {"font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False, "font.family": "DejaVu Sans"}


def tasks(names: Collection[str] = (), columns: Collection[str] = (), scales: Sequence[str] = SCALES) -> Iterator[Task]:
    """Yield all results, or those of some names and columns; UsageError if a name, column or scale is unknown."""
    known_names = ((names, ENTRIES, "table or figure"), (columns, COLUMNS, "column"), (scales, SCALES, "scale"))
    for given, known, what in known_names:
        check_known(what, given, known)
    for name in names or ENTRIES:
        for column, sources in ENTRIES[name].results():
            for scale in scales:
                wanted = not columns or set(sources) <= set(columns)
                if wanted and all(COLUMNS[source].has_recipe(scale) for source in sources):
                    yield Task(name, column, sources, scale)


def status(results: Path) -> list[Record]:
    """Return for every result whether it has been made: whether its file is in a folder of results."""
    return [{"name": t.name, "column": t.column, "scale": t.scale, "done": t.path(results).is_file()} for t in tasks()]


def reproduce(chosen: Sequence[Task], place: Place, *, out: Path, where: Where = HERE) -> list[Path]:
    """Make results of one scale and return their files; trainings and measurements that exist are used again.

    Args:
        out: gets `<scale>/<name>-<column>.json`, and `.png` for a figure.

    Raises:
        InputError: if a data set was not given.
        RwsError: as `do_jobs`.
    """
    graph = open_graph(chosen, place, JobLines())
    do_jobs(graph, Work(open_graph, (tuple(chosen), place), place.work / place.scale), where)
    for task in chosen:
        _write(task, graph[f"{task.name}-{task.column}"].make(), out)
    return [t.path(out, suffix) for t in chosen for suffix in ((".json", ".png") if t.entry.draw else (".json",))]


def _write(task: Task, found: Any, out: Path) -> None:
    if task.entry.draw is not None:
        with plt.rc_context(_STYLE):  # type: ignore[arg-type]  # the stubs want literal keys
            figure = task.entry.draw(found["result"])
            content = small_png(figure)
            plt.close(figure)
        task.path(out, ".png").parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(task.path(out, ".png"), content)
    kept = {key: value for key, value in found["result"].items() if key not in task.entry.only_drawn}
    write_json(task.path(out), f"reproduce-{task.name}/1", found["provenance"] | kept)
