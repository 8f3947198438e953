"""Compare the corruptions with the reference's outputs, and their speed with that of `imagecorruptions`.

python -m rws.benchmarks.corruptions.parity COMMAND --json benchmarks/results/corruption_COMMAND.json
"""

import sys
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from torch import Tensor

from rws.benchmarks.common.committed import ROOT
from rws.benchmarks.pages.corruptions import parity_table, throughput_table
from rws.edge.common.files import read_regular
from rws.edge.common.provenance import portable_command, provenance, write_json
from rws.edge.common.schema import parse_json
from rws.errors import InputError, first_line
from rws.training.corruptions import CORRUPTIONS, corrupt, seeds_for
from rws.training.corruptions.blur import truncate
from rws.training.corruptions.constants import SIZES
from rws.training.corruptions.registry import REGISTRY, constants_of
from rws.training.corruptions.weather import fog_map, frost_overlays
from rws.training.jobs.seeds import derive_seed
from rws.training.jobs.store import ARRAYS

_LARGEST = 2**30  # bytes of a reference file
REFERENCE = ROOT / "tests" / "data" / "corruptions"
SEVERITIES = (1, 2, 3, 4, 5)
# `imagecorruptions` has other algorithms for frost and elastic_transform, and its own random streams for
# impulse_noise and glass_blur; Poisson draws cannot be replayed, since ours start from a normal number.
_INCOMPARABLE = ("frost", "elastic_transform", "impulse_noise", "glass_blur", "shot_noise")
COMPARABLE = tuple(name for name in CORRUPTIONS if name not in _INCOMPARABLE)

app = typer.Typer(no_args_is_help=True, add_completion=False)


def replayed_draws(name: str, size: int, severity: int, stream: np.random.RandomState) -> tuple[Tensor, ...] | None:
    """Return the reference's draws for one image, as a batch of one; None if they cannot be replayed.

    `stream` is NumPy's legacy generator with the seed of the reference's global one.
    """
    c = constants_of(name, size, torch.tensor([float(severity)]))[0].tolist()
    plane = (size, size)
    if name == "shot_noise":
        return None
    if name in ("gaussian_noise", "speckle_noise"):
        return (_batch(stream.normal(size=(*plane, 3)).transpose(2, 0, 1)),)
    if name == "impulse_noise":
        amount = round(c[0], 6)
        flipped, salted = (stream.choice([True, False], (*plane, 3), p=[p, 1 - p]) for p in (amount, 0.5))
        return (_batch(np.where(flipped, np.where(salted, 0.25, 0.75) * amount, 1).transpose(2, 0, 1)),)
    if name == "glass_blur":
        reach, passes = int(c[1]), int(c[2])
        inside = size - 2 * reach  # scanned from the bottom right
        drawn = stream.randint(-reach, reach, size=(passes, inside, inside, 2))[:, ::-1, ::-1].transpose(0, 3, 1, 2)
        offset = np.pad(drawn, ((0, 0), (0, 0), (reach + 1, reach - 1), (reach + 1, reach - 1)))
        return (torch.from_numpy(offset.astype(np.int64))[None],)
    if name == "motion_blur":
        return (torch.tensor([stream.uniform(-45, 45)], dtype=torch.float64),)
    if name == "snow":
        return _batch(stream.normal(size=plane)), torch.tensor([stream.uniform(-135, -45)], dtype=torch.float64)
    if name == "frost":
        which = stream.randint(5)
        corner = [stream.randint(0, side - size) for side in frost_overlays(size)[1][which, 1:].tolist()]
        return tuple(torch.tensor([value]) for value in (which, *corner))
    if name == "fog":
        return (_batch(_plasma_draws(fog_map(size), stream)),)
    if name == "elastic_transform":
        return _batch(stream.uniform(-1, 1, (3, 2))), _batch(stream.uniform(-1, 1, (2, *plane)))
    return (_batch(stream.normal(size=plane)),) if name == "spatter" else ()


def _batch(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))[None]


def _plasma_draws(side: int, stream: np.random.RandomState) -> Any:
    field = np.zeros((side, side))
    half = side // 2
    while half:  # the reference's order: the squares' centres, then both diamonds
        for row, column in ((half, half), (0, half), (half, 0)):
            place = field[row :: 2 * half, column :: 2 * half]
            place[...] = stream.uniform(-1, 1, place.shape)
        half //= 2
    return field


def replay(image: Tensor, name: str, severity: int, stream: np.random.RandomState) -> Tensor | None:
    """Corrupt an image uint8 (3, H, H) by our function with the reference's draws; None if they are unavailable."""
    draws = replayed_draws(name, image.shape[-1], severity, stream)
    if draws is None:
        return None
    c = constants_of(name, image.shape[-1], torch.tensor([float(severity)]))
    return truncate(REGISTRY[name].apply(image[None].float(), c, *draws))[0].to(torch.uint8)


class Difference(NamedTuple):
    """Difference of uint8 images: the largest, in grey levels; percent of values that differ, and by over three."""

    largest: int
    differing: float
    far: float


@dataclass(frozen=True)
class Deviation:
    """A statistic of ours and the reference's, with the standard error of their difference."""

    ours: float
    reference: float
    error: float

    @property
    def within(self) -> bool:
        """Whether four standard errors and 0.2 % explain the difference, or 1 % if nothing is random."""
        # float64 in the reference and float32 here truncate up to a tenth of the whole grey levels to different sides.
        rounding = 0.002 if self.error else 0.01
        return abs(self.ours - self.reference) <= 4 * self.error + rounding * abs(self.reference)


def _decoded(stored: NDArray[np.uint8], by_severity: bool) -> NDArray[np.uint8]:
    if stored.ndim > 1:
        return stored
    pixels = cv2.imdecode(stored, cv2.IMREAD_COLOR)
    if pixels is None:
        raise InputError("a reference output is not an image; restore tests/data/corruptions")
    frames: NDArray[np.uint8] = np.asarray(pixels[:, :, ::-1]).reshape(-1, pixels.shape[1], pixels.shape[1], 3)
    return frames.reshape(5, -1, *frames.shape[1:]) if by_severity else frames


@dataclass(frozen=True)
class Reference:
    """The reference's outputs for clean images, uint8 (N, 3, H, H): arrays of the first or all, statistics of all."""

    size: int
    clean: Tensor
    arrays: dict[str, Tensor]
    statistics: dict[str, Any]

    @staticmethod
    def load(size: int, folder: Path = REFERENCE) -> "Reference":
        """Read `golden_<size>.npz` (or `clean_224.npz`, which has no arrays) and `golden_stats.json`."""
        if not (folder / "golden_stats.json").exists():
            raise InputError(f"{folder} holds no golden_stats.json; expected a folder like tests/data/corruptions")
        file = folder / ("clean_224.npz" if size == 224 else f"golden_{size}.npz")
        try:
            data = ARRAYS.decode(read_regular(file, _LARGEST))
            images = {name: _decoded(array, by_severity=name != "clean") for name, array in data.items()}
            arrays = {name: torch.from_numpy(np.moveaxis(image, -1, -3).copy()) for name, image in images.items()}
            clean = arrays.pop("clean")
            statistics = parse_json(read_regular(folder / "golden_stats.json", _LARGEST))[str(size)]
        except Exception as error:  # of the file system, or whatever NumPy says to what is not its own
            raise InputError(f"{file}: no such reference ({first_line(error)}); see tests/data/corruptions") from error
        return Reference(size, clean, arrays, statistics)

    def difference(self, name: str, severity: int) -> Difference | None:
        """Compare our images under the reference's draws with the reference's; None if there are none."""
        if name not in self.arrays:
            return None
        expected = self.arrays[name][severity - 1]
        ours = []
        for index, image in enumerate(self.clean[: len(expected)]):
            seed = zlib.crc32(f"{self.size}/{index}/{name}/{severity}/0".encode())
            found = replay(image, name, severity, np.random.RandomState(seed))
            if found is None:
                return None
            ours.append(found)
        return difference(torch.stack(ours), expected)

    def deviations(self, name: str, severity: int, draws: int, seed: int = 0) -> dict[str, Deviation]:
        """Compare the `statistics`; if `name` is random, each image is corrupted `draws` (2 or more) times."""
        known = self.statistics[name]
        random = known["draws"] > 1
        draws = draws if random else 1
        images = self.clean.repeat(draws, 1, 1, 1)
        drawn = derive_seed(seed, "parity", name, severity)
        ours = statistics(corrupt(images, name, severity, seeds_for(drawn, len(images))), images)
        found = {}
        for statistic, values in ours.items():
            reference = known["severity"][str(severity)][statistic]
            values = values.view(draws, -1)
            variance = float(values.var(0).mean()) if random else 0.0
            error = variance / draws + reference["sd_draws"] ** 2 / known["draws"]
            means = reference["per_image_mean"]
            found[statistic] = Deviation(float(values.mean()), float(np.mean(means)), (error / len(means)) ** 0.5)
        return found


def difference(a: Tensor, b: Tensor) -> Difference:
    """Compare two uint8 tensors of one shape."""
    levels = (a.int() - b.int()).abs()
    differing, far = (round(float((levels > by).double().mean()) * 100, 3) for by in (0, 3))
    return Difference(int(levels.max()), differing, far)


def statistics(images: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Return PSNR (dB), mean error (grey levels), high-pass (3×3) variance of uint8 (N, 3, H, H) against clean."""
    y, x = images.double(), clean.double()
    square = ((y - x) ** 2).mean((1, 2, 3))
    high = y - F.avg_pool2d(F.pad(y, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return {
        "psnr": 10 * torch.log10(255**2 / square),
        "mae": (y - x).abs().mean((1, 2, 3)),
        "hp_var": high.flatten(1).var(1, unbiased=False),
    }


def imagecorruptions_difference(image: Tensor, name: str, severity: int, seed: int) -> Difference:
    """Compare `imagecorruptions` and ours with its draws, for one image uint8 (3, 224, 224)."""
    theirs = _imagecorruptions(image.permute(1, 2, 0).numpy(), name, severity, seed)
    ours = replay(image, name, severity, np.random.RandomState(seed))
    assert ours is not None
    return difference(ours, torch.from_numpy(theirs).permute(2, 0, 1))


def _imagecorruptions(image: Any, name: str, severity: int, seed: int) -> Any:
    from imagecorruptions import corrupt as package  # type: ignore[import-untyped]  # slow to import

    np.random.seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array(package(image, severity=severity, corruption_name=name))


@app.command()
def parity(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")] = None,
    reference: Annotated[Path, typer.Option(help="Folder with the reference outputs.")] = REFERENCE,
    draws: Annotated[int, typer.Option(help="Draws of each image at 32 and 64 px; 40 % of it at 224 px.")] = 40,
    seed: Annotated[int, typer.Option(help="Seed of our draws.")] = 0,
) -> None:
    """Compare with the reference's outputs, and at 224 px with `imagecorruptions`."""
    _one_thread()
    result: dict[str, Any] = {}
    for size in SIZES:
        known = Reference.load(size, reference)
        count = max(2, draws if size < 224 else draws * 2 // 5)
        for name in CORRUPTIONS:
            row: dict[str, Any] = {"images": len(known.clean), "draws": count, "within": True, "severity": {}}
            for severity in SEVERITIES:
                exact = known.difference(name, severity)
                found = known.deviations(name, severity, count, seed)
                row["within"] &= all(deviation.within for deviation in found.values())
                cell: dict[str, Any] = {"replayed": exact and exact._asdict()}
                for statistic, deviation in found.items():
                    cell[statistic] = {key: float(f"{value:.5g}") for key, value in asdict(deviation).items()}
                if size == 224 and name in COMPARABLE:
                    pairs = [imagecorruptions_difference(image, name, severity, seed) for image in known.clean]
                    cell["imagecorruptions"] = max(pairs, key=lambda d: d.largest)._asdict()
                row["severity"][str(severity)] = cell
            result.setdefault(name, {})[str(size)] = row
    _publish(json_file, "corruption-parity/1", parity_table, seed=seed, corruptions=result)


_BATCH = {32: 256, 64: 64, 224: 8}  # images in one call of ours; the package takes one at a time
_THEIRS = {32: 16, 64: 8, 224: 1}


@app.command()
def throughput(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")] = None,
    rounds: Annotated[int, typer.Option(help="Timed rounds; ours and theirs alternate.")] = 15,
    severity: Annotated[int, typer.Option(help="Severity for both, a whole number 1…5.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
) -> None:
    """Measure milliseconds per image, one thread: ours in batches, `imagecorruptions` one by one, in turns.

    `imagecorruptions` has only the constants of 224 px. Below that the two make different images, and only their speed
    is compared.
    """
    _one_thread()
    result: dict[str, Any] = {}
    for size in SIZES:
        clean = Reference.load(size).clean
        batch = clean.repeat(-(-_BATCH[size] // len(clean)), 1, 1, 1)[: _BATCH[size]]
        singles = [image.permute(1, 2, 0).numpy().copy() for image in batch[: _THEIRS[size]]]
        seeds = seeds_for(derive_seed(seed, "throughput"), len(batch))
        for name in CORRUPTIONS:
            times: dict[str, list[float]] = {"ours": [], "imagecorruptions": []}
            for turn in range(rounds + 1):
                start = time.perf_counter()
                corrupt(batch, name, severity, seeds)
                middle = time.perf_counter()
                for image in singles:
                    _imagecorruptions(image, name, severity, derive_seed(seed, "throughput", draw=turn) % 2**32)
                end = time.perf_counter()
                if turn > 0:  # the first round fills caches and compiles
                    times["ours"].append((middle - start) * 1e3 / len(batch))
                    times["imagecorruptions"].append((end - middle) * 1e3 / len(singles))
            result.setdefault(name, {})[str(size)] = {who: _quartiles(values) for who, values in times.items()}
    details = {"severity": severity, "rounds": rounds, "batch": _BATCH, "ms_per_image": result}
    _publish(json_file, "corruption-throughput/1", throughput_table, seed=seed, **details)


def _quartiles(values: list[float]) -> dict[str, float]:
    shares = {"median": 50, "p25": 25, "p75": 75}
    return {name: round(float(np.percentile(values, share)), 4) for name, share in shares.items()}


def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _publish(json_file: Path | None, schema: str, table: Callable[[dict[str, Any]], str], **details: Any) -> None:
    command = portable_command(["python -m rws.benchmarks.corruptions.parity", *sys.argv[1:]])
    content: dict[str, Any] = provenance(command=command, threads=1, **details)
    content["versions"] |= {"imagecorruptions-imaug": version("imagecorruptions-imaug")}
    if json_file:
        write_json(json_file, schema, content)
    typer.echo(table(content))


if __name__ == "__main__":
    app()
