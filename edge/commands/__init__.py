"""The commands of this room, as the entry points name them; heavy imports wait until one runs."""

from edge.commands.bundle import bundle, inspect, verify
from edge.commands.drill import drill
from edge.commands.run import oracle, run

__all__ = ["bundle", "drill", "inspect", "oracle", "run", "verify"]
