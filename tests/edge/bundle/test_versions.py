"""The versions of the bundle's format, and bundles that only the present one can describe."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import BundleFiles
from rws.edge.bundle.edit import remove_signature, upgrade_bundle, write_bundle
from rws.edge.bundle.examine import examine
from rws.edge.bundle.manifest import FILES, VERSION
from rws.edge.bundle.options import ModelOptions
from rws.edge.bundle.self_test import self_test
from rws.edge.bundle.swap import switch_bundle
from rws.edge.preprocess import InputSpec, preprocess
from rws.edge.tasks.base import TaskSpec
from rws.errors import BundleError, InputError
from support.bundle_files import assert_refused, edit_manifest
from support.tiny import CLASSES, SIZE, bundle_parts, network, taking, with_features

IMAGE = np.random.default_rng(4).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def as_first(document):
    """Make a manifest what the first version of the format would have written."""
    document["version"] = 1
    del document["task"], document["outputs"]
    document["input"] = {key: document["input"][key] for key in ("height", "width", "colour")}


def test_the_bundle_that_ships_takes_images_as_it_always_did():
    manifest = Bundle.load("cifar10").manifest
    assert manifest.input == InputSpec(32, 32, "RGB", "NCHW", "float32", 1, "crop")
    assert manifest.task == TaskSpec("classify")


@pytest.fixture
def first(bundle_path):
    edit_manifest(bundle_path, as_first)
    return bundle_path


class TestVersion1:
    def test_it_is_a_classifier_of_the_first_output(self, first, tiny_bundle):
        bundle = Bundle.load(first)
        assert bundle.manifest == tiny_bundle.manifest
        assert bundle.manifest.outputs == ("logits",)
        assert bundle.task().name == "classify"
        assert self_test(bundle) == self_test(tiny_bundle)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.update(task={"name": "raw"}), "key 'task' is unknown in version 1"),
            (lambda d: d.update(outputs=["logits"]), "key 'outputs' is unknown in version 1"),
            (lambda d: d["input"].update(dtype="uint8"), "key 'dtype' is unknown in version 1"),
            (lambda d: d["input"].update(colour="BGR"), "input.colour is 'BGR', expected 'RGB' in version 1"),
            (lambda d: d.update(input=3), "input is 3"),
            (lambda d: d["input"].pop("width"), "key 'input.width' is missing"),
            (lambda d: d.update(version=1.0), "format version is 1.0"),
            (lambda d: d.update(version=True), "format version is True"),
        ],
    )
    def test_it_is_as_strict_as_it_was(self, first, change, message):
        edit_manifest(first, change)
        assert_refused(first, message)

    def test_of_several_outputs_the_first_is_read(self, tmp_path):
        write_bundle(tmp_path / "two", bundle_parts(model=several(), outputs=("logits",)))
        edit_manifest(tmp_path / "two", as_first)
        bundle = Bundle.load(tmp_path / "two")
        assert bundle.manifest.outputs == ("logits",)
        assert [output.shape for output in bundle.model().predict(np.zeros((3, SIZE, SIZE), np.float32))] == [(1, 4)]


class TestUpgrade:
    def test_only_the_manifest_changes_and_says_the_same(self, first, tiny_bundle):
        before = {name: (first / name).read_bytes() for name in FILES}
        assert upgrade_bundle(first) is True
        assert {name: (first / name).read_bytes() for name in FILES} == before
        document = json.loads((first / "bundle.json").read_text())
        assert document["version"] == VERSION
        assert document["outputs"] == ["logits"]
        assert document["input"] == asdict(InputSpec(SIZE, SIZE, "RGB"))
        assert Bundle.load(first).manifest == tiny_bundle.manifest

    def test_a_bundle_of_the_present_version_stays_byte_by_byte(self, bundle_path):
        (bundle_path / "bundle.sig").write_bytes(b"s" * 64)
        before = {path.name: path.read_bytes() for path in bundle_path.iterdir()}
        assert upgrade_bundle(bundle_path) is False
        assert {path.name: path.read_bytes() for path in bundle_path.iterdir()} == before

    def test_the_makers_signature_goes(self, first):
        (first / "bundle.sig").write_bytes(b"s" * 64)
        assert upgrade_bundle(first) is True
        assert not (first / "bundle.sig").exists()

    def test_a_bad_bundle_stays_as_it_is(self, first):
        (first / "oracle.onnx").write_bytes(b"x")
        before = (first / "bundle.json").read_bytes()
        with pytest.raises(BundleError, match="truncated"):
            upgrade_bundle(first)
        assert (first / "bundle.json").read_bytes() == before

    def test_another_change_upgrades_too(self, first):
        remove_signature(first, "fog")
        assert json.loads((first / "bundle.json").read_text())["version"] == VERSION
        assert upgrade_bundle(first) is False


def several() -> bytes:
    return with_features(network(3, len(CLASSES), seed=1)).SerializeToString()


class TestVersion2:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.update(outputs=[]), r"outputs is \[\], expected at least one name"),
            (lambda d: d.update(outputs=["logits", "logits"]), "outputs is .*none twice"),
            (lambda d: d.update(outputs=["boxes"]), "bundle.json names the output 'boxes'"),
            (lambda d: d.pop("outputs"), "key 'outputs' is missing"),
            (lambda d: d.pop("task"), "key 'task' is missing"),
            (lambda d: d.update(task={"name": "guess"}), "task.name is 'guess', expected 'classify', 'multilabel'"),
            (lambda d: d.update(task={}), "key 'task.name' is missing"),
            (lambda d: d["task"].update(confidence=2), "task.confidence is 2, expected less than or equal to 1"),
            (lambda d: d["input"].update(dtype="uint8", high=1), "a uint8 input with high 255"),
            (lambda d: d["input"].update(dtype="float16"), "takes float32 .*expected float16"),
            (lambda d: d["input"].update(layout="NHWC"), r"takes float32 .*expected float32 \(N, 8, 8, 3\)"),
            (lambda d: d["input"].update(colour="GREY"), r"takes float32 .*expected float32 \(N, 1, 8, 8\)"),
            (lambda d: d["input"].update(high=1.0), "input.high is 1.0, expected a whole number"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, bundle_path, change, message):
        edit_manifest(bundle_path, change)
        assert_refused(bundle_path, message)

    @pytest.mark.parametrize("name", ["classify", "multilabel"])
    def test_one_number_per_class_is_checked_at_load(self, tmp_path, name):
        for outputs, message in ((("flat",), r"\(None, 6\), expected \(N, 4\)"), (("flat", "logits"), "expected")):
            with pytest.raises(BundleError, match=message):
                write_bundle(tmp_path / "b", bundle_parts(model=several(), outputs=outputs, task=TaskSpec(name)))

    def test_raw_outputs_need_no_classes_of_their_number(self, tmp_path):
        parts = bundle_parts(model=several(), outputs=("flat", "logits"), task=TaskSpec("raw"), classes=("any",))
        bundle = write_bundle(tmp_path / "raw", parts)
        assert self_test(bundle)[0] == "model runs: 3 x 8 x 8 to (1, 6), (1, 4); task raw"
        assert examine(BundleFiles.read(tmp_path / "raw")).tested[0] == self_test(bundle)[0]
        flat, logits = bundle.model().predict(np.zeros((3, SIZE, SIZE), np.float32))
        assert (flat.shape, logits.shape) == ((1, 6), (1, 4))

    @pytest.mark.parametrize(
        "spec",
        [
            InputSpec(SIZE, SIZE, "BGR", "NHWC", "uint8", 255, "letterbox"),
            InputSpec(SIZE, SIZE, "RGBA", high=255, fit="stretch"),
            InputSpec(SIZE, SIZE, "RGB", dtype="float16"),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("batch", [None, 1, 4])
    def test_a_model_gets_its_own_kind_of_input(self, tmp_path, tiny_bundle, spec, batch):
        model = taking(spec, network(3, len(CLASSES), seed=1), batch).SerializeToString()
        bundle = write_bundle(tmp_path / "b", bundle_parts(model=model, input=spec))
        assert Bundle.load(tmp_path / "b").manifest.input == spec
        assert len(self_test(bundle)) == 4
        plain, other = tiny_bundle.model(ModelOptions(threads=1)), bundle.model(ModelOptions(threads=1))
        for each in (plain, other):
            each.apply({"fog": 1.0})
        expected = plain.predict(preprocess(IMAGE, tiny_bundle.manifest.input)[0])[0]
        np.testing.assert_allclose(other.predict(preprocess(IMAGE, spec)[0])[0], expected, atol=1e-2)

    @pytest.mark.parametrize("batch", [65, 2**40])
    def test_a_batch_without_bounds_is_refused(self, tmp_path, batch):
        spec = InputSpec(SIZE, SIZE, "RGB")
        model = taking(spec, network(3, len(CLASSES), seed=1), batch).SerializeToString()
        with pytest.raises(BundleError, match=f"takes batches of {batch}, expected 1 to 64"):
            write_bundle(tmp_path / "b", bundle_parts(model=model))

    def test_an_oracle_takes_float32_whatever_the_model_takes(self, tmp_path):
        spec = InputSpec(SIZE, SIZE, "RGB", dtype="float16")
        model = taking(spec, network(3, len(CLASSES), seed=1)).SerializeToString()
        parts = bundle_parts(model=model, input=spec)
        oracle = taking(spec, network(1, 10, seed=3, softmax=True)).SerializeToString()
        with pytest.raises(BundleError, match=r"oracle\.onnx: takes float16 .*expected float32"):
            write_bundle(tmp_path / "b", replace(parts, oracle=oracle))

    def test_a_bundle_of_another_task_does_not_take_its_place_in_silence(self, bundle_path, tmp_path):
        write_bundle(tmp_path / "labels", bundle_parts(task=TaskSpec("multilabel")))
        with pytest.raises(InputError, match=r"has the task multilabel, not classify as .*--other-classes"):
            switch_bundle(bundle_path, tmp_path / "labels")
        switch_bundle(bundle_path, tmp_path / "labels", other_classes=True)
        assert Bundle.load(bundle_path).task().name == "multilabel"

    def test_what_needs_a_classifier_refuses_another_bundle(self, tmp_path, tiny_bundle):
        assert Bundle.load_classifier(tiny_bundle.path).manifest == tiny_bundle.manifest
        spec = InputSpec(SIZE, SIZE, "RGB", high=255)
        model = taking(spec, network(3, len(CLASSES), seed=1)).SerializeToString()
        for name, parts in {"raw": {"task": TaskSpec("raw")}, "range": {"input": spec, "model": model}}.items():
            write_bundle(tmp_path / name, bundle_parts(**parts))
            with pytest.raises(BundleError, match=r"this command needs a classifier of RGB images") as caught:
                Bundle.load_classifier(tmp_path / name)
            assert "\n" not in str(caught.value)
