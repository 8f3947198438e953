import pytest

from rws.errors import FormatError, InputError
from rws.training.build.recipe import load_recipe


def test_the_shipped_recipe_is_valid_and_says_what_it_builds():
    recipe = load_recipe("cifar10_vgg16")
    assert recipe.name == "cifar10-vgg16"
    assert recipe.model.widths
    assert recipe.signatures.bits == 8


def write(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_what_is_left_out_has_defaults_and_whole_numbers_serve_as_real_ones(tmp_path):
    recipe = load_recipe(write(tmp_path, 'name = "x"\n[init]\nlearning_rate = 1\n'))
    assert recipe.init.learning_rate == 1.0
    assert isinstance(recipe.init.learning_rate, float)
    assert recipe.signatures.way == "tuned"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('name = "x"\nspeed = 3', FormatError, "unknown key 'speed'"),
        ('name = "x"\n[init]\nepoch = 3', FormatError, "unknown key 'epoch'"),
        ('name = "x"\n[init]\nepochs = "many"', FormatError, "epochs is 'many', expected int"),
        ('name = "x"\n[init]\nepochs = true', FormatError, "expected int"),
        ('name = "x"\ninit = 3', FormatError, "init must be a table"),
        ("seed = 1", FormatError, "name"),
        ('name = "x"\n[init]\nepochs = [1, 2]', FormatError, "expected int"),
        ('name = "x"\n[model]\nwidths = 24', FormatError, "expected a list"),
        ('name = "x"\n[model]\nwidths = ["a"]', FormatError, "expected int"),
        ('name = "x"\n[init]\nepochs = 0', InputError, "epochs >= 1"),
        ('name = "x', FormatError, "recipe.toml"),
        ('name = "x"\n[tuned]\ntarget = "magic"', InputError, "magic"),
        ('name = "x"\n[signatures]\nway = "magic"', InputError, "magic"),
        ('name = "x"\n[init]\nprecision = "fp8"', InputError, "fp8"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        load_recipe(write(tmp_path, text))


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="cifar10_vgg16"):
        load_recipe("nothing")
