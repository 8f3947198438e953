from dataclasses import replace

import pytest
from pydantic import ValidationError

from rws.training.adopt.recipe import AdoptRecipe, load_adopt_recipe
from rws.training.evaluation.gain import CalibrationRecipe
from rws.training.oracle.camera import CameraRecipe


def test_a_recipe_changes_what_it_names_and_keeps_the_other_defaults(tmp_path):
    path = tmp_path / "adopt.toml"
    path.write_text("steps = 7\n[stream]\nhold = 0.05\n[calibration]\nimages = 9\n[oracle.draws]\nclean_share = 0.3\n")
    found, default = load_adopt_recipe(path), AdoptRecipe()
    assert (found.steps, found.stream.hold, found.calibration.images) == (7, 0.05, 9)
    assert found.stream == replace(default.stream, hold=0.05)
    assert found.calibration == replace(default.calibration, images=9)
    assert found.oracle == replace(default.oracle, draws=replace(default.oracle.draws, clean_share=0.3))


@pytest.mark.parametrize(
    ("setting", "message"), [({"severities": (3.0,)}, "severities"), ({"bits": 5}, "bits"), ({"soft": -1.0}, "soft")]
)
def test_settings_that_cannot_work_are_refused_before_anything_is_trained(setting, message):
    with pytest.raises(ValidationError, match=message):
        AdoptRecipe(**setting)


def test_an_oracle_is_not_trained_on_a_single_frame_which_has_no_variance():
    with pytest.raises(ValidationError, match="frames"):
        CameraRecipe(frames=1)


@pytest.mark.parametrize(("neighbours", "alphas"), [((1.0,), (0.5, 1.0)), ((0.75,), (0.5, 0.75, 1.0))])
def test_a_first_look_measures_the_alphas_of_the_neighbours_too(neighbours, alphas):
    calibration = CalibrationRecipe(alphas=(0.25, 0.75, 1.0), neighbour_alphas=neighbours)
    assert AdoptRecipe(calibration=calibration).quick().calibration.alphas == alphas
