"""The commands of this room, as the entry points name them; heavy imports wait until one runs."""

from rws.edge.commands.bundle import bundle, inspect, verify
from rws.edge.commands.drill import drill
from rws.edge.commands.run import oracle, run

__all__ = ["bundle", "drill", "inspect", "oracle", "run", "verify"]
