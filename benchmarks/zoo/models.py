"""Try many models: each is read, prepared, patched and checked for training, in a separate process."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from rws.benchmarks.common.tables import Record
from rws.benchmarks.live.case import exactness
from rws.benchmarks.live.models import export
from rws.benchmarks.live.table import run_case, title
from rws.benchmarks.zoo.run import ZOO
from rws.edge.common.child import python_command
from rws.edge.common.schema import read_toml
from rws.edge.live.session import LiveSession
from rws.edge.live.sessions import random_feeds
from rws.edge.onnx.graph import shallow_tensors
from rws.errors import RwsError, StrategyUnavailableError, UsageError, first_line
from rws.training.adopt.build import AdoptionBuild
from rws.training.adopt.model import ImportedModel, ImportOptions, adopt_model, with_preprocessing
from rws.training.adopt.outputs import Wanted
from rws.training.adopt.recipe import AdoptRecipe
from rws.training.adopt.run import side_lengths
from rws.training.adopt.trainable import layers_within
from rws.training.adopt.understand import find_preprocessing
from rws.training.data.clean_images import CleanImages, load_clean_images
from rws.training.models.foreign import load_model

MEMORY, SECONDS = 6 * 2**30, 900  # bytes and seconds for one model
IMAGES = 16
KNOWN = Path(__file__).parent / "models.toml"
_TORCHVISION = (
    "convnext_tiny deeplabv3_mobilenet_v3_large efficientnet_b0 lraspp_mobilenet_v3_large mobilenet_v2 "
    "mobilenet_v3_small regnet_x_400mf resnet18 shufflenet_v2_x1_0 squeezenet1_1 vit_b_16"
)
DEFAULT = (
    *(f"torchvision/{name}{exporter}" for name in _TORCHVISION.split() for exporter in ("", "@dynamo")),
    "torchvision/ssdlite320_mobilenet_v3_large",
    *(f"zoo/efficientnet_lite{number}" for number in range(3)),
)


@dataclass(frozen=True)
class ModelsOptions:
    """How to try models: photographs that tell the preprocessing of trained ones (""), a folder for exported ones."""

    images: str
    work: Path
    seed: int = 0
    workers: int = 1


def measure_models(
    specs: Sequence[str],
    options: ModelsOptions,
    progress: Callable[[str], object],
    keep: Callable[[list[Record]], object],
) -> None:
    """Try models, as `export` takes them or `zoo/NAME`; `keep` is given all rows after each.

    `KNOWN` says of a model what it is, where it is from if somebody has trained it, and the options that it needs.
    """
    known = cast(dict[str, dict[str, str]], read_toml(KNOWN))
    code = "import sys\nfrom rws.benchmarks.zoo.models import main\nmain(sys.argv[1:])"

    def row_of(spec: str) -> Record:
        said = dict(known.get(title(spec).partition("@")[0], {}))
        row = {"model": title(spec), "source": said.pop("source", ""), "kind": said.pop("kind", "")}
        if spec.endswith(".onnx"):
            spec = str(Path(spec).resolve())
        arguments = [spec, json.dumps(said), str(options.work.resolve()), str(options.seed)]
        arguments += [str(Path(options.images).resolve())] if options.images and row["source"] else []
        return row | run_case(python_command(code, *arguments), {}, SECONDS)

    rows: list[Record] = []
    with ThreadPoolExecutor(options.workers) as pool:
        for row in pool.map(row_of, specs):
            rows.append(row)
            progress(" ".join(str(row.get(key)) for key in _SAID))
            keep(rows)


_SAID = ("model", "outcome", "refusals", "task", "head", "strategy", "exact", "training", "seconds", "fault")


def _file(spec: str, work: Path, seed: int) -> Path:
    if not spec.startswith("zoo/"):
        return export(spec, work, seed)
    path = work / f"{title(spec)}.onnx"
    if not path.exists():
        path.write_bytes(ZOO[title(spec)].load(None))
    return path


def examine(path: Path, options: Mapping[str, str], seed: int, images: str = "") -> Record:
    """Return the outcome of a model, without options first, with them if it is refused; `images` tell a preprocessing.

    Whatever is no RwsError is a fault of ours and passes.
    """
    start = time.perf_counter()
    row: Record = {"outcome": "refused", "refusals": []}
    attempts: list[Mapping[str, str]] = [{}, options] if options else [{}]
    for attempt in attempts:
        try:
            data = load_model(str(path))
            row |= _source(onnx.load_model_from_string(data))
            model = adopt_model(data, _import_options(attempt))
        except RwsError as error:
            row["refusals"].append(str(error))
            continue
        row |= {"outcome": "taken", "options": " ".join(f"--{name} {value}" for name, value in attempt.items())}
        row |= _understood(model)
        pixels = _pixels(images, model.input.height, model.input.width, seed)
        if images:
            model, row["preprocessing"] = _preprocessed(model, pixels)
        row |= _patched(model, seed) | _trained(model, pixels)
        break
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def _source(proto: onnx.ModelProto) -> Record:
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), None)
    return {"exporter": f"{proto.producer_name} {proto.producer_version}".strip(), "opset": opset}


def _import_options(said: Mapping[str, str]) -> ImportOptions:
    size = side_lengths(said["size"]) if "size" in said else None
    outputs = tuple(said["output"].split(",")) if "output" in said else ()
    return ImportOptions(size, wanted=Wanted(said.get("task"), said.get("head", ""), outputs))  # type: ignore[arg-type]


def _understood(model: ImportedModel) -> Record:
    row: Record = {
        "input": asdict(model.input),
        "task": model.task.name,
        "head": model.task.head,
        "reason": model.reason,
    }
    return row | {
        "outputs": len(model.outputs),
        "classes": model.class_count,
        "batch": model.batch,
        "changes": model.changes,
    }


def _preprocessed(model: ImportedModel, pixels: NDArray[np.uint8]) -> tuple[ImportedModel, str]:
    try:
        found, said = find_preprocessing(model, pixels)
    except UsageError as error:
        return model, f"asks: {error}"
    return with_preprocessing(model, found), said


def _pixels(images: str, height: int, width: int, seed: int) -> NDArray[np.uint8]:
    if not images:
        return np.random.default_rng(seed).integers(0, 256, (IMAGES, height, width, 3), np.uint8)
    loaded = load_clean_images(images, (height, width), limit=IMAGES)
    return loaded.pixels.permute(0, 2, 3, 1).numpy()


def _patched(model: ImportedModel, seed: int) -> Record:
    proto = onnx.load_model_from_string(model.onnx)
    layers = layers_within(proto)
    tensors = shallow_tensors(proto, layers)
    feeds = random_feeds(proto, (model.input.height, model.input.width))
    try:
        live = LiveSession(proto, tensors=tensors, provider="cpu", threads=1, sample=feeds, cache=False)
    except StrategyUnavailableError as error:
        return {"layers": layers, "strategy": str(error)}
    return {"layers": layers, "strategy": live.strategy, **exactness(live, proto, tensors, seed)}


def _trained(model: ImportedModel, pixels: NDArray[np.uint8]) -> Record:
    """Start a build: its torch module gives what ONNX Runtime gives, and its loss has a gradient."""
    images = CleanImages(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
    with tempfile.TemporaryDirectory() as folder:
        try:
            build = AdoptionBuild(model, images, AdoptRecipe(), Path(folder))
            build.check()
        except RwsError as error:
            return {"training": str(error)}
    return {"training": build.target, "why_shallow": build.why_shallow}


def main(arguments: Sequence[str]) -> None:
    """Print the row of a model as JSON: arguments are its name, options as JSON, folder, seed, and perhaps images."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    spec, options, work, seed, *images = arguments
    try:
        path = _file(spec, Path(work), int(seed))
    except Exception as error:  # an architecture may raise anything when it is exported
        print(json.dumps({"fault": f"export: {first_line(error)}"}))
        return
    print(json.dumps(examine(path, json.loads(options), int(seed), *images)))
