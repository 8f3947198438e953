import json
from dataclasses import replace

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from rws.cli import app
from rws.edge.bundle.bundle import Bundle
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.onnx.graph import read_model, shallow_tensors
from rws.errors import BundleError, FormatError, InputError
from rws.training.adopt.adoption import BEGINS_FROM, Adoption, AdoptRecipe, distil, load_adopt_recipe
from rws.training.adopt.model import (
    OperatorError,
    Preprocessing,
    adopt_model,
    layers_within,
    load_classifier,
    run_onnx,
    signature_bytes,
    stem,
    trainable,
)
from rws.training.corruptions import CORRUPTIONS
from rws.training.data.pictures import load_labelled, load_pictures, read_names
from rws.training.oracle.fit import OracleRecipe
from rws.training.oracle.tiles import ViewRecipe, bundled_network, corrupted_views, views
from support.command_line import CLASSES, rws
from support.tiny import network

SIZE = 32


def tiny(**changes) -> onnx.ModelProto:
    return network(4, len(CLASSES), seed=5, size=SIZE, **changes)


def images(count=3, size=SIZE) -> np.ndarray:
    return np.random.default_rng(7).random((count, 3, size, size), np.float32)


@pytest.fixture
def recipe() -> AdoptRecipe:
    oracle = ViewRecipe(frames=64, epochs=1, batch_size=32)
    calibration = replace(
        AdoptRecipe().calibration, images=8, coarse_images=4, severities=(5,), alphas=(1.0,), neighbours=1
    )
    return AdoptRecipe(layers=2, steps=3, common=0, batch_size=8, draws=1, oracle=oracle, calibration=calibration)


@pytest.fixture(scope="module")
def pictures(clear) -> torch.Tensor:
    return torch.from_numpy(clear[0].transpose(0, 3, 1, 2).copy())[:40]


@pytest.fixture(scope="module")
def picture_folder(clear, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(clear[0][:40]):
        cv2.imwrite(str(folder / f"{number}.png"), image[:, :, ::-1])
    return folder


def test_the_module_computes_what_the_graph_does_and_only_its_shallow_tensors_can_change():
    adopted = adopt_model(tiny().SerializeToString(), Preprocessing())
    proto = read_model(adopted.onnx)
    names = shallow_tensors(proto, 2)
    module, parameters = trainable(proto, names, SIZE)
    x = images()
    expected = run_onnx(tiny(), x)
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), expected, atol=1e-4)
    free = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    assert free == {id(parameter) for parameter in parameters.values()}
    assert tuple(parameters) == names


def test_the_shallow_part_alone_gives_what_the_first_deep_layer_sees():
    proto = read_model(adopt_model(tiny().SerializeToString(), Preprocessing()).onnx)
    names = shallow_tensors(proto, 2)
    part = stem(proto, names)
    assert sum(node.op_type == "Conv" for node in part.graph.node) == 2
    module, _ = trainable(part, names, SIZE)
    with torch.no_grad():
        assert module(torch.from_numpy(images())).shape[1] == 6


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(scale=255, mean=(127,), std=(128,)),
        Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), bgr=True),
        Preprocessing(bgr=True),
    ],
)
def test_preprocessing_becomes_a_part_of_the_graph(preprocessing):
    adopted = adopt_model(tiny().SerializeToString(), preprocessing)
    x = images()
    prepared = x[:, ::-1] if preprocessing.bgr else x
    mean, std = (np.reshape(values, (1, -1, 1, 1)) for values in (preprocessing.mean, preprocessing.std))
    prepared = ((prepared * preprocessing.scale - mean) / std).astype(np.float32)
    np.testing.assert_allclose(run_onnx(read_model(adopted.onnx), x), run_onnx(tiny(), prepared), atol=1e-3)


def test_a_model_for_nhwc_gets_a_transpose():
    proto = tiny()
    proto.graph.node.insert(0, helper.make_node("Transpose", ["pixels"], ["image"], perm=[0, 3, 1, 2]))
    del proto.graph.input[:]
    proto.graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", SIZE, SIZE, 3]))
    adopted = adopt_model(proto.SerializeToString(), Preprocessing())
    assert "NHWC" in " ".join(adopted.changes)
    np.testing.assert_allclose(run_onnx(read_model(adopted.onnx), images()), run_onnx(tiny(), images()), atol=1e-4)


@pytest.mark.parametrize("shape", ["initializer", "constant", "integers"])
@pytest.mark.parametrize("allowzero", [0, 1])  # torch's exporter writes 1
def test_a_model_for_one_image_takes_a_batch_afterwards(shape, allowzero):
    proto = tiny()
    lengths = numpy_helper.from_array(np.array([1, 6], np.int64), "shape")
    if shape == "initializer":
        proto.graph.initializer.append(lengths)
    else:
        value = {"value": lengths} if shape == "constant" else {"value_ints": [1, 6]}
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["shape"], **value))
    nodes = [node for node in proto.graph.node if node.op_type == "Flatten"]
    reshape = helper.make_node("Reshape", [nodes[0].input[0], "shape"], [nodes[0].output[0]], allowzero=allowzero)
    nodes[0].CopyFrom(reshape)
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    adopted = adopt_model(proto.SerializeToString(), Preprocessing())
    np.testing.assert_allclose(run_onnx(read_model(adopted.onnx), images()), run_onnx(tiny(), images()), atol=1e-4)


def test_what_torch_exports_by_default_for_one_image_can_be_trained_through(recipe, pictures, tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 6, 3, stride=2),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(6, len(CLASSES)),
    ).eval()
    file = tmp_path / "default.onnx"
    torch.onnx.export(network, (torch.zeros(1, 3, SIZE, SIZE),), str(file), dynamo=True, external_data=False)
    adopted = adopt_model(file.read_bytes(), Preprocessing())
    with torch.no_grad():
        expected = network(torch.from_numpy(images())).numpy()
    np.testing.assert_allclose(run_onnx(read_model(adopted.onnx), images()), expected, atol=1e-4)
    workshop = Adoption(adopted, pictures, replace(recipe, layers=1), tmp_path / "work")
    assert (workshop.target, workshop.why_shallow) == ("output", "")


def test_a_last_softmax_is_taken_off():
    adopted = adopt_model(tiny(softmax=True).SerializeToString(), Preprocessing())
    np.testing.assert_allclose(run_onnx(read_model(adopted.onnx), images()), run_onnx(tiny(), images()), atol=1e-4)


@pytest.mark.parametrize("kind", ["Identity", "Flatten"])
def test_a_softmax_before_nodes_that_only_reshape_is_taken_off_too(kind):
    proto = tiny(softmax=True)
    last = next(node for node in proto.graph.node if node.op_type == "Softmax")
    name = last.output[0]
    last.output[0] = "odds"
    proto.graph.node.append(helper.make_node(kind, ["odds"], [name]))
    adopted = adopt_model(proto.SerializeToString(), Preprocessing())
    np.testing.assert_allclose(run_onnx(read_model(adopted.onnx), images()), run_onnx(tiny(), images()), atol=1e-4)


def test_probabilities_that_are_made_otherwise_are_refused():
    proto = tiny(softmax=True)
    last = next(node for node in proto.graph.node if node.op_type == "Softmax")
    name = last.output[0]
    last.output[0] = "odds"
    proto.graph.node.append(helper.make_node("Abs", ["odds"], [name]))
    with pytest.raises(BundleError, match="probabilities"):
        adopt_model(proto.SerializeToString(), Preprocessing())


def test_outputs_that_are_left_out_are_named():
    proto = tiny()
    extra = proto.graph.node[0].output[0]
    proto.graph.output.append(helper.make_tensor_value_info(extra, TensorProto.FLOAT, None))
    assert extra in " ".join(adopt_model(proto.SerializeToString(), Preprocessing()).changes)


def free_size() -> onnx.ModelProto:
    proto = tiny()
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    return proto


def test_a_model_of_any_size_is_built_for_the_one_that_is_told():
    assert adopt_model(free_size().SerializeToString(), Preprocessing(), 48).size == 48
    with pytest.raises(InputError, match="--size"):
        adopt_model(free_size().SerializeToString(), Preprocessing())


def grey() -> onnx.ModelProto:
    proto = tiny()
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    return proto


def without_convolutions() -> onnx.ModelProto:
    proto = tiny()
    for node in proto.graph.node:
        if node.op_type == "Conv":
            node.op_type = "ConvInteger"
    return proto


@pytest.mark.parametrize(
    ("proto", "size", "error", "message"),
    [
        (tiny(), 64, InputError, "takes 32x32"),
        (grey(), None, BundleError, r"\(N, 3, H, W\)"),
        (without_convolutions(), None, BundleError, "float32 model"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(proto, size, error, message):
    with pytest.raises(error, match=message):
        adopt_model(proto.SerializeToString(), Preprocessing(), size)


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"std": (0.0,)}, {"mean": (1.0, 2.0)}, {"mean": (float("nan"),)}])
def test_preprocessing_with_impossible_numbers_is_refused(wrong):
    with pytest.raises(InputError, match="preprocessing"):
        Preprocessing(**wrong)


def with_operator_behind(kind: str) -> onnx.ModelProto:
    """A model whose head goes through an operator that onnx2torch does not know."""
    proto = tiny()
    gemm = next(node for node in proto.graph.node if node.op_type == "Gemm")
    proto.graph.node.insert(list(proto.graph.node).index(gemm), helper.make_node(kind, [gemm.input[0]], ["strange"]))
    gemm.input[0] = "strange"
    return proto


def test_an_operator_that_cannot_be_trained_through_is_named_and_the_shallow_part_still_can_be(
    recipe, pictures, tmp_path
):
    adopted = adopt_model(with_operator_behind("Shrink").SerializeToString(), Preprocessing())
    with pytest.raises(OperatorError, match="Shrink"):
        Adoption(adopted, pictures, replace(recipe, target="output"), tmp_path)
    workshop = Adoption(adopted, pictures, recipe, tmp_path)
    assert workshop.target == "shallow"
    assert "Shrink" in workshop.why_shallow
    assert all(delta.abs().max() > 0 for delta in workshop.signature("fog").values())


def test_a_byte_budget_chooses_the_cut():
    proto = read_model(adopt_model(tiny().SerializeToString(), Preprocessing()).onnx)
    share = signature_bytes(proto, 2) / proto.ByteSize()
    assert layers_within(proto, share * 1.01) == 2
    assert layers_within(proto, 1e-6) == 1
    assert layers_within(proto, 10) == 3  # one layer stays deep


def test_training_brings_the_output_on_corrupted_pictures_back(recipe, pictures, tmp_path):
    adopted = adopt_model(Bundle.load().read("model.onnx"), Preprocessing())
    workshop = Adoption(adopted, pictures, replace(recipe, layers=4, steps=40, batch_size=16), tmp_path)
    deltas = workshop.signature("contrast")
    record = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert record["loss"][1] < 0.8 * record["loss"][0]
    assert set(deltas) == set(workshop.tensors)


def test_answers_are_matched_as_they_are_and_softened():
    generator = torch.Generator().manual_seed(0)
    aim = 3 * torch.randn(6, 5, generator=generator)
    assert distil(aim, aim, 1.0, 3.0).item() == pytest.approx(0, abs=1e-6)
    assert distil(aim + 2, aim, 1.0, 3.0).item() == pytest.approx(0, abs=1e-6)  # a softmax knows no offset
    found = aim + torch.randn(6, 5, generator=generator)
    wanted = aim.softmax(1)
    plain = (wanted * (aim.log_softmax(1) - found.log_softmax(1))).sum(1).mean()
    assert distil(found, aim, 0.0, 3.0).item() == pytest.approx(plain.item(), rel=1e-4)
    # Of two that are right about the likeliest class, the softened match prefers the one that ranks the others alike.
    first = torch.tensor([[9.0, 3.0, 1.0]])
    like, unlike = torch.tensor([[9.0, 2.0, 1.0]]), torch.tensor([[9.0, 1.0, 2.0]])
    for soft, factor in ((0.0, 2), (1.0, 20)):
        assert distil(unlike, first, soft, 3.0) - distil(like, first, soft, 3.0) > factor * 1e-3


def test_a_signature_that_is_there_is_not_made_again_and_one_that_is_lost_is_made_to_the_same_bytes(
    recipe, pictures, tmp_path
):
    adopted = adopt_model(tiny().SerializeToString(), Preprocessing())
    Adoption(adopted, pictures, recipe, tmp_path).signature("shot_noise")
    made = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    assert set(made) == {"signature-gaussian_noise.safetensors", "signature-shot_noise.safetensors"}
    lines = len((tmp_path / "log.jsonl").read_text().splitlines())
    Adoption(adopted, pictures, recipe, tmp_path).signature("shot_noise")
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == lines
    (tmp_path / "signature-shot_noise.safetensors").unlink()
    Adoption(adopted, pictures, recipe, tmp_path).signature("shot_noise")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == made
    with pytest.raises(InputError, match="made from another recipe"):
        Adoption(adopted, pictures, replace(recipe, steps=4), tmp_path).signature("shot_noise")


def test_every_corruption_begins_from_one_that_needs_none_of_its_own():
    for name in CORRUPTIONS:
        chain = [name]
        while chain[-1] in BEGINS_FROM:
            chain.append(BEGINS_FROM[chain[-1]])
            assert len(chain) <= len(CORRUPTIONS)
            assert chain[-1] in CORRUPTIONS


@pytest.mark.parametrize(
    ("count", "classes", "message"),
    [
        (8, None, "found 8 pictures"),
        (40, ["a"], "class names"),
        (40, ["a\tb", *CLASSES[1:]], "not printable"),
        (40, ["", *CLASSES[1:]], "not printable"),
    ],
)
def test_too_few_pictures_or_names_are_refused(recipe, pictures, tmp_path, count, classes, message):
    adopted = adopt_model(tiny().SerializeToString(), Preprocessing())
    with pytest.raises(InputError, match=message):
        Adoption(adopted, pictures[:count], recipe, tmp_path, classes=classes)


def test_views_are_tiles_of_the_picture_one_of_each_quarter():
    side, tile = 96, 16
    pixels = torch.arange(side * side).reshape(1, 1, side, side).expand(2, 3, -1, -1)
    for generator in (None, torch.Generator().manual_seed(0)):
        seen = views(pixels, tile, generator)
        assert seen.shape == (2, 3, 2 * tile, 2 * tile)
        for row in range(2):
            for column in range(2):
                part = seen[0, 0, row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
                top, left = divmod(int(part[0, 0]), side)
                assert torch.equal(part, pixels[0, 0, top : top + tile, left : left + tile])
                assert (top // (side // 2), left // (side // 2)) == (row, column)
    assert views(pixels, side // 2) is pixels


def test_every_look_at_a_frame_has_its_target_and_tiles_of_its_own():
    side, tile = 64, 16
    # Each pixel's value is the picture's number, and the corruption of all is none.
    pixels = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1) * 60 + torch.zeros(4, 3, side, side).byte()
    pixels[:, 0] = torch.arange(side, dtype=torch.uint8)
    recipe = ViewRecipe(tile=tile, frames=64, draws=OracleRecipe(clean_share=0.5))
    once = corrupted_views(pixels, 30, recipe, 3)
    twice = corrupted_views(pixels, 30, recipe, 3, looks=2)
    assert twice.x.shape == (60, 3, 2 * tile, 2 * tile)
    assert torch.equal(twice.types, torch.cat([once.types, once.types]))
    assert torch.equal(twice.target, torch.cat([once.target, once.target]))
    clean = once.types == -1
    first, second = twice.x[:30][clean], twice.x[30:][clean]
    assert torch.equal(first[:, 1:], second[:, 1:])  # the same pictures …
    assert not torch.equal(first[:, 0], second[:, 0])  # … seen in other places


def test_the_oracle_begins_as_the_bundled_one():
    x = images(4)
    with torch.no_grad():
        found = bundled_network()(torch.from_numpy(x)).softmax(1).numpy()
    np.testing.assert_allclose(found, Bundle.load().oracle(threads=1).observe_batch(x), atol=1e-4)


def test_pictures_come_from_folders_and_videos(picture_folder, tmp_path, clear):
    found = load_pictures(str(picture_folder), 32)
    assert found.pixels.shape == (40, 3, 32, 32)
    assert not found.sequential
    assert load_pictures(str(picture_folder), 16, limit=7).pixels.shape == (7, 3, 16, 16)
    video = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 32))
    for image in clear[0][:20]:
        video.write(image[:, :, ::-1].copy())
    video.release()
    found = load_pictures(str(tmp_path / "v.avi"), 32, every=5)
    assert found.pixels.shape == (4, 3, 32, 32)
    assert found.sequential
    with pytest.raises(InputError, match="--every"):
        load_pictures(str(picture_folder), 32, every=0)
    with pytest.raises(InputError, match="--limit"):
        load_pictures("pattern", 32)


def test_pictures_of_a_live_source_are_kept_for_a_build_that_goes_on(tmp_path):
    first = load_pictures("pattern", 32, limit=3, keep=tmp_path)
    again = load_pictures("pattern", 32, limit=3, keep=tmp_path)
    assert first.sequential
    assert again.sequential
    assert torch.equal(first.pixels, again.pixels)
    with pytest.raises(InputError, match="remove it"):
        load_pictures("pattern", 48, limit=3, keep=tmp_path)


def test_of_a_video_the_last_pictures_are_held_out_because_neighbours_are_alike(recipe, pictures, tmp_path):
    adopted = adopt_model(tiny().SerializeToString(), Preprocessing())
    workshop = Adoption(adopted, pictures, recipe, tmp_path, sequential=True)
    held = len(workshop.held_out)
    assert held == 8
    assert torch.equal(workshop.held_out.pixels.flip(0), pictures[-held:])
    assert torch.equal(workshop.train.flip(0), pictures[:-held])


def test_labels_are_places_in_the_models_classes(image_folder):
    found = load_labelled(str(image_folder / "train"), 32, [*reversed(CLASSES)])
    assert found.labels[0] == len(CLASSES) - 1
    assert found.classes == tuple(reversed(CLASSES))
    folders = load_labelled(str(image_folder / "train"), 32, len(CLASSES))
    assert folders.classes[folders.labels[0]] == CLASSES[0]
    with pytest.raises(InputError, match="10 class folders, but the model gives 1000 logits"):
        load_labelled(str(image_folder / "train"), 32, 1000)
    with pytest.raises(InputError, match="none of the class names"):
        load_labelled(str(image_folder / "train"), 32, ["cat"])


def test_names_are_lines_or_json(tmp_path):
    (tmp_path / "a.txt").write_text("cat\ndog\n\n")
    (tmp_path / "b.json").write_text('{"note": "x", "names": ["cat", "dog"]}')
    assert read_names(tmp_path / "a.txt") == read_names(tmp_path / "b.json") == ["cat", "dog"]
    (tmp_path / "d.txt").write_text("cat\ndog", encoding="utf-8-sig")
    assert read_names(tmp_path / "d.txt") == ["cat", "dog"]
    (tmp_path / "e.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(FormatError, match="UTF-8"):
        read_names(tmp_path / "e.txt")
    (tmp_path / "c.json").write_text("3")
    with pytest.raises(ValueError, match="JSON list"):
        read_names(tmp_path / "c.json")


def test_a_factory_is_found_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "my_module_of_a_test.py").write_text(
        "import torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    pool = torch.nn.AdaptiveAvgPool2d(1)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3), pool,\n"
        "                               torch.nn.Flatten())\n"
        "def wants(size):\n"
        "    return make()\n"
        "def unfit():\n"
        "    return torch.nn.Linear(7, 2)\n"
        "def three():\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    adopted = adopt_model(load_classifier("my_module_of_a_test:make", 32), Preprocessing())
    assert (adopted.size, adopted.classes) == (32, 4)
    for model, size, message in (
        ("my_module_of_a_test:make", None, "--size"),
        ("my_module_of_a_test:three", 32, "gave a int"),
        ("my_module_of_a_test:none", 32, "package.module:factory"),
        ("my_module_of_a_test:wants", 32, "missing 1 required"),
        ("my_module_of_a_test:unfit", 32, "cannot export"),
        (":make", 32, "package.module:factory"),
        ("no_module_of_that_name:make", 32, "package.module:factory"),
    ):
        with pytest.raises(InputError, match=message):
            load_classifier(model, size)


def test_a_recipe_changes_what_it_names_and_keeps_the_other_defaults(tmp_path):
    path = tmp_path / "adopt.toml"
    path.write_text("steps = 7\n[stream]\nhold = 0.05\n[calibration]\nimages = 9\n[oracle.draws]\nclean_share = 0.3\n")
    found, default = load_adopt_recipe(path), AdoptRecipe()
    assert (found.steps, found.stream.hold, found.calibration.images) == (7, 0.05, 9)
    assert found.stream == replace(default.stream, hold=0.05)
    assert found.calibration == replace(default.calibration, images=9)
    assert found.oracle == replace(default.oracle, draws=replace(default.oracle.draws, clean_share=0.3))


@pytest.mark.parametrize(
    ("setting", "message"), [({"severities": (3.0,)}, "severities"), ({"bits": 5}, "bits"), ({"soft": -1.0}, "soft")]
)
def test_settings_that_cannot_work_are_refused_before_anything_is_trained(setting, message):
    with pytest.raises(InputError, match=message):
        AdoptRecipe(**setting)


@pytest.fixture(scope="module")
def command_built(picture_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("command")
    onnx.save(tiny(), root / "mine.onnx")
    recipe = root / "adopt.toml"
    recipe.write_text(
        "steps = 18\ncommon = 18\nlayers = 2\nbatch_size = 8\n[oracle]\nframes = 128\nbatch_size = 32\n"
        "[calibration]\nimages = 8\ncoarse_images = 4\nneighbours = 1\nneighbour_alphas = [1.0]\n"
    )
    arguments = ("build", "--model", root / "mine.onnx", "--images", picture_folder, "--quick", "--threads", 1)
    out, work = root / "bundle", root / "work"
    done = rws(*arguments, "--recipe", recipe, "--work", work, "--out", out)
    return out, work, done, root


def test_the_command_builds_a_bundle_that_runs(command_built, picture_folder, tmp_path):
    out, _, done, root = command_built
    assert f"wrote {out}" in done.stdout
    assert "minutes_left" in done.stdout
    bundle = Bundle.load(out)
    assert bundle.signatures.names == CORRUPTIONS
    assert bundle.manifest.measured["clean"] == 100  # agreement with itself
    original, x = read_model(root / "mine.onnx"), images()
    np.testing.assert_allclose(bundle.model(threads=1).predict(x), run_onnx(original, x), atol=1e-4)
    patched = [bundle.model(backend, threads=1, provider="cpu") for backend in ("onnx", "torch")]
    for model in patched:
        assert model.apply({"fog": 1.0})
    np.testing.assert_allclose(patched[0].predict(x), patched[1].predict(x), atol=1e-4)
    ran = rws("run", picture_folder, "--bundle", out, "--json", tmp_path / "summary.json")
    assert ran.returncode == 0
    assert json.loads((tmp_path / "summary.json").read_text())


@pytest.mark.parametrize(
    ("options", "layers", "target"),
    [
        ((), 2, "shallow"),
        (("--layers", 0), 0, "shallow"),
        (("--layers", 3), 3, "shallow"),
        (("--target", "auto"), 2, "auto"),
        (("--target", "output"), 2, "output"),
    ],
)
def test_what_is_given_on_the_command_line_replaces_what_the_recipe_says(
    options, layers, target, picture_folder, tmp_path, monkeypatch
):
    chosen = []

    def stop_before_training(adopted, pictures, recipe, *rest, **more):
        chosen.append(recipe)
        raise InputError("enough seen")

    monkeypatch.setattr("rws.training.adopt.adoption.Adoption", stop_before_training)
    onnx.save(tiny(), tmp_path / "mine.onnx")
    (tmp_path / "adopt.toml").write_text('layers = 2\ntarget = "shallow"\n')
    arguments = ["--model", tmp_path / "mine.onnx", "--images", picture_folder, "--recipe", tmp_path / "adopt.toml"]
    done = CliRunner().invoke(app, ["build", *map(str, (*arguments, "--work", tmp_path / "work", *options))])
    assert "enough seen" in done.output
    assert [(recipe.layers, recipe.target) for recipe in chosen] == [(layers, target)]


def test_weights_outside_the_cut_are_untouched(command_built):
    bundle = Bundle.load(command_built[0])
    original = {tensor.name: numpy_helper.to_array(tensor) for tensor in tiny().graph.initializer}
    deployed = {t.name: numpy_helper.to_array(t) for t in read_model(bundle.read("model.onnx")).graph.initializer}
    assert tuple(bundle.signatures.tensors) == (
        "features.0.weight",
        "features.0.bias",
        "features.1.weight",
        "features.1.bias",
    )
    for name, array in original.items():
        np.testing.assert_array_equal(deployed[name], array)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "mine.onnx"), "both --model and --images"),
        (("--model", "mine.onnx", "--images", "nowhere"), "no such file or folder"),
        (("--model", "none.onnx", "--images", "empty"), "none.onnx: cannot be read"),
        (("--model", "mine.onnx", "--images", "empty"), "holds no image file"),
        (("--model", "mine.onnx", "--images", "empty", "--mean", "a,b"), "--mean a,b"),
        (("--model", "mine.onnx", "--images", "empty", "--size", 64), "takes 32x32"),
        (("--model", "mine.onnx", "--images", "empty", "--device", "cuda"), "--device goes without --model"),
        (("--data", "empty", "--quick"), "--quick goes with --model"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    onnx.save(tiny(), tmp_path / "mine.onnx")
    failed = rws("build", *arguments, check=False)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


def test_patches_of_a_signature_reach_the_deployed_model(recipe, pictures, tmp_path):
    adopted = adopt_model(tiny().SerializeToString(), Preprocessing())
    workshop = Adoption(adopted, pictures, recipe, tmp_path)
    model = OnnxModel(adopted.onnx, workshop.signatures, workshop.tensors, "cpu", 1)
    clean = model.predict(images())
    model.apply({"contrast": 1.0})
    assert not np.array_equal(model.predict(images()), clean)
    model.reset()
    np.testing.assert_array_equal(model.predict(images()), clean)
