import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rws.errors import InputError
from rws.training.signatures.residual import residual_signature


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(4, 3, 3, 3, generator=generator), "b": torch.randn(4, generator=generator)}


@given(seed=st.integers(0, 1000))
def test_the_residual_is_orthogonal_to_the_base_direction(seed):
    init, std, robust = weights(seed), weights(seed + 1), weights(seed + 2)
    deltas = residual_signature(init, std, robust, ("a", "b"))
    for name in ("a", "b"):
        base = std[name] - init[name]
        assert abs(float((deltas[name] * base).sum())) < 1e-3 * float(base.norm() * (robust[name] - init[name]).norm())


def test_the_whole_projection_is_orthogonal_over_all_tensors_at_once():
    init, std, robust = weights(0), weights(1), weights(2)
    deltas = residual_signature(init, std, robust, ("a", "b"), "whole")
    inner = sum(float((deltas[name] * (std[name] - init[name])).sum()) for name in deltas)
    assert inner == pytest.approx(0, abs=1e-3)
    assert abs(float((deltas["b"] * (std["b"] - init["b"])).sum())) > 1e-3


def test_with_std_as_init_the_residual_is_the_plain_difference():
    std, robust = weights(1), weights(2)
    residual = residual_signature(std, std, robust, ("a", "b"))
    plain = residual_signature(weights(5), std, robust, ("a", "b"), "plain")
    for name in residual:
        torch.testing.assert_close(residual[name], plain[name])


def test_unfitting_models_are_refused():
    with pytest.raises(InputError, match="no tensor 'c'"):
        residual_signature(weights(0), weights(1), weights(2), ("c",))
    wrong = {**weights(2), "a": torch.zeros(4, 3, 1, 1)}
    with pytest.raises(InputError, match="robust has shape"):
        residual_signature(weights(0), weights(1), wrong, ("a",))
    with pytest.raises(InputError, match="sideways"):
        residual_signature(weights(0), weights(1), weights(2), ("a",), "sideways")
