"""The tables of docs/benchmarks/jobs.md: places, growth, and the plan of large work."""

from functools import partial

from rws.benchmarks.common.tables import Column, Record, label
from rws.benchmarks.jobs.plan import NODES
from rws.benchmarks.pages.results import table


def _hours(nodes: int, row: Record) -> str:
    return f"{row[f'hours_{nodes}']:.2f} ({row[f'bound_{nodes}']})"


TABLES = {
    "places": table("jobs.places", label("", "place"), Column("s", "s", ".0f"), label("digest", "result")),
    "growth": table(
        "jobs.growth",
        Column("jobs", "jobs", ","),
        Column("s", "s", ".1f"),
        Column("CPU of the driver, s", "driver_cpu_s", ".1f"),
        Column("memory of the driver, MB", lambda row: f"{row['driver_bytes'] / 1e6:.0f}"),
        Column("a second run, s", "again_s", ".1f"),
    ),
    "plan": table(
        "jobs.plan",
        label("", "work"),
        Column("jobs", "jobs", ","),
        Column("core hours of one", lambda row: f"{row['job_s'] / 3600:.1f}"),
        *(label(f"hours on {nodes} {'nodes' if nodes > 1 else 'node'}", partial(_hours, nodes)) for nodes in NODES),
    ),
}
