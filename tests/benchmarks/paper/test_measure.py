import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rws.benchmarks.paper.measure import Variant, code, code_bytes, mean
from rws.benchmarks.paper.tables import TABLE1, TABLE5
from rws.edge.signatures.quantization import largest_value
from rws.edge.signatures.signature_set import SignatureSet


@given(seed=st.integers(0, 100), bits=st.sampled_from([16, 8, 4]), per=st.sampled_from(["channel", "tensor"]))
def test_coded_tensors_are_off_by_half_a_step_at_most(seed, bits, per):
    generator = torch.Generator().manual_seed(seed)
    deltas = {"a": torch.randn(4, 3, 3, 3, generator=generator), "b": torch.randn(4, generator=generator)}
    coded = code(deltas, bits, per)
    for name, delta in deltas.items():
        largest = delta.flatten(1).abs().amax(1) if per == "channel" and delta.ndim > 1 else delta.abs()
        largest = largest if per == "channel" else delta.abs().amax().expand(len(delta))
        step = (largest / largest_value(bits)).reshape(-1, *[1] * (delta.ndim - 1))
        assert ((coded[name] - delta).abs() <= 0.5001 * step + 1e-7).all()
    assert code(deltas, 32, per) is deltas


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_bytes_are_those_of_a_signature_file_without_its_header(bits, per):
    shapes = [(16, 3, 3, 3), (16,), (32, 16, 3, 3), (31,)]
    deltas = {str(index): np.ones(shape, np.float32) for index, shape in enumerate(shapes)}
    signatures = SignatureSet.from_deltas({"fog": deltas, "snow": deltas}, bits, per, clean_hash="0" * 64)
    content = signatures.to_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert 2 * code_bytes(shapes, bits, per) == len(content) - header


def test_every_variant_has_its_own_name():
    variants = {*TABLE1, *TABLE5, Variant("residual", bits=8, per="tensor")}
    assert len({variant.key for variant in variants}) == len(variants)


def test_the_mean_over_corruptions():
    assert mean({"fog": 50.0, "snow": 70.0}) == 60.0
