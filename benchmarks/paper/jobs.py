"""The jobs of tables and figures: trainings of columns, scores of variants, results."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from rws.benchmarks.paper.columns import COLUMNS, ColumnBuild, Place
from rws.benchmarks.paper.entries import ENTRIES, Entry
from rws.benchmarks.paper.measure import REPRODUCE_VERSION, Measure, Result, Variant
from rws.benchmarks.paper.tables import TABLE1, TABLE5, trained
from rws.edge.common.provenance import provenance
from rws.training.jobs.graph import Graph, Job
from rws.training.jobs.progress import Progress
from rws.training.jobs.store import JSON, Store

# Numbers of test and validation images by scale and image size: as many as the scale has time for.
_LIMITS = {
    ("small", 32): (1000, 200),
    ("small", 64): (500, 120),
    ("short", 32): (2000, 200),
    ("full", 224): (1000, 300),
}
_FULL = (10_000, 2000)


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


def open_graph(chosen: Sequence[Task], place: Place, progress: Progress | None = None) -> Graph:
    """Return the jobs of some results, and all that they need; InputError if a data set was not given."""
    graph: dict[str, Job] = {}
    measures: dict[str, Measure] = {}
    scores: dict[str, tuple[str, ...]] = {}
    for column in dict.fromkeys(column for task in chosen for column in task.sources):
        names = {task.name for task in chosen if column in task.sources}
        measures[column] = measure = measured_column(column, place, progress)
        kinds = sorted({kind for name in names for kind in ENTRIES[name].kinds})
        if progress is not None:
            measure.build.plan(kinds)
        trainings = _trainings(measure.build, kinds)
        found = _scores(measure, names, tuple(trainings))
        graph |= trainings | found
        scores[column] = (*trainings, *found)
    for task in chosen:
        after = [job for column in task.sources for job in scores[column]]
        graph[f"{task.name}-{task.column}"] = Job(partial(result, task, place, measures), tuple(dict.fromkeys(after)))
    return graph


def measured_column(column: str, place: Place, progress: Progress | None = None) -> Measure:
    """Return the measure of a column, with the scale's number of images, at most `place.limit`.

    Raise InputError if its data set was not given.
    """
    limit, validation = _LIMITS.get((place.scale, COLUMNS[column].size), _FULL)
    most = place.limit or limit
    return Measure(ColumnBuild(COLUMNS[column], place, progress), min(limit, most), min(validation, most))


def _trainings(build: ColumnBuild, kinds: Collection[str]) -> dict[str, Job]:
    own = f"{build.column.name}/"
    jobs = {own + name: Job(j.make, tuple(own + other for other in j.after)) for name, j in build.graph(kinds).items()}
    if not isinstance(build.ancestor, ColumnBuild) or f"{own}init" not in jobs:
        return jobs
    before = _trainings(build.ancestor, ("init",))
    return before | jobs | {f"{own}init": Job(build.init, tuple(before))}


def _scores(measure: Measure, names: Collection[str], trainings: tuple[str, ...]) -> dict[str, Job]:
    kinds = {kind for name in names for kind in ENTRIES[name].kinds}
    variants = [Variant("std"), *(Variant(kind) for kind in sorted(kinds) if kind.startswith("tuned"))]
    if "robust" in kinds:
        variants.append(Variant("residual"))
    if {"table1", "table2", "table4", "table5"} & set(names):
        variants += [*TABLE1, *TABLE5]
    own = f"{measure.build.column.name}/score-"
    jobs: dict[str, Job] = {}
    # The float32 variants come first: the others read their strengths.
    canonical = {measure.canonical(variant) for variant in variants}
    for variant in sorted(canonical, key=lambda each: (-each.bits, each.key)):
        exact = tuple(job for job in jobs if f"{variant.method}-" in job and "-32bit" in job)
        jobs[own + variant.key] = Job(partial(measure.score, variant), (*trainings, *exact))
    if {"table1", "table2", "table4"} & set(names):
        jobs[f"{own}trained"] = Job(partial(trained, measure), trainings)
    return jobs


def result(task: Task, place: Place, measures: dict[str, Measure]) -> Result:
    """Return what was measured for a result, {provenance, result}; measure it if it does not exist."""
    used = [measures[source] for source in task.sources]
    limits = [[measure.limit, measure.validation_limit] for measure in used]
    pretrained = place.pretrained if task.name == "init" else ""
    identity = [REPRODUCE_VERSION, f"reproduce-{task.name}/1", [m.build.identity() for m in used], limits, pretrained]

    def measured() -> Result:
        found = task.entry.measure(used if task.entry.joint else used[0])
        print(f"measured {task.name} {task.column}", flush=True)
        return {"provenance": _provenance(task, used), "result": found}

    path = task.path(place.work / "results")
    return Store(path.parent).get(path.name, identity, measured, JSON)


def _provenance(task: Task, used: Sequence[Measure]) -> Result:
    device, seed = used[0].build.device, used[0].build.recipe.seed
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    data = {measure.build.column.name: data_of(measure.build) for measure in used}
    return provenance(seed=seed, scale=task.scale, device=name, threads=torch.get_num_threads(), data=data)


def data_of(build: ColumnBuild) -> dict[str, str | int]:
    """Describe the images that a column was trained on."""
    train, name = build.train, Path(build.source).name
    return {"source": name, "train": len(train), "classes": len(train.classes), "sha256": train.digest()[:16]}
