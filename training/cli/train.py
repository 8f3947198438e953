"""`rws train`: a model and its bundle from labelled images."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from rws.edge.common.extras import require
from rws.terminal import say
from rws.training.cli.parameters import ExplainOption, OnOption, ThreadsOfJobOption, WorkersOption, absolute


def train(
    data: Annotated[
        str, Argument(help="Folder <class>/<image>, or with train/ and test/ above that; or cifar10, cifar100.")
    ],
    out: Annotated[Path, Option(help="Bundle folder to write.")] = Path("bundle"),
    recipe: Annotated[str, Option(help="A .toml file, or the name of a recipe that ships.")] = "cifar10",
    size: Annotated[int | None, Option(min=8, help="Resize and crop images to this side, in pixels.")] = None,
    work: Annotated[Path, Option(help="Folder for checkpoints; a stopped training resumes from it.")] = Path(
        "runs/train"
    ),
    device: Annotated[str, Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    threads: ThreadsOfJobOption = None,
    workers: WorkersOption = 1,
    on: OnOption = "here",
    explain: ExplainOption = False,
    job: Annotated[
        list[str] | None,
        Option(
            help="Only this job and what it needs, no bundle; repeatable. init, std, oracle, tuned, residual, gain, "
            "augmented."
        ),
    ] = None,
    onto: Annotated[
        Path | None,
        Option(help="Keep the model and the signatures of this bundle; train its oracle, measure its gains."),
    ] = None,
) -> None:
    """Train a classifier on labelled images, and make its bundle: 19 signatures, an oracle and a policy.

    \b
    Examples:
        rws train ~/data/cifar10 --out bundle                # the bundle cifar10, rebuilt
        rws train my_photos/ --size 64 --out my_bundle
        rws train ~/data/cifar10 --job oracle                # one part
        rws train ~/data/cifar10 --workers 4                 # signatures side by side
        rws train my_photos/ --onto my_bundle --out calibrated
    """
    with require("train"):
        from rws.edge.bundle.bundle import Bundle
        from rws.training.build.build import Build
        from rws.training.build.recipe import load_recipe
        from rws.training.jobs.driver import Where
        from rws.training.jobs.progress import JobLines

    where = Where(on, workers, threads, explain)
    kept = None if onto is None else Bundle.load_classifier(onto)
    work, data = work.absolute(), absolute(data)
    build = Build(load_recipe(recipe), data, work, size=size, device=device, onto=kept, progress=JobLines())
    build.run(job or [], where)
    if not job:
        build.bundle(out)
        say(f"wrote {out}; try: rws inspect {out}")
