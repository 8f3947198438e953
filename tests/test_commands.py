"""Every command of `rws` runs, on inputs as small as it takes; a command without a case fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import typer
from typer.testing import CliRunner

from rws.cli import app
from rws.edge.bundle.edit import write_bundle
from rws.edge.bundle.keys import make_keys
from rws.edge.onnx.graph import clean_tensors, read_model, shallow_tensors
from support.fakes import write_images, write_video
from support.records import complaints_about
from support.tiny import CLASSES, bundle_parts, make_signatures, network

ADOPT = """
layers = 2
steps = 2
batch_size = 8
draws = 1
[oracle]
frames = 32
epochs = 1
batch_size = 32
[calibration]
images = 4
coarse_images = 2
severities = [5]
alphas = [1.0]
neighbours = 1
neighbour_alphas = [1.0]
"""


@dataclass(frozen=True)
class Inputs:
    """What the cases work on.

    Args:
        folder: an empty folder of the case's own.
        tiny: a bundle that the case may change: 8 x 8 pixels, three corruptions.
        built: a bundle with 19 corruptions, 32 x 32 pixels, made by `rws train` with `recipe`; not to be changed.
        recipe: of that build, a .toml file.
        images: <split>/<class>/<image>, 32 x 32 pixels.
    """

    folder: Path
    tiny: Path
    built: Path
    recipe: Path
    images: Path

    def few_images(self) -> Path:
        """Three of each class in each split."""
        for split in ("train", "test"):
            for folder in (self.images / split).iterdir():
                for path in sorted(folder.iterdir())[:3]:
                    target = self.folder / "few" / split / folder.name / path.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, target)
        return self.folder / "few"

    def pictures(self) -> Path:
        return write_images(self.folder / "pictures", 2)

    def model(self, name: str, seed: int) -> Path:
        onnx.save(network(3, len(CLASSES), seed), self.folder / name)
        return self.folder / name

    def signatures(self) -> Path:
        model = read_model(self.tiny / "model.onnx")
        clean = clean_tensors(model, shallow_tensors(model, 2))
        make_signatures(clean, ("rain",), seed=3).save(self.folder / "more.safetensors")
        return self.folder / "more.safetensors"

    def adopt_recipe(self) -> Path:
        (self.folder / "adopt.toml").write_text(ADOPT)
        return self.folder / "adopt.toml"

    def key(self) -> Path:
        private = self.folder / "maker.key"
        if not private.exists():
            make_keys(private, self.folder / "maker.pub")
        return private

    def other_bundle(self) -> Path:
        return write_bundle(self.folder / "other", bundle_parts(name="other")).path


@dataclass(frozen=True)
class Case:
    """How a command is run: its arguments after its name, its exit code, and what it prints.

    `reason` says why the command is not run to its usual end, if it is not.
    """

    arguments: Callable[[Inputs], tuple[Any, ...]]
    code: int = 0
    prints: str = ""
    reason: str = ""


def measured(*more: Any) -> Callable[[Inputs], tuple[Any, ...]]:
    return lambda x: ("--bundle", x.built, "--data", x.images, "--threads", 1, "--json", x.folder / "out.json", *more)


CASES: dict[str, Case] = {
    "run": Case(lambda x: (x.pictures(), "--bundle", x.tiny), prints="images 2"),
    "oracle": Case(lambda x: (x.pictures(), "--bundle", x.tiny), prints="images 2, rejected 0"),
    "health": Case(
        lambda x: (x.pictures(), "--bundle", x.tiny, "--json", x.folder / "out.json"), prints="frames 2, rejected 0"
    ),
    "inspect": Case(lambda x: (x.tiny,), prints="tiny"),
    "verify": Case(lambda x: (x.tiny,)),
    "drill": Case(lambda x: ("--bundle", x.tiny, "--only", "empty frame"), prints="dropped 0"),
    "bundle list": Case(lambda x: (x.tiny.parent,), prints="cifar10"),
    "bundle inspect": Case(lambda x: (x.tiny,), prints="tiny"),
    "bundle verify": Case(lambda x: (x.tiny,)),
    "bundle add": Case(lambda x: (x.tiny, x.signatures()), prints="now has 4 signatures"),
    "bundle remove": Case(lambda x: (x.tiny, "fog")),
    "bundle upgrade": Case(lambda x: (x.tiny,)),
    "bundle switch": Case(lambda x: (x.tiny, x.other_bundle())),
    "bundle keygen": Case(lambda x: (x.folder / "maker",), prints="signs bundles"),
    "bundle sign": Case(lambda x: (x.tiny, "--key", x.key()), prints="is now signed with the key"),
    "adopt": Case(
        lambda x: (x.model("none.onnx", 1), x.pictures(), "--scale", 1, "--work", x.folder / "work"),
        3,
        "found 2 images, expected 16 or more",
        reason="its trainings run in tests/training/adopt/test_run.py",
    ),
    "train": Case(
        lambda x: (x.few_images(), "--recipe", x.recipe, "--work", x.folder / "work", "--job", "init"),
        prints="validation_accuracy",
        reason="one job; the fixture `built` is a whole training",
    ),
    "extract": Case(
        lambda x: (
            *("--std", x.model("std.onnx", 1), "--robust", f"fog={x.model('robust.onnx', 2)}", "--layers", 2),
            *("--out", x.folder / "fog.safetensors"),
        ),
        prints="1 signatures over",
    ),
    "replay": Case(measured("--limit", 2), prints="regret"),
    "job run": Case(
        lambda x: (1, "of", 1, "replay", "--data", x.few_images(), "--limit", 2, "--work", x.folder / "work"),
        prints="regret",
    ),
    "demo": Case(lambda x: ("--bundle", x.built, "--out", x.folder / "demo"), prints="timeline.png"),
    "reproduce": Case(
        lambda x: ("--status", "--out", x.folder, "--json", x.folder / "out.json"),
        prints="missing",
        reason="its trainings run in tests/benchmarks/paper/test_run.py",
    ),
    "bench jobs": Case(
        lambda x: ("--count", 2, "--rounds", 1, "--most", 10, "--json", x.folder / "out.json"),
        prints="10 jobs",
    ),
    "bench several": Case(
        lambda x: ("--bundle", x.folder / "nothing"),
        3,
        "no such folder",
        reason="it takes minutes; its parts run in tests/benchmarks/cameras/test_measure.py",
    ),
    "bench policies": Case(measured("--limit", 2, "--validation-limit", 2)),
    "bench pairs": Case(measured("--pairs", 1, "--limit", 2, "--validation-limit", 2)),
    "bench unseen": Case(
        lambda x: (*measured("--limit", 1, "--epochs", 1, "--only", "fog")(x), "--work", x.folder / "work")
    ),
    "bench filter": Case(
        lambda x: ("--bundle", x.built, "--data", x.images, "--frames", 5, "--json", x.folder / "out.json")
    ),
    "bench baselines": Case(
        lambda x: ("--bundle", x.built, "--data", x.few_images(), "--work", x.folder / "work"), prints="models in"
    ),
    "bench streams": Case(
        lambda x: (
            *("--bundle", x.built, "--data", x.images, "--protocol", "iid", "--frames", 2),
            *("--json", x.folder / "out.json"),
        ),
        prints="trained",
    ),
    "bench figures": Case(lambda x: ("--out", x.folder, "--only", "gain_table"), prints="gain_table.png"),
    "bench zoo": Case(
        lambda x: (
            *("--model", "cifar10", "--images", x.images / "test", "--recipe", x.adopt_recipe(), "--limit", 48),
            *("--threads", 1, "--work", x.folder / "work", "--json", x.folder / "out.json"),
        )
    ),
    "bench zoo-curve": Case(
        lambda x: (
            *("--model", "cifar10", "--images", x.images / "test", "--recipe", x.adopt_recipe(), "--limit", 48),
            *("--layers", 1, "--corruption", "fog", "--threads", 1, "--work", x.folder / "work"),
            *("--json", x.folder / "out.json"),
        )
    ),
    "bench live": Case(
        lambda x: (
            *("--model", x.model("live.onnx", 1), "--rounds", 1, "--json", x.folder / "out.json"),
            *("--work", x.folder / "work"),
        )
    ),
    "bench models": Case(
        lambda x: (x.model("known.onnx", 1), "--work", x.folder / "work", "--json", x.folder / "out.json"),
    ),
    "bench damage": Case(
        lambda x: ("--limit", 10, "--streams", 6, "--json", x.folder / "out.json"), prints="name MP4, B-frames"
    ),
    "bench cameras": Case(
        lambda x: (
            *("--bundle", x.built, "--clear", x.pictures(), "--rain", x.pictures(), "--size", 8, "--cell", 1),
            *("--json", x.folder / "out.json"),
        ),
        prints="of the model",
    ),
    "bench clips": Case(
        lambda x: (
            "--clip",
            write_video(x.folder / "clip.mp4", range(90, 99)),
            "--fps",
            1,
            "--json",
            x.folder / "out.json",
        ),
        prints="lens dirt",
    ),
    "bench signatures": Case(measured("--limit", 2)),
    "bench storage": Case(lambda x: ("--bundle", x.tiny, "--json", x.folder / "out.json")),
    "bench latency": Case(
        lambda x: (
            *("--bundle", x.tiny, "--rounds", 1, "--repeats", 1, "--strategy", "live", "--json", x.folder / "out.json"),
        )
    ),
    "bench oracle": Case(
        lambda x: ("--bundle", x.tiny, "--rounds", 1, "--repeats", 1, "--json", x.folder / "out.json")
    ),
    "bench gpu": Case(
        lambda x: ("--out", x.folder), 3, "no GPU", reason="it takes a GPU, and minutes; this is its refusal"
    ),
}


def commands() -> Iterator[str]:
    """The full name of every command, without `rws`."""

    def walk(command: Any, name: str) -> Iterator[str]:
        if not hasattr(command, "list_commands"):
            yield name
            return
        context = typer.Context(command)
        for child in command.list_commands(context):
            yield from walk(command.get_command(context, child), f"{name} {child}".strip())

    return walk(typer.main.get_command(app), "")


def test_every_command_has_a_case():
    assert sorted(CASES) == sorted(commands())


@pytest.fixture
def inputs(built, tiny_recipe, image_folder, tmp_path) -> Inputs:
    tiny = write_bundle(tmp_path / "bundles" / "tiny", bundle_parts()).path
    (tmp_path / "own").mkdir()
    return Inputs(tmp_path / "own", tiny, built[0], tiny_recipe, image_folder)


@pytest.mark.parametrize("command", CASES)
def test_the_command_runs(command, inputs, monkeypatch):
    monkeypatch.chdir(inputs.folder)
    case = CASES[command]
    if command == "bench gpu" and torch.cuda.is_available():
        pytest.skip(case.reason)
    result = CliRunner().invoke(app, [*command.split(), *map(str, case.arguments(inputs))])
    assert result.exit_code == case.code, (result.output, result.exception)
    assert case.prints in result.output
    assert complaints_about(inputs.folder) == []
    assert (inputs.folder / "out.json").exists() or "--json" not in case.arguments(inputs)
