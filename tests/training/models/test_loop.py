import os
import random
import re

import pytest
import torch

from rws.errors import InputError
from rws.training.models.loop import DivergedError, Plan, rate_factor, train


def test_the_rate_rises_to_its_peak_and_falls_to_zero():
    rates = [rate_factor(step, 100, 0.25) for step in range(100)]
    assert max(rates) == pytest.approx(1)
    assert rates.index(max(rates)) == 24
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    assert rates[0] < 0.05


def run(steps, checkpoint=None, report=None):
    """Train a line by `steps` batches in epochs of three, the last one shorter; dropout draws as it goes."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Linear(4, 1))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    plan = Plan(steps, 3, 0.2, f"line {steps}")
    x = torch.arange(40.0).reshape(10, 4) / 40

    def loss_of(step: int) -> torch.Tensor:
        taken.append(step)
        return (model(x + step / 100) - x.sum(1, keepdim=True)).square().mean()

    taken: list[int] = []
    train(
        model,
        optimiser,
        lambda epoch: range(*plan.steps_of(epoch)),
        loss_of,
        plan,
        checkpoint=checkpoint,
        report=report,
    )
    return model.state_dict(), taken


def test_a_training_by_steps_takes_exactly_these_and_ends_within_an_epoch():
    seen: list[int] = []
    _, taken = run(8, report=lambda record: seen.append(record["epoch"]))
    assert taken == list(range(8))
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("stop", [1, 2])
def test_stopped_after_any_epoch_it_goes_on_to_the_same_bits(stop, tmp_path):
    def stopped(record):
        if record["epoch"] == stop:
            raise KeyboardInterrupt

    whole, _ = run(8)
    with pytest.raises(KeyboardInterrupt):
        run(8, tmp_path / "c", stopped)
    resumed, taken = run(8, tmp_path / "c")
    assert taken == list(range(3 * stop, 8))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    with pytest.raises(InputError, match="another recipe"):
        run(9, tmp_path / "c")


def test_a_loss_that_is_not_a_number_ends_the_training():
    model = torch.nn.Linear(1, 1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(DivergedError, match="lower the learning rate"):
        train(model, optimiser, lambda epoch: [0], lambda _: model.weight.sum() * float("nan"), Plan(1, 1, 0, "x"))


def keep_checkpoint(path):
    def stopped(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(10, path, stopped)


def test_a_damaged_checkpoint_is_named_and_what_to_do(tmp_path):
    path = tmp_path / "a.checkpoint"
    keep_checkpoint(path)
    good, draw = path.read_bytes(), random.Random(0)
    flipped = [bytearray(good) for _ in range(40)]
    for content in flipped:
        content[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
    whole = run(10)[0]
    messages = []
    for content in [b"", good[: len(good) // 2], b"text", *flipped]:
        path.write_bytes(content)
        try:
            found = run(10, path)[0]
        except InputError as error:
            messages.append(str(error))
        else:  # the flipped bit belongs to no content
            assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert len(messages) > 20
    for message in messages:
        assert re.fullmatch(rf"{path}[: ].*; remove it to start again", message)


def test_a_folder_or_pipe_for_a_checkpoint_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(InputError, match=f"{name}: is damaged .*not a regular file"):
            run(10, tmp_path / name)
