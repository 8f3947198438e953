import pytest
import torch

from rws.training.tasks.classify import distil


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
