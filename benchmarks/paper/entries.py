"""The tables and figures: what each needs, and how it is measured and drawn."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from rws.benchmarks.paper import figures, tables
from rws.benchmarks.paper.inits import compare_inits
from rws.benchmarks.paper.measure import Result

TABLE_COLUMNS = ("cifar10-vgg16", "cifar100-vgg16", "tiny-imagenet-vgg16", "tiny-imagenet-resnet50")
VGG_COLUMNS, FIG6_COLUMNS = TABLE_COLUMNS[:3], (TABLE_COLUMNS[0], *TABLE_COLUMNS[2:])
CIFAR, TINY = ("cifar10-vgg16",), ("tiny-imagenet-vgg16",)
PAPER = ("std", "robust")
SHIPPED = (*PAPER, "tuned-shallow")
TUNED = ("tuned-labels", "tuned-output", "tuned-shallow")
EVERYTHING = ("std", "robust", "augmented", "oracle", *TUNED)


@dataclass(frozen=True)
class Entry:
    """A table or figure."""

    title: str
    columns: tuple[str, ...]  # it has a result for each
    kinds: tuple[str, ...]  # trainings that it needs
    measure: Callable[..., Result]  # takes a column's measure, or a `joint` entry those of all columns
    draw: Callable[[Mapping[str, Any]], Figure] | None = None  # takes what was measured; None for a table
    joint: bool = False  # one result from all columns together
    only_drawn: tuple[str, ...] = ()  # keys of the result that only the figure needs; not in its JSON

    def results(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield the name of each result's column, and the columns that it is measured from."""
        yield from [("vgg16", self.columns)] if self.joint else [(column, (column,)) for column in self.columns]


ENTRIES: dict[str, Entry] = {
    "table1": Entry("TA, RA and storage", TABLE_COLUMNS, EVERYTHING, tables.table1),
    "table2": Entry("ImageNet", ("imagenet-resnet50",), EVERYTHING, tables.table1),
    "table3": Entry("transfer between data sets", VGG_COLUMNS, (*PAPER, *TUNED), tables.table3, joint=True),
    "table4": Entry("the 19 corruptions one by one", TABLE_COLUMNS, EVERYTHING, tables.table4),
    "table5": Entry("whole models at few bits, signatures at few bits", TABLE_COLUMNS, EVERYTHING, tables.table5),
    "fig2": Entry("norm of the signatures by layer", TINY, PAPER, figures.fig2, figures.draw_fig2),
    "fig3": Entry("similarity between corruptions by layer", TINY, PAPER, figures.fig3, figures.draw_fig3),
    "fig4": Entry("similarity and gains of the 19 signatures", TINY, PAPER, figures.fig4, figures.draw_fig4),
    "fig5": Entry("similarity between data sets", VGG_COLUMNS, PAPER, figures.fig5, figures.draw_fig5, joint=True),
    "fig6": Entry("RA against the number of patched layers", FIG6_COLUMNS, PAPER, figures.fig6, figures.draw_fig6),
    "fig7": Entry("strength and severity", CIFAR, SHIPPED, figures.fig7, figures.draw_fig7),
    "fig8": Entry("two signatures at once", TINY, SHIPPED, figures.fig8, figures.draw_fig8),
    "fig9": Entry("feature maps", TINY, PAPER, figures.fig9, figures.draw_fig9, only_drawn=("maps", "pictures")),
    "init": Entry("what everything starts from", CIFAR, PAPER, compare_inits),
    "tuned": Entry("methods that make a signature", TABLE_COLUMNS, (*PAPER, *TUNED), tables.tuned),
    "smaller": Entry("RA against bytes", CIFAR, SHIPPED, tables.smaller, figures.draw_smaller),
}
