"""Make the tables and figures: train what is missing, measure, draw; and say what is done so far."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from rws.benchmarks.common import committed
from rws.benchmarks.common.plots import small_png
from rws.benchmarks.common.tables import Record
from rws.benchmarks.paper.columns import COLUMNS, SCALES, ColumnBuild, Place
from rws.benchmarks.paper.entries import ENTRIES, Entry
from rws.benchmarks.paper.measure import REPRODUCE_VERSION, Measure, Result, Variant
from rws.benchmarks.paper.tables import TABLE1, TABLE5, trained
from rws.benchmarks.paper.train import run_in_workers, train
from rws.edge.common.files import atomic_write_bytes
from rws.edge.common.provenance import provenance, write_json
from rws.errors import check_known
from rws.training.jobs.store import JSON, Store, run_jobs

RESULTS = committed.RESULTS / "reproduce"
_STYLE = {"font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False, "font.family": "DejaVu Sans"}

# Numbers of test and validation images by scale and image size: as many as the scale has time for.
_LIMITS = {("small", 32): (1000, 200), ("small", 64): (500, 120), ("full", 224): (1000, 300)}
_FULL = (10_000, 2000)

Jobs = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Task:
    """One result: an entry for one column, or for several jointly."""

    name: str
    column: str
    sources: tuple[str, ...]
    scale: str

    @property
    def entry(self) -> Entry:
        """The table or figure."""
        return ENTRIES[self.name]

    def path(self, folder: Path, suffix: str = ".json") -> Path:
        """Return its file in a folder of results."""
        return folder / self.scale / f"{self.name}-{self.column}{suffix}"


def tasks(names: Collection[str] = (), columns: Collection[str] = (), scales: Sequence[str] = SCALES) -> Iterator[Task]:
    """Yield all results, or those of some names and columns; UsageError if a name, column or scale is unknown."""
    known_names = ((names, ENTRIES, "table or figure"), (columns, COLUMNS, "column"), (scales, SCALES, "scale"))
    for given, known, what in known_names:
        check_known(what, given, known)
    for name in names or ENTRIES:
        for column, sources in ENTRIES[name].results():
            for scale in scales:
                if scale in ENTRIES[name].scales and (not columns or set(sources) <= set(columns)):
                    yield Task(name, column, sources, scale)


def status(results: Path) -> list[Record]:
    """Return for every result whether it has been made: whether its file is in a folder of results."""
    return [{"name": t.name, "column": t.column, "scale": t.scale, "done": t.path(results).is_file()} for t in tasks()]


def measured_column(column: str, place: Place) -> Measure:
    """Return the measure of a column, with the scale's number of images, at most `place.limit`.

    Raise InputError if its data set was not given.
    """
    size = COLUMNS[column].size
    limit, validation = _LIMITS.get((place.scale, size), _FULL)
    most = place.limit or limit
    return Measure(ColumnBuild(COLUMNS[column], place), min(limit, most), min(validation, most))


def _scores(measure: Measure, names: Collection[str]) -> Jobs:
    kinds = {kind for name in names for kind in ENTRIES[name].kinds}
    variants = [Variant("std"), *(Variant(kind) for kind in kinds if kind.startswith("tuned"))]
    if "robust" in kinds:
        variants.append(Variant("residual"))
    if {"table1", "table2", "table4", "table5"} & set(names):
        variants += [*TABLE1, *TABLE5]
    jobs: Jobs = {f"score-{v.key}": partial(measure.score, v) for v in map(measure.canonical, variants)}
    if {"table1", "table2", "table4"} & set(names):
        jobs["score-trained"] = partial(trained, measure)
    return jobs


def _result(task: Task, place: Place, measures: dict[str, Measure], out: Path) -> None:
    used = [measures[source] for source in task.sources]
    limits = [[measure.limit, measure.validation_limit] for measure in used]
    pretrained = place.pretrained if task.name == "init" else ""
    schema = f"reproduce-{task.name}/1"
    identity = [REPRODUCE_VERSION, schema, [m.build.identity() for m in used], limits, pretrained]

    def measured() -> dict[str, Result]:
        result = task.entry.measure(used if task.entry.joint else used[0])
        print(f"measured {task.name} {task.column}", flush=True)
        return {"provenance": _provenance(task, used), "result": result}

    path = task.path(place.work / "results")
    found = Store(path.parent).get(path.name, identity, measured, JSON)
    if task.entry.draw is not None:
        with plt.rc_context(_STYLE):  # type: ignore[arg-type]  # the stubs want literal keys
            figure = task.entry.draw(found["result"])
            content = small_png(figure)
            plt.close(figure)
        task.path(out, ".png").parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(task.path(out, ".png"), content)
    kept = {key: value for key, value in found["result"].items() if key not in task.entry.only_drawn}
    write_json(task.path(out), schema, found["provenance"] | kept)


def _provenance(task: Task, used: Sequence[Measure]) -> Result:
    device, seed = used[0].build.device, used[0].build.recipe.seed
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    data = {measure.build.column.name: data_of(measure.build) for measure in used}
    return provenance(seed=seed, scale=task.scale, device=name, threads=torch.get_num_threads(), data=data)


def _measure_all(chosen: Sequence[Task], place: Place, out: Path) -> None:
    measures = {column: measured_column(column, place) for task in chosen for column in task.sources}
    for column, measure in measures.items():
        names = {task.name for task in chosen if column in task.sources}
        jobs = _scores(measure, names)
        # The float32 variants come first: the others read their strengths.
        exact = {name: job for name, job in jobs.items() if "-32bit" in name}
        run_jobs(exact, measure.build.work)
        run_jobs({name: job for name, job in jobs.items() if name not in exact}, measure.build.work)
    jobs = {f"{t.name}-{t.column}": partial(_result, t, place, measures, out) for t in chosen}
    run_jobs(jobs, place.work / "results" / place.scale)


def reproduce(
    chosen: Sequence[Task], place: Place, *, out: Path, workers: int = 1, threads: int | None = None
) -> list[Path]:
    """Make results of one scale and return their files; trainings and measurements that exist are used again.

    Args:
        out: gets `<scale>/<name>-<column>.json`, and `.png` for a figure.
        workers, threads: as for `train`.

    Raises:
        InputError: if a data set was not given.
        RwsError: if a worker failed.
    """
    columns = list(dict.fromkeys(column for task in chosen for column in task.sources))
    for column in columns:
        ColumnBuild(COLUMNS[column], place)  # raise before hours of training, not after
    for column in columns:
        kinds = {kind for task in chosen if column in task.sources for kind in task.entry.kinds}
        train(column, place, kinds=kinds, workers=workers, threads=threads)
    run_in_workers(_measure_all, (list(chosen), place, out), workers, threads)
    return [t.path(out, suffix) for t in chosen for suffix in ((".json", ".png") if t.entry.draw else (".json",))]


def data_of(build: ColumnBuild) -> dict[str, str | int]:
    """Describe the images that a column was trained on."""
    train, name = build.train, Path(build.source).name
    return {"source": name, "train": len(train), "classes": len(train.classes), "sha256": train.digest()[:16]}
