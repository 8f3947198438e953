"""One validated schema for a build: every key is known, every value has its type."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from rws.errors import FormatError, InputError
from rws.training.evaluation.gain import CalibrationRecipe
from rws.training.models.architectures import ModelSpec
from rws.training.models.fit import FitRecipe
from rws.training.oracle.fit import OracleRecipe
from rws.training.signatures.methods import RESIDUALS, TuneRecipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class DataRecipe:
    """Which images.

    Args:
        source: as in `load_images`; a command's `--data` comes before it.
        validation: images kept for validation, but never more than a tenth of them.
        images: at most this many images, drawn at random, those for validation among them; 0: all.
        classes: only the first this many classes, in the order of their names; 0: all.
    """

    source: str = "cifar10"
    validation: int = 5000
    images: int = 0
    classes: int = 0


@dataclass(frozen=True)
class SignatureRecipe:
    """Which signatures to ship.

    Args:
        way: `tuned` or `residual`.
        layers: the shallowest n layers are signed.
        severity: severity of the training images.
        bits, per: quantisation.
        projection: of the `residual` way.
        fold_first: θ_std and the robust models continue from the init with its BatchNorm folded, so that the deep
            layers' statistics cannot take over what the shallow weights should learn.
    """

    way: str = "tuned"
    layers: int = 5
    severity: float = 5.0
    bits: int = 8
    per: str = "channel"
    projection: str = "per_tensor"
    fold_first: bool = False

    def __post_init__(self) -> None:
        if self.way not in ("tuned", "residual") or self.projection not in RESIDUALS:
            raise InputError(f"signatures: way {self.way!r} with projection {self.projection!r} is not known")


@dataclass(frozen=True)
class StreamRecipe:
    """How the device treats the frames of a stream.

    Args:
        threshold, clean_weight, hold: of `WeightedPolicy`.
        jump, drift, evidence, share: of `BeliefFilter`.
    """

    threshold: float = 0.1
    clean_weight: float = 1.0
    hold: float = 0.0
    jump: tuple[float, ...] = (0.02, 1.0)
    drift: float = 0.1
    evidence: float = 1.0
    share: float = 0.02

    def policy_settings(self) -> dict[str, Any]:
        """As `bundle.json` has them; see `rws.oracle.policy.make_policy`."""
        return {
            "kind": "weighted",
            "threshold": self.threshold,
            "clean_weight": self.clean_weight,
            "hold": self.hold,
        }

    def filter_settings(self, prior: Sequence[float]) -> dict[str, Any]:
        """As `bundle.json` has them; `prior` is the oracle's, see `BeliefFilter`."""
        return {
            "jump": self.jump,
            "drift": self.drift,
            "evidence": self.evidence,
            "share": self.share,
            "prior": prior,
        }


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a bundle, besides the images.

    Args:
        name: of the bundle.
        seed: the one seed of the whole build.
        data, model: what to learn from, and which classifier.
        init: the standard model that is trained first.
        continued: how θ_std continues from it on clean images.
        robust: how each θ_r continues from it on corrupted ones.
        augmented: how one model continues from it with all corruptions as augmentation (nothing that ships).
        signatures, tuned: how signatures are made.
        oracle, calibration: the oracle and the gain table.
        stream: the policy's hysteresis and the temporal filter.
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

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data."""
        return asdict(self)


def load_recipe(name: str | Path) -> Recipe:
    """Read a recipe: a TOML file, or the name of one that ships with the package (`cifar10_vgg16`).

    Raises:
        InputError: if there is no such recipe.
        FormatError: if it is not TOML, or has an unknown key or a value of the wrong type.
    """
    path = Path(name) if Path(name).suffix == ".toml" else RECIPES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in RECIPES.glob("*.toml")))
        raise InputError(f"no recipe {path}; give a .toml file or one of {known}")
    try:
        content = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{path}: {error}") from error
    return parse(Recipe, content, str(path))


def parse(schema: type[T], content: Mapping[str, Any], where: str, default: T | None = None) -> T:
    """Plain data as a recipe or a part of one.

    Args:
        schema: its dataclass.
        content: values by field; parts are mappings.
        where: what errors begin with.
        default: gives what `content` leaves out, parts of parts as well; None: the defaults of each part's own class.

    Raises:
        FormatError: if a key is unknown or a value has the wrong type; it begins with `where`.
    """
    hints = get_type_hints(schema)
    known = [entry.name for entry in fields(schema)]  # type: ignore[arg-type]
    unknown = [key for key in content if key not in known]
    if unknown:
        raise FormatError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(known)}")
    values: dict[str, Any] = {}
    for key, value in content.items():
        if is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise FormatError(f"{where}: {key} must be a table")
            part = None if default is None else getattr(default, key)
            values[key] = parse(hints[key], value, f"{where} [{key}]", part)  # type: ignore[arg-type]
        elif get_origin(hints[key]) is tuple:
            kind = get_args(hints[key])[0]
            if not isinstance(value, list):
                raise FormatError(f"{where}: {key} is {value!r}, expected a list")
            values[key] = tuple(_require(kind, item, f"{where}: {key}") for item in value)
        else:
            values[key] = _require(hints[key], value, f"{where}: {key}")
    try:
        return schema(**values) if default is None else replace(default, **values)  # type: ignore[type-var]
    except TypeError as error:
        raise FormatError(f"{where}: {error}") from error


def _require(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise FormatError(f"{where} is {value!r}, expected {kind.__name__}")
    return value
