import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rws.oracle.belief import Belief
from rws.training.corruptions import CORRUPTIONS, WHOLE_SEVERITIES
from rws.training.oracle.sampling import LEVELS, Draw, OracleRecipe, draw, draw_severities, joint_target


@given(kind=st.integers(-1, 18), severity=st.floats(0, 5, width=32))
def test_the_target_has_the_severity_it_stands_for(kind, severity):
    target = joint_target(torch.tensor([kind]), torch.tensor([0.0 if kind < 0 else severity]))[0]
    belief = Belief(CORRUPTIONS, LEVELS, target.numpy())
    assert belief.joint.sum() == pytest.approx(1, abs=1e-5)
    assert belief.expected_severity == pytest.approx(0 if kind < 0 else severity, abs=1e-4)
    others = np.delete(belief.probability, [0, kind + 1])
    assert not others.any()


def test_severities_are_whole_where_no_others_exist():
    types = torch.tensor([CORRUPTIONS.index("saturate")] * 50 + [CORRUPTIONS.index("fog")] * 50 + [-1] * 10)
    recipe = OracleRecipe(minimum_severity=0.3, whole_share=0)
    severities = draw_severities(types, recipe, torch.Generator().manual_seed(0))
    assert torch.equal(severities[:50], severities[:50].round())
    assert not torch.equal(severities[50:100], severities[50:100].round())
    assert severities[50:100].min() >= 0.3
    assert torch.equal(severities[100:], torch.zeros(10))


def drawn(**settings: float) -> Draw:
    return draw(20_000, OracleRecipe(**settings), CORRUPTIONS, torch.Generator().manual_seed(0))


def test_shares_of_clean_paired_and_whole_are_kept():
    found = drawn(clean_share=0.2, pair_share=0.25, whole_share=0.5)
    assert (found.types < 0).float().mean() == pytest.approx(0.2, abs=0.01)
    assert (found.second_types >= 0).float().mean() == pytest.approx(0.8 * 0.25, abs=0.01)
    assert not (found.second_types[found.types < 0] >= 0).any()
    assert not (found.second_types == found.types)[found.types >= 0].any()
    free = torch.tensor([index for index, name in enumerate(CORRUPTIONS) if name not in WHOLE_SEVERITIES])
    severities = found.severities[torch.isin(found.types, free)]
    # A real severity above 5 is cut to 5, which is whole: a ninth of them.
    assert (severities == severities.round()).float().mean() == pytest.approx(0.5 + 0.5 / 9, abs=0.02)


def test_two_corruptions_share_the_target():
    found = drawn(pair_share=1.0, clean_share=0.1)
    per_type = found.target[:, 1:].reshape(len(found.target), len(CORRUPTIONS), len(LEVELS)).sum(2)
    paired = found.types >= 0
    assert torch.allclose(per_type[paired, found.types[paired]], torch.tensor(0.5))
    assert torch.allclose(per_type[paired, found.second_types[paired]], torch.tensor(0.5))
    assert torch.allclose(found.target.sum(1), torch.tensor(1.0))


@pytest.mark.parametrize(
    "settings", [{"clean_share": 0}, {"pair_share": 1.5}, {"minimum_severity": 5}, {"filters": 4}, {"widths": ()}]
)
def test_a_recipe_out_of_range_is_refused(settings):
    with pytest.raises(ValidationError):
        OracleRecipe(**settings)
