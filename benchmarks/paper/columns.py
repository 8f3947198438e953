"""The columns of the tables: data set, model and recipes.

Scales: `full` is the paper's, `short` has its networks and images in a short schedule, `small` smaller networks, too.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import CIFAR10_BUNDLE
from rws.edge.bundle.manifest import ORACLE
from rws.errors import InputError
from rws.training.build.build import Build
from rws.training.build.recipe import Recipe, load_recipe
from rws.training.data.images import TORCHVISION_DATASETS, Images, fitted, load_images
from rws.training.evaluation.frames import shuffled
from rws.training.jobs.progress import Progress
from rws.training.oracle.calibration import OracleScores

SCALES = ("small", "short", "full")
METHODS = ("residual", "tuned-labels", "tuned-output", "tuned-shallow")
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Place:
    """Where images and work are, and on which device; plain data, so that it can be sent to a worker process."""

    data: Mapping[str, str]  # data set → folder or torchvision's name
    work: Path  # for checkpoints; each scale and column has its own folder in it
    scale: str
    device: str = "cpu"
    limit: int | None = None  # test and validation images at most; None: as many as the scale has
    recipes: Path = RECIPES  # of `<scale>/<column>.toml`
    pretrained: str = "IMAGENET1K_V1"  # ImageNet weights of VGG-16 for `init`: a file, or torchvision's name


@dataclass(frozen=True)
class Column:
    """A column of the paper's tables: images of `size` pixels.

    Its init is trained from that of `ancestor`, if there is one at the scale.
    """

    name: str
    dataset: str
    size: int
    ancestor: str = ""

    def recipe(self, place: Place) -> Recipe:
        """Load the recipe of its trainings; raise FormatError or InputError if the file is missing or wrong."""
        return load_recipe(self._path(place.recipes, place.scale))

    def has_recipe(self, scale: str, recipes: Path = RECIPES) -> bool:
        """Return whether it is trained at a scale."""
        return self._path(recipes, scale).is_file()

    def _path(self, recipes: Path, scale: str) -> Path:
        return recipes / scale / f"{self.name}.toml"


_COLUMNS = (
    Column("cifar10-vgg16", "cifar10", 32, ancestor="cifar100-vgg16"),
    Column("cifar100-vgg16", "cifar100", 32),
    Column("tiny-imagenet-vgg16", "tiny-imagenet", 64, ancestor="cifar100-vgg16"),
    Column("tiny-imagenet-resnet50", "tiny-imagenet", 64),
    Column("imagenet-resnet50", "imagenet", 224),
)
COLUMNS = {column.name: column for column in _COLUMNS}

# At these scales the oracle of the bundle `cifar10` serves all columns of 32 pixels: it reads no labels.
_ORACLE_OF_THE_DEFAULT = ("small", "short")
_ORACLE_OF_ANOTHER = {"tiny-imagenet-resnet50": "tiny-imagenet-vgg16"}


def parse_data(arguments: list[str]) -> dict[str, str]:
    """Return {data set: folder or torchvision's name} from `ROOT` or `NAME=FOLDER`.

    Raise InputError if a folder is missing or a data set unknown.
    """
    known = {column.dataset for column in COLUMNS.values()}
    found = {name: name for name in TORCHVISION_DATASETS}
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        if not equals:
            root = Path(argument).expanduser()
            if not root.is_dir():
                raise InputError(f"--data {argument}: no such folder; give one that holds {', '.join(sorted(known))}")
            found |= {entry: str(root / entry) for entry in known if (root / entry).is_dir()}
        elif name not in known:
            raise InputError(f"--data {argument}: unknown data set {name!r}; known: {', '.join(sorted(known))}")
        elif name not in TORCHVISION_DATASETS and not Path(folder).expanduser().is_dir():
            raise InputError(f"--data {argument}: no such folder; it should hold train/<class>/ and val/<class>/")
        else:
            found[name] = str(Path(folder).expanduser()) if Path(folder).expanduser().is_dir() else folder
    return found


class ColumnBuild(Build):
    """The trainings of a column; its oracle may be another column's. Raise InputError if its data set was not given."""

    def __init__(self, column: Column, place: Place, progress: Progress | None = None) -> None:
        if column.dataset not in place.data:
            option = f"--data {column.dataset}=FOLDER, which holds train/<class>/ and val/<class>/"
            raise InputError(f"{column.name} needs the data set {column.dataset}; give {option}")
        self.column, self.place = column, place

        def related(name: str) -> ColumnBuild | None:
            known = name and COLUMNS[name].has_recipe(place.scale, place.recipes)
            return ColumnBuild(COLUMNS[name], place, progress) if known else None

        recipe, data, work = column.recipe(place), place.data[column.dataset], place.work / place.scale / column.name
        ancestor, size = related(column.ancestor), column.size
        super().__init__(recipe, data, work, size=size, device=place.device, ancestor=ancestor, progress=progress)
        self._oracle_of = related(_ORACLE_OF_ANOTHER.get(column.name, ""))
        self._default_oracle = place.scale in _ORACLE_OF_THE_DEFAULT and column.size == 32

    def oracle(self) -> tuple[bytes, OracleScores]:
        """Return the oracle as ONNX bytes, and its scores on validation images."""
        if self._default_oracle:
            bundle = Bundle.load(CIFAR10_BUNDLE)
            return bundle.read(ORACLE), bundle.manifest.measured["oracle"]
        if self._oracle_of is None:
            return super().oracle()
        return self._oracle_of.oracle()

    def plan(self, kinds: Collection[str]) -> None:
        """Plan as `Build.plan`; the oracle of another is planned by that one."""
        shared = self._default_oracle or self._oracle_of is not None
        super().plan([kind for kind in kinds if kind != "oracle" or not shared])

    def test(self, limit: int) -> Images:
        """Return at most `limit` test images of the recipe's classes, shuffled by its seed, on the build's device."""
        size, seed, classes = self.column.size, self.recipe.seed, self.recipe.data.classes or None
        cache = self.work / "images"
        images = load_images(self.source, "test", size=size, cache=cache, images=limit, classes=classes, seed=seed)
        images = fitted(images, self.train.classes, size, self.source)
        # Folders are listed class by class; shuffled, the first images of the set show all classes.
        return shuffled(images, None, seed).to(self.device)
