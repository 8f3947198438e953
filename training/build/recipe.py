"""The recipe of a build: one validated schema, in which every key is known and every value has its type and range."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from rws.edge.common.schema import STRICT, read_toml, validate
from rws.edge.signatures.quantization import Bits, Per
from rws.errors import InputError
from rws.training.evaluation.gain import CalibrationRecipe
from rws.training.models.architectures import ModelSpec
from rws.training.models.export import Stored
from rws.training.models.fit import FitRecipe
from rws.training.models.loop import Count, Share
from rws.training.oracle.sampling import OracleRecipe
from rws.training.signatures.residual import Projection
from rws.training.signatures.tuned import TuneRecipe

T = TypeVar("T")
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, config=STRICT)
class DataRecipe:
    """Which images, see `load_images`; `source` says of what data set, a command's DATA where they are.

    At most a tenth of them is kept for validation; `images` holds those, too. 0 images or classes: all.
    """

    source: str = "cifar10"
    validation: Count = 5000
    images: Annotated[int, Field(ge=0)] = 0
    classes: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, config=STRICT)
class SignatureRecipe:
    """Which signatures to ship: of the shallowest `layers`; `projection` is for the method `residual`.

    With `fold_first` θ_std and θ_r continue from the folded init: deep statistics cannot learn for the shallow weights.
    """

    method: Literal["tuned", "residual"] = "tuned"
    layers: Count = 5
    severity: Annotated[float, Field(gt=0, le=5)] = 5.0
    bits: Bits = 8
    per: Per = "channel"
    projection: Projection = "per_tensor"
    fold_first: bool = False


@dataclass(frozen=True, config=STRICT)
class StreamRecipe:
    """How the device treats the frames of a stream: settings of `WeightedPolicy` (first three) and `BeliefFilter`."""

    threshold: float = 0.1
    clean_weight: float = 1.0
    hold: float = 0.0
    jump: tuple[float, ...] = (0.02, 1.0)
    drift: float = 0.1
    evidence: float = 1.0
    share: Share = 0.02

    def policy_settings(self) -> Mapping[str, str | float]:
        """Return the policy as `bundle.json` has it; see `rws.oracle.policy.make_policy`."""
        return {"kind": "weighted", "threshold": self.threshold, "clean_weight": self.clean_weight, "hold": self.hold}

    def filter_settings(self, prior: Sequence[float]) -> Mapping[str, float | Sequence[float]]:
        """Return the filter as `bundle.json` has it, with the oracle's prior; see `BeliefFilter`."""
        return {name: getattr(self, name) for name in ("jump", "drift", "evidence", "share")} | {"prior": prior}


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """Everything that decides a bundle, except the images.

    From `init` continue θ_std (`continued`), each θ_r (`robust`), and a model of all corruptions (`augmented`).
    `corrupted_share`: part of the images of `init` and `continued` that get one of all corruptions, severity 1…5.
    `stored`: the bits in which the bundle stores the weights that no signature changes; a device computes in 32.
    """

    name: str
    seed: int = 0
    data: DataRecipe = field(default_factory=DataRecipe)
    model: ModelSpec = field(default_factory=ModelSpec)
    init: FitRecipe = field(default_factory=FitRecipe)
    continued: FitRecipe = field(default_factory=lambda: FitRecipe(epochs=3, learning_rate=0.02))
    robust: FitRecipe = field(default_factory=lambda: FitRecipe(epochs=3, learning_rate=0.02))
    augmented: FitRecipe = field(default_factory=lambda: FitRecipe(epochs=12, learning_rate=0.05))
    signatures: SignatureRecipe = field(default_factory=SignatureRecipe)
    tuned: TuneRecipe = field(default_factory=TuneRecipe)
    oracle: OracleRecipe = field(default_factory=OracleRecipe)
    calibration: CalibrationRecipe = field(default_factory=CalibrationRecipe)
    stream: StreamRecipe = field(default_factory=StreamRecipe)
    corrupted_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    stored: Stored = 32


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe: a TOML file, or the name of one that ships with the package; InputError if there is none."""
    path = Path(name) if Path(name).suffix == ".toml" else RECIPES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in RECIPES.glob("*.toml")))
        raise InputError(f"no recipe {path}; give a .toml file or one of {known}")
    return read_recipe(Recipe, path)


def read_recipe(schema: type[T], path: Path, default: T | None = None) -> T:
    """Read a TOML file as a recipe; FormatError if it is none, else as `check_recipe`."""
    return check_recipe(schema, read_toml(path), str(path), default)


def check_recipe(schema: type[T], content: Mapping[str, Any], where: str, default: T | None = None) -> T:
    """Return plain data as a recipe or a part of one; `default` gives what it leaves out, parts of parts as well.

    FormatError, beginning with `where`, if a key is unknown, or a value has the wrong type or is out of range.
    """
    if is_dataclass(default) and not isinstance(default, type):
        content = _merged(asdict(default), content)
    return validate(schema, content, where, cure="correct the recipe")


def _merged(default: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(default)
    for key, new in content.items():
        old = default.get(key)
        merged[key] = _merged(old, new) if isinstance(old, dict) and isinstance(new, dict) else new
    return merged
