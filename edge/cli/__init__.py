"""The commands of this room, as the entry points name them; heavy imports wait until one runs."""

from rws.edge.cli.bundle import bundle, inspect, verify
from rws.edge.cli.drill import drill
from rws.edge.cli.run import oracle, run

__all__ = ["bundle", "drill", "inspect", "oracle", "run", "verify"]
