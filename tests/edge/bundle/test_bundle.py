import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import rws.edge.bundle.contents
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import CIFAR10_BUNDLE
from rws.edge.bundle.edit import BundleParts, add_signatures, remove_signature, write_bundle
from rws.edge.bundle.manifest import FILES, Manifest
from rws.edge.bundle.options import ModelOptions
from rws.edge.bundle.self_test import self_test
from rws.edge.onnx.graph import clean_tensors, read_model
from rws.edge.preprocess import InputSpec
from rws.edge.signatures.signature_set import SignatureSet
from rws.edge.signatures.tensor_file import read_tensors, write_tensors
from rws.errors import BundleError, InputError, RwsError, SignatureError
from rws.oracle.belief import certain
from support.bundle_files import assert_refused, edit_manifest, edit_network, replace_file
from support.tiny import CLASSES, CORRUPTIONS, LEVELS, SIZE, bundle_parts, make_signatures, network

TABLE = bundle_parts().table
X = np.random.default_rng(0).random((3, SIZE, SIZE), np.float32)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def clean_of(bundle: Bundle) -> dict[str, np.ndarray]:
    return clean_tensors(read_model(bundle.read("model.onnx")), bundle.signatures.tensors)


class TestRoundTrip:
    def test_what_was_written_is_loaded(self, tiny_bundle, parts):
        loaded = Bundle.load(tiny_bundle.path)
        assert loaded.manifest == tiny_bundle.manifest
        assert loaded.manifest.name == "tiny"
        assert loaded.manifest.classes == CLASSES
        assert (loaded.manifest.input.height, loaded.manifest.input.width) == (SIZE, SIZE)
        assert loaded.manifest.corruptions == CORRUPTIONS
        assert loaded.manifest.severity_levels == LEVELS
        assert tuple(tensor.name for tensor in loaded.manifest.patched_tensors) == loaded.signatures.tensors
        assert loaded.manifest.provenance == {"seed": 1}
        assert loaded.manifest.measured == {"ta": 25.0}
        assert loaded.read("oracle.onnx") == parts.oracle
        assert loaded.signatures.to_bytes() == parts.signatures.to_bytes()
        np.testing.assert_array_equal(loaded.table.accuracy, parts.table.accuracy)

    def test_the_same_parts_give_the_same_bytes(self, tiny_bundle, parts, tmp_path):
        write_bundle(tmp_path / "again", parts)
        assert contents(tmp_path / "again") == contents(tiny_bundle.path)

    def test_a_manifest_is_written_as_it_was_read(self, tiny_bundle):
        data = (tiny_bundle.path / "bundle.json").read_bytes()
        assert Manifest.parse(data, "bundle.json").to_bytes() == data

    def test_a_bundle_that_ships_is_written_as_it_was_loaded(self, tmp_path):
        bundle = Bundle.load("cifar10")
        manifest = bundle.manifest
        parts = BundleParts(
            name=manifest.name,
            classes=manifest.classes,
            input=manifest.input,
            model=bundle.read("model.onnx"),
            signatures=bundle.signatures,
            oracle=bundle.read("oracle.onnx"),
            table=bundle.table,
            policy=manifest.policy,
            filter=manifest.filter,
            provenance=manifest.provenance,
            measured=manifest.measured,
        )
        write_bundle(tmp_path / "again", parts)
        again, shipped = contents(tmp_path / "again"), contents(CIFAR10_BUNDLE)
        assert Manifest.parse(again.pop("bundle.json"), "") == manifest
        assert shipped.pop("bundle.json")
        assert again == shipped

    def test_a_model_may_come_from_a_file(self, tiny_bundle, parts, tmp_path):
        (tmp_path / "model.onnx").write_bytes(parts.model)
        write_bundle(tmp_path / "again", replace(parts, model=tmp_path / "model.onnx"))
        assert contents(tmp_path / "again") == contents(tiny_bundle.path)

    def test_a_folder_that_links_to_the_bundle(self, bundle_path, tmp_path):
        (tmp_path / "link").symlink_to(bundle_path)
        assert Bundle.load(str(tmp_path / "link")).manifest.name == "tiny"

    def test_the_default_is_found_next_to_the_package(self, bundle_path, monkeypatch):
        monkeypatch.setattr(rws.edge.bundle.contents, "DEFAULT_BUNDLE", bundle_path)
        assert Bundle.load().path == bundle_path


class TestParts:
    @pytest.mark.torch
    def test_both_backends_agree(self, tiny_bundle):
        first, second = tiny_bundle.model(ModelOptions(threads=1)), tiny_bundle.model(ModelOptions("torch", threads=1))
        for mix in ({}, {"fog": 1.0}, {"fog": 0.5, "contrast": -0.5}):
            assert first.apply(mix) == second.apply(mix) == bool(mix)
            np.testing.assert_allclose(first.predict(X)[0], second.predict(X)[0], atol=1e-4)

    def test_an_unknown_backend(self, tiny_bundle):
        with pytest.raises(InputError, match="'tensorrt', expected 'onnx' or 'torch'"):
            tiny_bundle.model(ModelOptions("tensorrt"))

    def test_oracle(self, tiny_bundle):
        belief = tiny_bundle.oracle(threads=1).observe(X)
        assert belief.names == ("clean", *CORRUPTIONS)
        assert belief.probability.sum() == pytest.approx(1, abs=1e-5)

    def test_policy_and_filter_take_the_manifests_settings(self, tiny_bundle):
        assert tiny_bundle.policy().margin == 0.5
        assert tiny_bundle.policy(independent=True).margin == 0
        assert tiny_bundle.filter().jump == (0.05,)
        mix = tiny_bundle.policy().choose(certain(CORRUPTIONS, LEVELS, "fog", 5))
        assert set(mix) <= set(CORRUPTIONS)

    def test_self_test(self, tiny_bundle):
        lines = self_test(tiny_bundle)
        assert any("3 signatures" in line for line in lines)

    def test_self_test_finds_a_network_that_gives_nan(self, bundle_path):
        def poison(model):
            head = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
            head.CopyFrom(numpy_helper.from_array(np.full(len(CLASSES), np.nan, np.float32), "head.bias"))

        edit_network(bundle_path, poison)
        with pytest.raises(BundleError, match="finite logits"):
            self_test(Bundle.load(bundle_path))

    def test_a_file_that_changes_after_loading_is_not_used(self, bundle_path, parts):
        bundle = Bundle.load(bundle_path)
        edit_network(bundle_path, lambda model: model.graph.node[0].ClearField("name"))
        assert bundle.read("model.onnx") == parts.model
        bundle.release()
        for part in (bundle.model, lambda: bundle.model(ModelOptions("torch"))):
            with pytest.raises(BundleError, match=r"model\.onnx"):
                part()


class TestAddingAndRemoving:
    def test_a_removed_signature_is_gone_everywhere(self, bundle_path):
        changed = remove_signature(bundle_path, "fog")
        assert changed.signatures.names == ("gaussian_noise", "contrast")
        assert changed.manifest.corruptions == CORRUPTIONS
        assert Bundle.load(bundle_path).manifest == changed.manifest
        policy, model = changed.policy(independent=True), changed.model(ModelOptions(threads=1))
        for name in CORRUPTIONS:
            for level in LEVELS:
                model.apply(policy.choose(certain(CORRUPTIONS, LEVELS, name, level)))
        with pytest.raises(SignatureError, match="'fog'"):
            model.apply({"fog": 1.0})

    def test_what_was_measured_of_a_removed_signature_does_not_serve_its_successor(self, bundle_path, parts):
        before = contents(bundle_path)
        remove_signature(bundle_path, "contrast")
        changed = add_signatures(bundle_path, parts.signatures, ["contrast"])
        assert changed.signatures.to_bytes() == before["signatures.safetensors"]
        assert changed.model(ModelOptions(threads=1)).apply({"contrast": 1.0})
        contrast = changed.table.corruptions.index("contrast")
        assert contrast not in changed.table.signature
        assert changed.table.corruptions.index("fog") in changed.table.signature
        for name in ("model.onnx", "oracle.onnx"):
            assert contents(bundle_path)[name] == before[name]

    def test_measured_numbers_move_to_the_provenance(self, bundle_path):
        changed = remove_signature(bundle_path, "fog")
        assert changed.manifest.measured == {}
        assert changed.manifest.provenance == {
            "seed": 1,
            "changes": [{"removed": ["fog"], "measured_before": {"ta": 25.0}}],
        }

    def test_a_new_name_can_be_applied_but_is_not_chosen(self, bundle_path, tiny_bundle):
        changed = add_signatures(bundle_path, make_signatures(clean_of(tiny_bundle), ["rain", "hail"], seed=5))
        assert changed.signatures.names == (*CORRUPTIONS, "rain", "hail")
        assert changed.model(ModelOptions(threads=1)).apply({"rain": 1.0, "fog": 0.5})
        assert "rain" not in changed.policy().table.corruptions

    def test_other_weights_are_refused_unless_transferred(self, bundle_path, tiny_bundle):
        other = {name: array + 1 for name, array in clean_of(tiny_bundle).items()}
        signatures = make_signatures(other, ["rain"])
        before = contents(bundle_path)
        with pytest.raises(SignatureError, match="--transfer"):
            add_signatures(bundle_path, signatures)
        assert contents(bundle_path) == before
        changed = add_signatures(bundle_path, signatures, transfer=True)
        assert changed.signatures.clean_hash == tiny_bundle.signatures.clean_hash
        assert changed.manifest.provenance["changes"][0]["made_for"] == signatures.clean_hash

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda path, same: remove_signature(path, "rain"), "'rain' is not there"),
            (lambda path, same: add_signatures(path, same), "'gaussian_noise' is already there"),
            (lambda path, same: add_signatures(path, same, ["rain"]), "'rain' is not there"),
            (
                lambda path, same: add_signatures(path, make_signatures({"other": X}, ["rain"]), transfer=True),
                "name the tensor 'other'",
            ),
        ],
    )
    def test_a_refused_change_leaves_every_byte(self, bundle_path, parts, change, message):
        before = contents(bundle_path)
        with pytest.raises(SignatureError, match=message):
            change(bundle_path, parts.signatures)
        assert contents(bundle_path) == before
        assert os.listdir(bundle_path.parent) == ["bundle"]

    def test_the_last_one_stays(self, bundle_path):
        remove_signature(bundle_path, "fog")
        remove_signature(bundle_path, "contrast")
        with pytest.raises(SignatureError, match="the only one"):
            remove_signature(bundle_path, "gaussian_noise")
        assert Bundle.load(bundle_path).signatures.names == ("gaussian_noise",)


class TestWriting:
    def test_a_bundle_is_replaced_in_one_piece(self, bundle_path, parts):
        write_bundle(bundle_path, replace(parts, name="other"))
        assert Bundle.load(bundle_path).manifest.name == "other"
        assert os.listdir(bundle_path.parent) == ["bundle"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"classes": CLASSES[:3]}, r"model\.onnx: gives \(None, 4\), expected \(N, 3\)"),
            ({"classes": []}, "classes is"),
            ({"input": InputSpec(SIZE, SIZE + 1, "RGB")}, r"model\.onnx: takes"),
            ({"table": replace(TABLE, levels=(5.0, 3.0, 1.0))}, "ascending"),
            ({"table": replace(TABLE, corruptions=("fog", "fog", "snow"))}, "none twice"),
            ({"filter": {"speed": 1}}, "filter does not fit"),
            ({"filter": {"jump": 2.0}}, "filter does not fit"),
            ({"policy": {"margin": "wide"}}, "policy does not fit"),
            ({"measured": {"ta": float("nan")}}, "not plain JSON"),
            ({"measured": {"ta": np.float32(1)}}, "not plain JSON"),
            ({"name": ""}, "name is ''"),
            ({"name": "two\nlines"}, "printable"),
            ({"oracle": b"no network"}, r"oracle\.onnx: not a whole ONNX model"),
            ({"model": b""}, "^model: is empty; download or export it again$"),
        ],
    )
    def test_parts_that_do_not_fit_write_nothing(self, bundle_path, parts, tmp_path, change, message):
        before = contents(bundle_path)
        for target in (bundle_path, tmp_path / "new"):
            with pytest.raises(BundleError, match=message) as caught:
                write_bundle(target, replace(parts, **change))
            assert ".tmp" not in str(caught.value)
        assert contents(bundle_path) == before
        assert sorted(os.listdir(tmp_path)) == ["bundle"]

    def test_signatures_of_another_model_write_nothing(self, parts, tmp_path):
        wrong = {name: np.zeros(shape, np.float32) for name, shape in parts.signatures.shapes.items()}
        with pytest.raises(SignatureError, match="made for clean weights"):
            write_bundle(tmp_path / "new", replace(parts, signatures=make_signatures(wrong)))
        assert os.listdir(tmp_path) == []

    def test_a_folder_with_other_things_is_not_replaced(self, bundle_path, parts):
        (bundle_path / "holiday.jpg").write_bytes(b"precious")
        with pytest.raises(BundleError, match=r"holds 'holiday\.jpg', which is not part of a bundle"):
            write_bundle(bundle_path, parts)
        with pytest.raises(BundleError, match=r"holiday\.jpg"):
            remove_signature(bundle_path, "fog")
        assert (bundle_path / "holiday.jpg").read_bytes() == b"precious"

    def test_a_place_that_cannot_be_written(self, parts, tmp_path):
        (tmp_path / "file").write_text("not a folder")
        for target in (tmp_path / "file", tmp_path / "file" / "bundle"):
            with pytest.raises(BundleError, match="cannot be written"):
                write_bundle(target, parts)
        assert os.listdir(tmp_path) == ["file"]


class TestAbusiveFolders:
    def test_no_folder(self, tmp_path):
        assert_refused(tmp_path / "none", "no such folder")

    def test_a_folder_without_a_manifest(self, tmp_path):
        assert_refused(tmp_path, r"bundle\.json: cannot be read")

    @pytest.mark.parametrize("name", FILES)
    def test_a_missing_file(self, bundle_path, name):
        (bundle_path / name).unlink()
        assert_refused(bundle_path, f"{name}: cannot be read")

    @pytest.mark.parametrize("name", FILES)
    def test_a_truncated_file(self, bundle_path, name):
        data = (bundle_path / name).read_bytes()
        (bundle_path / name).write_bytes(data[:-1])
        assert_refused(
            bundle_path, rf"{name}: truncated: has {len(data) - 1} bytes, bundle\.json says {len(data)}; copy"
        )

    @pytest.mark.parametrize("name", FILES)
    def test_a_longer_file(self, bundle_path, name):
        with open(bundle_path / name, "ab") as file:
            file.write(b"x")
        assert_refused(bundle_path, rf"{name}: cannot be read \(has \d+ bytes, expected at most \d+\)")

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(name=st.sampled_from(FILES), place=st.integers(0, 10**6), flip=st.integers(1, 255))
    def test_any_altered_byte(self, bundle_path, name, place, flip):
        original = (bundle_path / name).read_bytes()
        data = bytearray(original)
        data[place % len(data)] ^= flip
        (bundle_path / name).write_bytes(data)
        assert_refused(bundle_path, f"{name}: altered")
        (bundle_path / name).write_bytes(original)

    @pytest.mark.parametrize("name", ["bundle.json", *FILES])
    def test_a_link_out_of_the_folder(self, bundle_path, tmp_path, name):
        (bundle_path / name).rename(tmp_path / "outside")
        (bundle_path / name).symlink_to(tmp_path / "outside")
        assert_refused(bundle_path, rf"{name}: cannot be read \(not a regular file")

    @pytest.mark.parametrize("name", ["bundle.json", *FILES])
    def test_a_pipe_or_a_folder_in_place_of_a_file(self, bundle_path, name):
        (bundle_path / name).unlink()
        os.mkfifo(bundle_path / name)
        assert_refused(bundle_path, rf"{name}: cannot be read \(not a regular file")
        (bundle_path / name).unlink()
        (bundle_path / name).mkdir()
        assert_refused(bundle_path, rf"{name}: cannot be read \(not a regular file")

    def test_a_manifest_too_large_to_read(self, bundle_path):
        with open(bundle_path / "bundle.json", "ab") as file:
            file.truncate(2**30)
        assert_refused(bundle_path, "expected at most")

    def test_files_that_the_manifest_does_not_name_are_ignored(self, bundle_path):
        (bundle_path / "notes.txt").write_text("hello")
        assert Bundle.load(bundle_path).manifest.name == "tiny"


def put(*keys_and_value):
    """A change that sets document[k1][k2]… = value."""
    *keys, last, value = keys_and_value

    def change(document):
        for key in keys:
            document = document[key]
        document[last] = value

    return change


GOOD_FILE = {"sha256": "0" * 64, "bytes": 1}

ABUSIVE_MANIFESTS = {
    "another format": (put("format", "zip"), "format is 'zip', expected 'rws-bundle'"),
    "a later version": (put("version", 3), "format version is 3, this program reads 1 and 2; install"),
    "no version": (lambda d: d.pop("version"), "format version is None"),
    "unknown key": (put("colour", "RGB"), "key 'colour' is unknown"),
    "missing key": (lambda d: d.pop("classes"), "key 'classes' is missing"),
    "name as a number": (put("name", 3), "name is 3"),
    "an escape in a class": (put("classes", 0, "\x1b[2J"), "classes.0 is"),
    "a lone surrogate": (put("classes", 0, "\ud800"), "not plain JSON"),
    "too few classes": (lambda d: d["classes"].pop(), r"gives \(None, 4\), expected \(N, 3\)"),
    "classes as text": (put("classes", "abcd"), "classes is 'abcd', expected a list"),
    "a colour": (put("input", "colour", "CMYK"), "input.colour is 'CMYK', expected 'RGB', 'BGR'"),
    "another size": (put("input", "height", 9), r"takes float32 \(None, 3, 8, 8\), expected float32 \(N, 3, 9, 8\)"),
    "size as a float": (put("input", "width", 8.0), "input.width is 8.0, expected"),
    "size as a truth": (put("input", "width", True), "input.width is True, expected"),
    "input with more": (put("input", "mean", 0), "key 'input.mean' is unknown; known: height, width, colour"),
    "unknown tensor": (put("patched_tensors", 0, "name", "other"), "model has no tensor 'other'"),
    "another shape": (put("patched_tensors", 0, "shape", [6, 3, 3, 4]), r"has shape \(6, 3, 3, 3\), bundle\.json says"),
    "negative shape": (put("patched_tensors", 0, "shape", [-1]), "patched_tensors.0.shape.0 is -1"),
    "a tensor twice": (lambda d: d["patched_tensors"].append(d["patched_tensors"][0]), "patched_tensors is"),
    "tensors as names": (put("patched_tensors", ["a"]), "patched_tensors.0 is"),
    "no tensors": (put("patched_tensors", []), "patched_tensors is"),
    "too few corruptions": (lambda d: d["corruptions"].pop(), r"policy\.safetensors: gain table"),
    "a corruption twice": (put("corruptions", 0, "fog"), "corruptions is"),
    "levels descending": (put("severity_levels", [5, 3, 1]), "severity_levels is"),
    "level zero": (put("severity_levels", [0, 3, 5]), "severity_levels.0 is 0, expected ascending"),
    "level six": (put("severity_levels", [1, 3, 6]), "severity_levels.2 is 6"),
    "levels as text": (put("severity_levels", ["1", "3", "5"]), "severity_levels.0 is '1'"),
    "filter as a list": (put("filter", []), "filter is"),
    "unknown filter setting": (put("filter", {"speed": 3}), "filter does not fit"),
    "filter sets the levels": (put("filter", {"levels": []}), "filter does not fit"),
    "filter out of range": (put("filter", {"jump": 7}), "filter does not fit"),
    "unknown policy setting": (put("policy", {"greed": 3}), "policy does not fit"),
    "policy sets the table": (put("policy", {"table": 3}), "policy does not fit"),
    "changes as text": (put("provenance", {"changes": "many"}), "provenance is"),
    "measured as a number": (put("measured", 93), "measured is 93"),
    "a path out of the folder": (put("files", "../../etc/passwd", GOOD_FILE), "files is .* and no other file"),
    "an absolute path": (put("files", "/etc/passwd", GOOD_FILE), "and no other file"),
    "an escape in a file's name": (put("files", "a\n\x1b[2J", 5), r"files\.a\\n\\x1b\[2J is 5, expected"),
    "a missing file": (lambda d: d["files"].pop("oracle.onnx"), "files is"),
    "short hash": (put("files", "oracle.onnx", "sha256", "00"), "files.oracle.onnx.sha256 is '00'"),
    "no bytes": (put("files", "oracle.onnx", "bytes", 0), "files.oracle.onnx.bytes is 0"),
    "negative bytes": (put("files", "oracle.onnx", "bytes", -5), "files.oracle.onnx.bytes is -5"),
    "wrong hash": (put("files", "oracle.onnx", "sha256", "0" * 64), r"oracle\.onnx: altered.* says 000000000000…"),
    "a file without bounds": (put("files", "oracle.onnx", "bytes", 10**9), "files is .* at most"),
    "an image without bounds": (put("input", "height", 10**9), "input.height is 1000000000"),
    "a shape without end": (put("patched_tensors", 0, "shape", [2**52] * 10_000), "patched_tensors.0.shape is"),
    "a name without end": (put("classes", 0, "x" * 10_000), "classes.0 is"),
    "a number of 4,000 digits": (put("measured", "ta", 10**3999), "a number of 4000 characters"),
    "a digit for each byte of a shape": (put("patched_tensors", 0, "shape", [10**3999]), "a number of 4000"),
    "an odd setting's name": (put("filter", "a\nb", 1), "filter does not fit"),
    "a filter with a prior of nothing": (put("filter", "prior", [1 - 9e-13] + [1e-13] * 9), "prior must be"),
    "a filter with a million rates": (put("filter", "jump", [0.5] * 10**6), "filter does not fit"),
    "a clean weight beyond float32": (put("policy", "clean_weight", 1e39), "clean_weight from"),
    "a clean weight of nearly nothing": (put("policy", "clean_weight", 1e-60), "clean_weight from"),
    "a margin of 10³⁹": (put("policy", "margin", [10**39]), "policy does not fit"),
    "wrong size": (put("files", "oracle.onnx", "bytes", 10**8), r"oracle\.onnx: truncated"),
}


@pytest.mark.parametrize("case", ABUSIVE_MANIFESTS)
def test_abusive_manifests(bundle_path, case):
    change, message = ABUSIVE_MANIFESTS[case]
    edit_manifest(bundle_path, change)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.load(bundle_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["a/b", "clean", "..", "-rf"])
def test_corruption_names_that_are_not_allowed(bundle_path, name):
    edit_manifest(bundle_path, put("corruptions", 0, name))
    assert_refused(bundle_path, "corruptions.0 is .*, expected names of letters")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"3",
        b"null",
        b'{"format": NaN}',
        b'{"format": Infinity}',
        b'{"format": "rws-bundle", "format": "rws-bundle"}',
        b"[" * 100_000,
        b"1" * 10_000,
    ],
)
def test_manifests_that_are_not_one(bundle_path, text):
    (bundle_path / "bundle.json").write_bytes(text)
    assert_refused(bundle_path, r"bundle\.json: (not valid JSON|format is)")


def drop(name):
    def change(model):
        model.graph.initializer.remove(next(tensor for tensor in model.graph.initializer if tensor.name == name))

    return change


def overwrite(name, array):
    def change(model):
        drop(name)(model)
        model.graph.initializer.append(numpy_helper.from_array(array, name))

    return change


def point_outside(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


WEIGHT = "features.0.weight"

ABUSIVE_MODELS = {
    "weights in another file": (point_outside, "is kept in another file"),
    "patched tensor missing": (drop(WEIGHT), f"model has no tensor '{WEIGHT}'"),
    "another shape": (overwrite(WEIGHT, np.zeros((6, 3, 5, 5), np.float32)), r"bundle\.json says \(6, 3, 3, 3\)"),
    "NaN": (overwrite(WEIGHT, np.full((6, 3, 3, 3), np.nan, np.float32)), "NaN or infinity"),
    "infinity": (overwrite(WEIGHT, np.full((6, 3, 3, 3), np.inf, np.float32)), "NaN or infinity"),
    "half precision": (overwrite(WEIGHT, np.zeros((6, 3, 3, 3), np.float16)), "float16, expected float32"),
    "two inputs": (
        lambda model: model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1])),
        "expected one image input",
    ),
    "no output": (lambda model: model.graph.ClearField("output"), "without nodes or outputs"),
    "a map as output": (
        lambda model: model.graph.output[0].CopyFrom(
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4, 2, 2])
        ),
        r"gives \(None, 4, 2, 2\)",
    ),
}


@pytest.mark.parametrize("case", ABUSIVE_MODELS)
def test_abusive_models_with_a_hash_that_agrees(bundle_path, case):
    change, message = ABUSIVE_MODELS[case]
    edit_network(bundle_path, change)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.load(bundle_path)
    assert "\n" not in str(caught.value)


def test_a_model_with_other_weights(bundle_path):
    edit_network(bundle_path, overwrite(WEIGHT, np.zeros((6, 3, 3, 3), np.float32)))
    assert_refused(bundle_path, "made for clean weights", SignatureError)


def test_garbage_with_a_hash_that_agrees(bundle_path, tiny_bundle):
    for name in FILES:
        replace_file(bundle_path, name, b"garbage")
        with pytest.raises(RwsError, match=f"{name}: not a whole"):
            Bundle.load(bundle_path)
        replace_file(bundle_path, name, tiny_bundle.read(name))


def test_an_oracle_of_another_size_or_for_other_corruptions(bundle_path):
    states = 1 + len(CORRUPTIONS) * len(LEVELS)
    replace_file(bundle_path, "oracle.onnx", network(1, states, 0, size=16).SerializeToString())
    assert_refused(bundle_path, r"oracle\.onnx: takes float32 \(None, 3, 16, 16\)")
    replace_file(bundle_path, "oracle.onnx", network(1, states + 3, 0).SerializeToString())
    assert_refused(bundle_path, r"oracle\.onnx: gives \(None, 13\), expected \(N, 10\)")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("gain.accuracy", np.full((10, 7), np.nan, np.float32), "not finite"),
        ("gain.accuracy", np.zeros((10, 6), np.float32), "gain table"),
        ("gain.alpha", np.full(7, np.inf, np.float32), "not finite"),
        ("gain.signature", np.array([-1, 0, 1, 2, 3, 0, 0]), "signature index 3"),
        ("gain.signature", np.array([0, 0, 1, 2, 1, 0, 0]), "no patch"),
        ("gain.signature", np.array(-1), r"policy\.safetensors"),
        ("other", np.zeros(1), "'other' is unknown"),
        ("gain.alpha", None, "'gain.alpha' is missing"),
    ],
)
def test_abusive_gain_tables(bundle_path, parts, key, value, message):
    arrays = {**parts.table.to_arrays(), key: value}
    if value is None:
        del arrays[key]
    replace_file(bundle_path, "policy.safetensors", write_tensors(arrays, {"format": "rws-policy", "version": 1}))
    assert_refused(bundle_path, message)


def test_a_gain_table_of_another_format(bundle_path, parts):
    data = write_tensors(parts.table.to_arrays(), {"format": "rws-policy", "version": 2})
    replace_file(bundle_path, "policy.safetensors", data)
    assert_refused(bundle_path, r"policy\.safetensors: is .*'version': 2")


def test_signatures_that_break_their_format(bundle_path):
    tensors, description = read_tensors((bundle_path / "signatures.safetensors").read_bytes(), "original")
    tensors = {name: array.copy() for name, array in tensors.items()}
    tensors[f"fog/{WEIGHT}.scale"][0] = np.nan
    replace_file(bundle_path, "signatures.safetensors", write_tensors(tensors, description))
    assert_refused(
        bundle_path, rf"signatures\.safetensors: scale 'fog/{WEIGHT}\.scale' has a value that is NaN", SignatureError
    )


def test_signatures_for_another_tensor(bundle_path, tiny_bundle):
    clean = clean_of(tiny_bundle)
    clean["head.weight"] = clean.pop("features.1.bias")
    replace_file(bundle_path, "signatures.safetensors", make_signatures(clean).to_bytes())
    assert_refused(bundle_path, "name the tensor 'head.weight', which the model does not patch", SignatureError)


def test_signatures_load_alone(bundle_path, parts):
    assert SignatureSet.load(bundle_path / "signatures.safetensors").names == parts.signatures.names


def test_a_bundle_fits_on_a_line(tiny_bundle):
    expected = f"Bundle(tiny, 8x8 px, 4 classes, 3 signatures, {tiny_bundle.path})"
    assert repr(tiny_bundle) == expected
