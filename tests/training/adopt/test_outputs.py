import numpy as np
import pytest

from rws.errors import InputError, RwsError, UsageError
from rws.training.adopt.graph import Runner
from rws.training.adopt.outputs import Wanted, count_classes, find_task
from support.classifiers import SIZE, convolutions, ending_in, images, tiny
from support.command_line import CLASSES

ANY = Wanted()


def read(proto, wanted=ANY, names=None):
    run = Runner(proto)
    found = dict(zip(run.names, run(images(2)), strict=True))
    return find_task(proto, found, (SIZE, SIZE), wanted, names)


def features(count, *steps):
    """A vector of features behind the pooling."""
    weight = np.random.default_rng(0).normal(0, 1, (len(CLASSES), count)).astype(np.float32)
    return ending_in(("MatMul", "logits w", "f"), *steps, outputs=[steps[-1][2] if steps else "f"], w=weight)


SOFTMAX, SIGMOID = ("Softmax", "logits", "p"), ("Sigmoid", "logits", "p")


@pytest.mark.parametrize(
    ("proto", "task", "outputs"),
    [
        (tiny(), "classify", ["logits"]),
        (tiny(softmax=True), "classify", ["joint"]),
        (ending_in(SIGMOID, outputs=["p"]), "multilabel", ["p"]),
        (ending_in(("ArgMax", "logits", "label"), SOFTMAX, outputs=["label", "p"]), "classify", ["p"]),
        (ending_in(SOFTMAX, outputs=["p", "logits"]), "classify", ["logits"]),
        (ending_in(outputs=["flat", "logits"]), "classify", ["logits"]),
        (convolutions(5, output="map"), "segment", ["map"]),
        (convolutions(2, ("Softmax", "map", "y")), "segment", ["y"]),
        (convolutions(1, ("Sigmoid", "map", "y")), "segment", ["y"]),
    ],
)
def test_what_is_safe_to_tell(proto, task, outputs):
    found = read(proto)
    assert (found.task.name, list(found.outputs)) == (task, outputs)
    assert found.reason


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (features(1), "--task multilabel"),
        (features(128), "perhaps features"),
        (features(100, ("LpNormalization", "f", "n")), "perhaps features"),
        (ending_in(outputs=["flat"]), "perhaps features"),
        (ending_in(("ArgMax", "logits", "label"), outputs=["label"]), "whole numbers.*--output logits"),
        (ending_in(("HardSigmoid", "logits", "p"), outputs=["p"]), "within 0…1, not logits"),
        (ending_in(SOFTMAX, ("Abs", "p", "q"), outputs=["q"]), "within 0…1, not logits"),
        (ending_in(("Neg", "flat", "other"), outputs=["other", "logits"]), "say which with --output"),
        (convolutions(3, output="map"), "--task segment"),
        (convolutions(1, output="map"), "say --task raw"),
    ],
)
def test_what_is_not_safe_to_tell_is_asked_for(proto, message):
    with pytest.raises(UsageError, match=message) as caught:
        read(proto)
    assert "\n" not in str(caught.value)
    assert any(option in str(caught.value) for option in ("--task", "--output"))


@pytest.mark.parametrize(
    ("proto", "wanted", "outputs"),
    [
        (features(128), Wanted("classify"), ("f",)),
        (features(128), Wanted("raw"), ("f",)),
        (features(1), Wanted("multilabel"), ("f",)),
        (convolutions(3, output="map"), Wanted("segment"), ("map",)),
    ],
)
def test_what_the_user_says_counts(proto, wanted, outputs):
    found = read(proto, wanted)
    assert (found.task.name, found.outputs) == (wanted.task, outputs)


@pytest.mark.parametrize(
    ("proto", "wanted"),
    [
        (features(1), Wanted("classify")),
        (convolutions(5, output="map"), Wanted("classify")),
        (tiny(), Wanted("segment")),
        (tiny(), Wanted("detect")),
        (convolutions(1, output="map"), Wanted("segment")),
        (tiny(), Wanted(head="yolov8")),
    ],
)
def test_what_cannot_be_is_refused(proto, wanted):
    with pytest.raises(RwsError):
        read(proto, wanted)


def test_the_number_of_names_decides():
    weight = np.random.default_rng(0).normal(0, 1, (6, 7)).astype(np.float32)
    proto = ending_in(("MatMul", "flat w", "other"), outputs=["other", "logits"], w=weight)
    assert read(proto, names=len(CLASSES)).outputs == ("logits",)
    assert read(proto, names=7).outputs == ("other",)
    assert read(features(128), names=128).task.name == "classify"


def boxes(channels, *lengths):
    """A head of YOLOv8: (channels, 84 places of strides 8, 16, 32 … for a 64 px input)."""
    places = sum((SIZE // stride) ** 2 for stride in (8, 16, 32))
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 1, (len(CLASSES), channels * places)).astype(np.float32)
    return ending_in(
        ("MatMul", "logits w", "f"),
        ("Sigmoid", "f", "s"),
        ("Reshape", "s lengths", "output0"),
        outputs=["output0"],
        w=weight,
        lengths=np.array(lengths or (-1, channels, places), np.int64),
    )


class TestBoxes:
    def test_the_number_of_names_makes_it_safe(self):
        found = read(boxes(7), names=3)
        assert (found.task.name, found.task.head) == ("detect", "yolov8")
        assert count_classes(found.task, [(7, 21)]) == 3

    def test_without_names_the_head_is_asked_for(self):
        with pytest.raises(UsageError, match="--head yolov8"):
            read(boxes(7))
        assert read(boxes(7), Wanted(head="yolov8")).task.head == "yolov8"

    def test_what_ultralytics_writes_into_the_model_counts(self):
        proto = boxes(7)
        for key, value in {"author": "Ultralytics", "task": "detect", "names": "{0: 'a', 1: 'b', 2: 'c'}"}.items():
            proto.metadata_props.add(key=key, value=value)
        assert read(proto, names=3).task.head == "yolov8"
        proto.metadata_props[1].value = "pose"
        assert read(proto, names=3).task.name == "raw"


def test_numbers_that_are_not_finite_are_refused():
    proto = ending_in(("Log", "logits", "y"), outputs=["y"])
    with pytest.raises(RwsError, match="not finite"):
        read(proto)
    assert issubclass(UsageError, InputError)
