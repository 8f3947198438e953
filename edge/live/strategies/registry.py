"""Which strategies there are, the fastest first."""

from rws.edge.live.strategies.base import WeightUpdateStrategy
from rws.edge.live.strategies.inputs import Inputs
from rws.edge.live.strategies.live import Live
from rws.edge.live.strategies.split import Split

STRATEGIES: tuple[type[WeightUpdateStrategy], ...] = (Live, Split, Inputs)
ON_GPU: tuple[type[WeightUpdateStrategy], ...] = (Inputs, Split)  # what is quick to rebuild on a CPU is not on a GPU
