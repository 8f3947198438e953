import numpy as np
import pytest
import torch

from rws.edge.tasks.base import TaskSpec
from rws.errors import InputError
from rws.training.tasks.registry import make_objective

SIZE = (64, 64)
CLASSES = ("cat", "dog", "owl")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def fastestdet(count: int = 2) -> torch.Tensor:
    made = torch.rand(count, 8, 4, 4, generator=generator())
    made[:, 0] = (made[:, 0] > 0.7) * 0.8 + 0.01
    made[:, 5:] = (6 * made[:, 5:]).softmax(1)
    made[:, 3:5] -= 2
    return made


def boxes(sides: float = 12.0, count: int = 2) -> torch.Tensor:
    """Centre, sides, objectness and classes of 16 places per image, as YOLOv5 has them."""
    places = torch.rand(count, 16, 8, generator=generator())
    places[..., :2] = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(1) * 16.0 + 8
    places[..., 2:4] = sides + places[..., 2:4]
    places[..., 4] = (places[..., 4] > 0.6) * 0.9 + 0.01
    return places


OUTPUTS = {
    "classify": (TaskSpec("classify"), (4 * torch.randn(5, 3, generator=generator()),)),
    "multilabel": (TaskSpec("multilabel"), (4 * torch.randn(5, 3, generator=generator()),)),
    "single logit": (TaskSpec("multilabel"), (4 * torch.randn(5, 1, generator=generator()),)),
    "segment": (TaskSpec("segment"), (3 * torch.randn(2, 3, 8, 8, generator=generator()),)),
    "mask": (TaskSpec("segment"), (torch.rand(2, 1, 8, 8, generator=generator()),)),
    "embedding": (TaskSpec("raw"), (torch.randn(4, 16, generator=generator()),)),
    "maps": (TaskSpec("raw"), (torch.randn(4, 6, 5, 5, generator=generator()), torch.arange(4).reshape(4, 1))),
    "text": (TaskSpec("raw"), (torch.randn(2, 7, 11, generator=generator()).softmax(2),)),
    "fastestdet": (TaskSpec("detect", "fastestdet"), (fastestdet(),)),
    "yolov5": (TaskSpec("detect", "yolov5"), (boxes(),)),
    "yolov8": (
        TaskSpec("detect", "yolov8"),
        (torch.cat([boxes()[..., :4], boxes()[..., 5:] ** 4], 2).transpose(1, 2),),
    ),
}


def disturbed(outputs: tuple[torch.Tensor, ...], by: float) -> tuple[torch.Tensor, ...]:
    """The same outputs with noise, within the range of probabilities where they are some."""
    made = []
    for output in outputs:
        if not output.is_floating_point():
            made.append(output)
            continue
        found = output + by * torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
        # A number that may be a probability stays one.
        made.append(torch.where((output >= 0) & (output <= 1), found.clamp(0.001, 0.999), found))
    return tuple(made)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_loss_is_0_at_the_teacher_grows_with_the_distance_and_has_a_gradient(name):
    spec, teacher = OUTPUTS[name]
    objective = make_objective(spec, CLASSES, SIZE)
    assert float(objective.loss(teacher, teacher)) == pytest.approx(0, abs=1e-5)
    near, far = (disturbed(teacher, by) for by in (0.05, 0.3))
    assert 0 < float(objective.loss(near, teacher)) < float(objective.loss(far, teacher))
    student = tuple(x.clone().requires_grad_(x.is_floating_point()) for x in far)
    objective.loss(student, teacher).backward()
    assert student[0].grad.abs().max() > 0
    assert student[0].grad.isfinite().all()


@pytest.mark.parametrize("name", OUTPUTS)
def test_scores_and_agreement_are_full_with_oneself_and_fall_with_the_distance(name):
    spec, teacher = OUTPUTS[name]
    objective = make_objective(spec, CLASSES, SIZE)
    reference = [x.numpy() for x in teacher]
    near, far = ([x.numpy() for x in disturbed(teacher, by)] for by in (0.05, 0.4))
    itself, close, distant = (objective.scores(outputs, reference) for outputs in (reference, near, far))
    assert itself.shape == (len(reference[0]),)
    assert itself.dtype == np.float64
    if name != "classify":  # of a classifier it is the probability of the class, not of the whole answer
        np.testing.assert_allclose(itself, 1, atol=1e-5)
    assert ((distant >= 0) & (distant <= 1)).all()
    assert distant.mean() < close.mean() <= itself.mean() + 1e-6 or name == "classify"
    assert objective.agreement(reference, reference) == pytest.approx(100, abs=1e-4)
    assert objective.agreement(far, reference) <= 100


def test_agreement_counts_what_the_metric_says():
    logits = np.array([[2.0, 1, 0], [0, 3, 1], [0, 1, 2], [1, 0, 0]], np.float32)
    other = logits[[0, 1, 3, 2]]
    assert make_objective(TaskSpec("classify"), CLASSES, SIZE).agreement([other], [logits]) == 50
    yes = np.array([[5.0, -5, 5]], np.float32), np.array([[5.0, -5, -5]], np.float32)
    assert make_objective(TaskSpec("multilabel"), CLASSES, SIZE).agreement([yes[1]], [yes[0]]) == pytest.approx(200 / 3)
    none = -np.ones((2, 3), np.float32)
    spec = TaskSpec("multilabel", confidence=0.5)
    assert make_objective(spec, CLASSES, SIZE).agreement([none], [none]) == 100
    half = np.zeros((1, 2, 1, 4), np.float32)
    half[0, 1, 0, 2:] = 1
    most = half.copy()
    most[0, 1, 0, 1] = 1
    found = make_objective(TaskSpec("segment"), ("a", "b"), SIZE).agreement([most], [half])
    assert found == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)


def test_the_boxes_of_a_detector_are_compared_and_one_that_moved_away_is_missed():
    objective = make_objective(TaskSpec("detect", "yolov5"), CLASSES, SIZE)
    reference = boxes().numpy()
    moved = reference.copy()
    moved[..., 0] += 20
    assert objective.agreement([moved], [reference]) < 50
    assert objective.scores([moved], [reference]).max() < 0.2
    nothing = reference.copy()
    nothing[..., 4] = 0
    assert objective.agreement([reference], [nothing]) == 100  # no object that could be missed


def test_boxes_after_suppression_have_no_gradient_and_are_refused():
    with pytest.raises(InputError, match=r"NMS.*--output"):
        make_objective(TaskSpec("detect", "nms"), CLASSES, SIZE)


def test_channels_of_one_size_are_a_group_so_that_a_still_one_does_not_count_like_a_loud_one():
    objective = make_objective(TaskSpec("raw"), ("out",), SIZE)
    loud, still = torch.randn(4, 2, 6, 6, generator=generator()), torch.zeros(4, 1, 6, 6)
    teacher = torch.cat([loud, loud[:, :1] * 0.9, still + 1e-3], 1)
    student = teacher.clone()
    student[:, 3] += 1e-7 * loud[:, 0]
    assert float(objective.loss((student,), (teacher,))) < 0.1
