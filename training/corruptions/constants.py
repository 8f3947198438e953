"""The reference's severity constants, per image size: data in `severity_constants.json`, read from the generators."""

import json
import math
from importlib.resources import files
from typing import Any

SIZES = (32, 64, 224)
LEVELS = 5

_DATA: dict[str, Any] = json.loads(files(__package__).joinpath("severity_constants.json").read_text())
NAMES: tuple[str, ...] = tuple(_DATA["parameters"])


def scale_for(size: int) -> int:
    """Return the table that an image of `size` pixels uses: the nearest of 32, 64, 224 by ratio."""
    return min(SIZES, key=lambda known: abs(math.log(size / known)))


def levels(name: str, size: int) -> list[list[Any]]:
    """Return the constants of severity 1…5 at the scale nearest to `size`; meanings are in the JSON file."""
    rows: list[list[Any]] = _DATA["sizes"][str(scale_for(size))][name]
    return rows
