"""What `rws build` does with labelled images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from rws.edge.bundle.bundle import Bundle
from rws.training.build.build import Build
from rws.training.build.recipe import load_recipe
from rws.training.jobs.store import Progress


@dataclass(frozen=True)
class BuildOptions:
    """What to build; see the options of `rws build`.

    Args:
        out: bundle folder to write.
        recipe: file or name; None: the bundled default's.
        data: clean labelled images; None: the recipe's.
        size, work, device: as in `Build`.
        threads: CPU threads; None leaves the choice to torch.
        jobs: only these, and no bundle; empty: all.
        onto: a bundle whose model and signatures are kept.
    """

    out: Path
    recipe: str | None
    data: str | None
    size: int | None
    work: Path
    device: str
    threads: int | None
    jobs: tuple[str, ...]
    onto: Path | None


def run_build(options: BuildOptions, say: Callable[[str], None], progress: Progress) -> None:
    """Run a build; `say` is called with a line at the end, `progress` as in `Build`."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    recipe = load_recipe(options.recipe or "cifar10_vgg16")
    build = Build(
        recipe,
        options.data or recipe.data.source,
        options.work,
        size=options.size,
        device=options.device,
        onto=None if options.onto is None else Bundle.load(options.onto),
        progress=progress,
    )
    build.run(options.jobs)
    if not options.jobs:
        build.bundle(options.out)
        say(f"wrote {options.out}; try: rws inspect {options.out}")
