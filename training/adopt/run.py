"""What `rws adopt` does: a bundle for a classifier that exists, from clean images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import IMAGENET, made_here
from rws.edge.preprocess import Fit
from rws.errors import UsageError
from rws.terminal import say
from rws.training.adopt.build import AdoptionBuild
from rws.training.adopt.graph import Preprocessing
from rws.training.adopt.model import ImportedModel, ImportOptions, adopt_model, with_preprocessing
from rws.training.adopt.outputs import Wanted
from rws.training.adopt.recipe import AdoptRecipe, load_adopt_recipe
from rws.training.adopt.understand import find_preprocessing, understood
from rws.training.build.recipe import check_recipe
from rws.training.corruptions import KNOWN
from rws.training.data.clean_images import CleanImages, load_clean_images, load_labelled, shrunk
from rws.training.data.names import read_names
from rws.training.data.photographs import Photographs
from rws.training.jobs.driver import HERE, Where
from rws.training.jobs.graph import Graph, Work
from rws.training.jobs.progress import Progress
from rws.training.models.foreign import efficientnet_lite, imagenet_classes, load_model

LITE = Preprocessing(scale=255, mean=(127,), std=(128,))  # of EfficientNet-Lite


@dataclass(frozen=True)
class AdoptOptions:
    """The arguments and options of `rws adopt`; None leaves the choice to the recipe, or to what the model says.

    `size` is height and width of the input, pixels; `fit` is as in `InputSpec`, None: the task's own. `out` is None for
    `bundle`, or of the model `imagenet` for the user's folder, where `--bundle imagenet` finds it.
    """

    model: str
    images: str
    preprocessing: Preprocessing | None
    wanted: Wanted
    fit: Fit | None
    out: Path | None
    work: Path
    own_oracle: list[str]
    onto: Path | None
    names: Path | None
    labels: bool
    size: tuple[int, int] | None
    every: int
    limit: int
    recipe: Path | None
    layers: int | None
    target: str | None
    quick: bool
    dry_run: bool


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Read one number, or several with commas; UsageError if the option's text is anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} {text}: expected a number, or three with commas") from error


def side_lengths(text: str) -> tuple[int, int]:
    """Read height and width of `--size`: 224, or 192x320; UsageError if the text is neither."""
    sides = [int(part) if part.isdecimal() and len(part) < 6 else 0 for part in text.lower().split("x")]
    if len(sides) > 2 or min(sides) < 8:
        raise UsageError(f"--size {text}: expected a side, 8 pixels or more, or height x width, as 192x320")
    return sides[0], sides[-1]


def run_adopt(options: AdoptOptions, progress: Progress, where: Where = HERE) -> None:
    """Make the bundle, and print what it is made from and what it wins back; `progress`: as in `AdoptionBuild`."""
    read = _read(options)
    if options.dry_run:
        return
    build = _build(options, *read, progress)
    out = options.out or (made_here(IMAGENET) if options.model == IMAGENET else Path("bundle"))
    held_out = len(build.held_out)
    say(f"images: {len(build.train)} to train on, {held_out} held out")
    own = "trains the oracle further" if options.own_oracle else "takes the shipped oracle"
    onto = build.onto
    made = f"trains {len(KNOWN)} signatures, then measures the gain table" if onto is None else f"keeps {onto.path}"
    say(f"{made}, and {own}")
    say(f"checkpoints are in {options.work}: after an interruption, the same command continues from there")
    if build.why_shallow:
        say(f"only the shallow part of the model is matched, which wins back less: {build.why_shallow}")
    build.bundle(out, where, Work(open_graph, (options,), options.work))
    if scores := build.gain()[1]:
        measured = f"{build.objective.metric}, agreement with {'labels' if options.labels else 'the clean model'}"
        no_patch, perfect = scores["no_patch_severity_5"], scores["perfect_severity_5"]
        won = f"{no_patch} % with no patch, {perfect} % with the perfect oracle"
        say(f"held-out images at severity 5, {measured}: {won}")
    shown = IMAGENET if out == made_here(IMAGENET) else out
    say(f"wrote {out}; try: rws run SOURCE --bundle {shown}")


def open_graph(options: AdoptOptions, first: bool) -> Graph:
    """Open the graph of an adoption in another process."""
    return _build(options, *_read(options)).graph(first)


def _read(options: AdoptOptions) -> tuple[ImportedModel, CleanImages, list[str] | None]:
    """Read model and images, and print what is understood of them; UsageError if the preprocessing is not clear."""
    recipe = _recipe(options)
    if options.model == IMAGENET:
        content, known = efficientnet_lite(0, 224), imagenet_classes()
        options = replace(options, preprocessing=options.preprocessing or LITE)
    else:
        content, known = load_model(options.model, options.size), None
    names = known if options.names is None else read_names(options.names)
    given = options.preprocessing or Preprocessing()
    model = adopt_model(
        content,
        ImportOptions(options.size, given, options.wanted, names, options.fit, recipe.layers),
    )
    images, classes = _clean_images(options, model)
    how, unclear, size = f"{given} (given)", None, (model.input.height, model.input.width)
    if options.preprocessing is None:
        try:
            found, how = find_preprocessing(model, shrunk(images.pixels, size).permute(0, 2, 3, 1).numpy())
            model = with_preprocessing(model, found)
        except UsageError as error:
            how, unclear = "not clear", error
    for line in understood(model, how, recipe.layers):
        say(line)
    if unclear is not None:
        raise unclear
    return model, images, classes


def _build(
    options: AdoptOptions,
    model: ImportedModel,
    images: CleanImages,
    classes: list[str] | None,
    progress: Progress | None = None,
) -> AdoptionBuild:
    name, recipe = Path(options.model).stem.replace(":", "-"), _recipe(options)
    onto = None if options.onto is None else Bundle.load(options.onto)
    return AdoptionBuild(model, images, recipe, options.work, classes=classes, name=name, onto=onto, progress=progress)


def _clean_images(options: AdoptOptions, model: ImportedModel) -> tuple[CleanImages, list[str] | None]:
    classes, size = None if model.classes is None else list(model.classes), (model.input.height, model.input.width)
    how: dict[str, Any] = {"fit": model.input.fit, "every": options.every}
    if options.labels:
        if model.task.name != "classify":
            raise UsageError(f"--labels: images in folders of classes say nothing of the task {model.task.name}")
        found = load_labelled(options.images, size, classes or model.class_count or 0, limit=options.limit)
        images, classes = CleanImages(found.pixels, labels=found.labels), list(found.classes)
    else:
        images = load_clean_images(options.images, size, limit=options.limit, keep=options.work, whole=True, **how)
    if options.own_oracle:
        photographs = Photographs.load(options.own_oracle, every=options.every, limit=10 * options.limit)
        images = replace(images, photographs=photographs)
    return images, classes


def _recipe(options: AdoptOptions) -> AdoptRecipe:
    recipe = AdoptRecipe() if options.recipe is None else load_adopt_recipe(options.recipe)
    changes = {name: getattr(options, name) for name in ("layers", "target") if getattr(options, name) is not None}
    recipe = check_recipe(AdoptRecipe, changes, "options", recipe)
    return recipe.quick() if options.quick else recipe
