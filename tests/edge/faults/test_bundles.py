import pytest

from rws.edge.bundle.contents import CIFAR10_BUNDLE, BundleFiles
from rws.edge.bundle.examine import Examination
from rws.edge.faults.bundles import BAD, place
from rws.errors import RwsError

ALLOWED = {"other classes"}  # sound in itself; `rws run --watch` refuses it unless it is asked for


@pytest.mark.parametrize("name", [*BAD, "another"])
def test_each_bad_bundle_is_refused_and_the_good_one_is_not(tmp_path, name):
    place(CIFAR10_BUNDLE, tmp_path, name, BAD.get(name))
    if name in BAD and name not in ALLOWED:
        with pytest.raises(RwsError) as caught:
            Examination(BundleFiles.read(tmp_path)).run()
        assert "\n" not in str(caught.value)
    else:
        assert Examination(BundleFiles.read(tmp_path)).run().signatures == 19


def test_a_folder_that_was_damaged_becomes_whole_again(tmp_path):
    for damage in BAD.values():
        place(CIFAR10_BUNDLE, tmp_path, "bad", damage)
    place(CIFAR10_BUNDLE, tmp_path, "good")
    assert BundleFiles.read(tmp_path).manifest.name == "good"
    assert (tmp_path / "model.onnx").read_bytes() == (CIFAR10_BUNDLE / "model.onnx").read_bytes()
