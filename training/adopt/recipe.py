"""The recipe of signatures for a classifier that is deployed already."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from rws.edge.common.schema import STRICT
from rws.edge.signatures.quantization import Bits, Per
from rws.errors import InputError
from rws.training.build.recipe import StreamRecipe, read_recipe
from rws.training.evaluation.gain import CalibrationRecipe
from rws.training.models.loop import BatchSize, Count, Rate, Warmup
from rws.training.oracle.camera import CameraRecipe

Target = Literal["auto", "output", "shallow"]
_CALIBRATION = CalibrationRecipe(100, 25, (1, 3, 5), (0.25, 0.5, 0.75, 1.0), neighbour_alphas=(1.0,))


@dataclass(frozen=True, config=STRICT)
class AdoptRecipe:
    """How to make signatures without labels; Adam, in units of the weights' own size, under a warm-up and a cosine.

    Args:
        target: `output` matches the clean model's outputs on the clean image, as their task compares them; `shallow`
            matches what its first deep layer sees (squared error), without running the deep layers; `auto` is `output`
            if the whole model can be trained through, else `shallow`.
        layers: number of leading convolutions to tune; 0: as many as take 0.6 % of the model's bytes.
        recalibrate: images for the start that gives channels their clean mean and spread back, and for the choice among
            starts; 0: the start is the signature before, or none.
        soft, temperature: of a classifier, see `distil`.
        draws: corrupted versions of each image that are made and kept, at most `most` in all.
        crop: part of the side of an image that is trained on; 1: whole images.
        severities: the range that the training images' severities are drawn from; what is above 5 counts as 5.
        oracle, oracle_start: of `--own-oracle`, which starts as the shipped one or as that of small images.
        held_out: part of the images that nothing is trained on; at most `held_out_most` of them.
        stream: clean weighs more than held-out images ask for, which say little about rare clean frames. The filter
            keeps the oracle's own belief (a jump at each frame): the oracle errs alike on all frames of a scene.
    """

    seed: int = 0
    target: Target = "auto"
    layers: Annotated[int, Field(ge=0)] = 0
    steps: Count = 500
    recalibrate: Annotated[int, Field(ge=0)] = 48
    batch_size: BatchSize = 8
    learning_rate: Rate = 2e-3
    warmup: Warmup = 0.1
    soft: Annotated[float, Field(ge=0)] = 1.0
    temperature: Rate = 3.0
    draws: Count = 8
    most: Count = 4000
    crop: Annotated[float, Field(gt=0, le=1)] = 5 / 7
    severities: tuple[Rate, Rate] = (2.0, 5.5)
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    held_out_most: Count = 500
    bits: Bits = 8
    per: Per = "channel"
    calibration: CalibrationRecipe = _CALIBRATION
    oracle: CameraRecipe = CameraRecipe(frames=4000, epochs=3)
    oracle_start: Literal["shipped", "small"] = "shipped"
    stream: StreamRecipe = StreamRecipe(threshold=0.2, clean_weight=8.0, jump=(1.0,))

    def __post_init__(self) -> None:
        if self.severities[0] > self.severities[1]:
            raise ValueError("severities of which the smaller one is first")

    def quick(self) -> "AdoptRecipe":
        """Return the recipe of a first look: under ten minutes for a model of EfficientNet-Lite0's size."""
        return replace(
            self,
            steps=max(1, self.steps // 7),
            recalibrate=min(self.recalibrate, 32),
            draws=2,
            calibration=self.calibration.quick(),
            oracle=self.oracle.quick(),
        )


def load_adopt_recipe(path: Path) -> AdoptRecipe:
    """Read a TOML file with any of an `AdoptRecipe`'s settings; InputError if there is none, else as `read_recipe`."""
    if not path.is_file():
        raise InputError(f"no recipe {path}; give a .toml file")
    return read_recipe(AdoptRecipe, path, AdoptRecipe())
