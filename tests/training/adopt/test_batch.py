import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rws.training.adopt.batch import freed
from rws.training.adopt.graph import Runner, simplified

RNG = np.random.default_rng(3)


def model_of(batch, shape, nodes, constants, opset=17) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "fixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def ints(*values):
    return np.array(values, np.int64)


def shuffle(batch):
    """Channel shuffle as torch exports it: the batch is merged with the groups, and two Reshapes share a constant."""
    nodes = [
        node("Reshape", "x there", "a"),
        node("Transpose", "a", "b", perm=[1, 0, 2]),
        node("Reshape", "b back", "c"),
        node("Gather", "c first", "d", axis=0),
        node("Reshape", "d out", "y"),
    ]
    constants = {"there": ints(batch * 3, 2, 16), "back": ints(2, batch * 3, 4, 4), "first": ints(0).reshape(())}
    return model_of(batch, (6, 4, 4), nodes, constants | {"out": ints(batch, 3, 4, 4)})


def token(batch):
    """A class token in front of the patches, and positions."""
    each = np.repeat(RNG.random((1, 1, 5), np.float32), batch, axis=0)
    nodes = [
        node("Reshape", "x flat", "a"),
        node("Transpose", "a", "b", perm=[0, 2, 1]),
        node("Concat", "token b", "c", axis=1),
        node("Add", "c positions", "d"),
        node("Gather", "d first", "y", axis=1),
    ]
    positions = np.repeat(RNG.random((1, 10, 5), np.float32), batch, axis=0)
    constants = {"flat": ints(batch, 5, 9), "token": each, "positions": positions, "first": ints(0).reshape(())}
    return model_of(batch, (5, 3, 3), nodes, constants)


def heads(batch):
    """Attention's split into heads from a matrix of all tokens."""
    nodes = [
        node("Reshape", "x rows", "a"),
        node("MatMul", "a w", "b"),
        node("Reshape", "b split", "c"),
        node("Transpose", "c", "d", perm=[2, 0, 3, 1, 4]),
        node("Gather", "d first", "e", axis=0),
        node("Reshape", "e out", "y"),
    ]
    constants = {"rows": ints(batch * 7, 4), "w": RNG.random((4, 12), np.float32), "split": ints(batch, 7, 3, 2, 2)}
    return model_of(batch, (7, 4), nodes, constants | {"first": ints(1).reshape(()), "out": ints(batch, 28)})


def resized(batch, sizes=(8, 8)):
    nodes = [node("Resize", "x", "y", mode="nearest")]
    nodes[0].input.extend(["", "", "sizes"])
    return model_of(batch, (2, 4, 4), nodes, {"sizes": ints(batch, 2, *sizes)})


def odd_size(batch):
    return resized(batch, (7, 5))


def sliced(batch):
    nodes = [node("Slice", "x starts ends axes", "y")]
    return model_of(batch, (6,), nodes, {"starts": ints(0, 1), "ends": ints(batch, 5), "axes": ints(0, 1)})


def addresses(batch):
    """A flattening that torch wrote as `as_strided`."""
    nodes = [node("Reshape", "x all", "a"), node("Gather", "a places", "y")]
    places = np.arange(batch * 6).reshape(batch, 6)
    return model_of(batch, (6, 1, 1), nodes, {"all": ints(-1), "places": places})


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("make", [token, heads, resized, odd_size, sliced, addresses])
def test_images_give_at_once_what_each_gives_alone(make, batch):
    fixed = make(batch)
    free = freed(fixed)
    assert free is not None
    shape = [axis.dim_value for axis in fixed.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = RNG.random((3 * batch, *shape), np.float32)
    alone = np.concatenate([Runner(fixed)(part)[0] for part in np.split(x, 3)])
    np.testing.assert_allclose(Runner(free)(x)[0], alone, atol=1e-6)


def test_merged_axes_of_a_channel_shuffle_are_freed():
    fixed = shuffle(1)
    free = freed(simplified(fixed))
    assert free is not None
    x = RNG.random((2, 6, 4, 4), np.float32)
    found = Runner(free)(x)[0]
    assert found.shape[0] == 2


@pytest.mark.parametrize("kind", ["image", "mixed"])
def test_a_graph_that_mixes_images_stays_as_it_is(kind):
    nodes = [node("Gather", "x first", "y", axis=0)] if kind == "image" else [node("Reshape", "x lengths", "y")]
    constants = {"first": ints(0).reshape(()), "lengths": ints(5, 4)}
    assert freed(model_of(4, (5,), nodes, constants)) is None


def test_a_state_of_zeros_for_each_image_is_left_to_the_operator():
    weights = {"w": RNG.random((1, 8, 3), np.float32), "r": RNG.random((1, 8, 2), np.float32)}
    zeros = {"h": np.zeros((1, 1, 2), np.float32), "c": np.zeros((1, 1, 2), np.float32)}
    nodes = [
        node("Transpose", "x", "a", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["a", "w", "r", "", "", "h", "c"], ["", "b"], hidden_size=2),
        node("Reshape", "b out", "y"),
    ]
    fixed = model_of(1, (4, 3), nodes, weights | zeros | {"out": ints(1, 2)})
    free = freed(fixed)
    x = RNG.random((3, 4, 3), np.float32)
    assert free is not None
    alone = np.concatenate([Runner(fixed)(part)[0] for part in np.split(x, 3)])
    np.testing.assert_allclose(Runner(free)(x)[0], alone, atol=1e-6)
