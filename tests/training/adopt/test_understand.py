import numpy as np
import pytest
from onnx import numpy_helper

from rws.errors import UsageError
from rws.training.adopt.graph import Preprocessing
from rws.training.adopt.model import ImportOptions, adopt_model
from rws.training.adopt.outputs import Wanted
from rws.training.adopt.understand import find_preprocessing, understood
from support.classifiers import SIZE, convolutions, ending_in, tiny

COUNT = 24


def flat_images() -> np.ndarray:
    """Images of one grey each, uint8 (N, SIZE, SIZE, 3)."""
    greys = np.random.default_rng(1).integers(0, 256, (COUNT, 1, 1, 1))
    return np.broadcast_to(greys, (COUNT, SIZE, SIZE, 3)).astype(np.uint8)


def brightness_reader():
    """A model of grey images, 0…255, that tells bright ones from dark ones."""
    proto = convolutions(2, ("GlobalAveragePool", "map", "p"), ("Flatten", "p", "f"), ("Softmax", "f", "y"))
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    arrays = {"w0": np.zeros((8, 1, 3, 3), np.float32), "w1": np.zeros((2, 8, 3, 3), np.float32)}
    arrays |= {"b0": np.zeros(8, np.float32), "b1": np.array([-6.4, 0], np.float32)}
    arrays["w0"][0, 0, 1, 1], arrays["w1"][0, 0, 1, 1] = 1, 0.05
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return adopt_model(proto.SerializeToString())


def test_a_range_in_which_a_model_sees_nothing_loses():
    found, said = find_preprocessing(brightness_reader(), flat_images())
    assert found.scale == 255
    assert "0…255" in said


def test_if_nothing_is_clear_the_options_are_asked_for():
    model = adopt_model(tiny().SerializeToString())
    same = np.full((COUNT, SIZE, SIZE, 3), 99, np.uint8)
    with pytest.raises(UsageError, match="--scale, --mean, --std and --bgr") as caught:
        find_preprocessing(model, same)
    assert "\n" not in str(caught.value)


def test_raw_maps_have_no_score():
    model = adopt_model(convolutions(3, output="map").SerializeToString(), ImportOptions(wanted=Wanted("raw")))
    with pytest.raises(UsageError, match="task raw has no score"):
        find_preprocessing(model, flat_images())


def test_what_ultralytics_exports_needs_no_trial():
    proto = tiny()
    for key, value in {"author": "Ultralytics", "task": "classify"}.items():
        proto.metadata_props.add(key=key, value=value)
    assert find_preprocessing(adopt_model(proto.SerializeToString()), flat_images())[0] == Preprocessing()


@pytest.mark.parametrize("layers", [0, 2])
def test_a_few_lines_say_what_is_understood(layers):
    proto = ending_in(("Sigmoid", "logits", "p"), outputs=["p"])
    lines = understood(adopt_model(proto.SerializeToString()), "RGB 0…1", layers)
    said = "\n".join(lines)
    assert len(lines) <= 12
    for part in ("input: 32x32, RGB 0…1", "task: multilabel: 10 sigmoids", "batch: free", "weights: live"):
        assert part in said
    assert (f"the first {layers} of 4" in said) or layers == 0
    assert "changed: the last Sigmoid was taken off" in said
