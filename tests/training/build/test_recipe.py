import pytest

from rws.errors import FormatError, InputError
from rws.training.build.recipe import load_recipe


def test_the_shipped_recipe_is_valid_and_says_what_it_builds():
    recipe = load_recipe("cifar10")
    assert recipe.name == "cifar10"
    assert recipe.model.mirrored
    assert recipe.signatures.bits == 8


def write(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_what_is_left_out_has_defaults_and_whole_numbers_serve_as_real_ones(tmp_path):
    recipe = load_recipe(write(tmp_path, 'name = "x"\n[init]\nlearning_rate = 1\n'))
    assert recipe.init.learning_rate == 1.0
    assert isinstance(recipe.init.learning_rate, float)
    assert recipe.signatures.method == "tuned"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\ncolour = 3', "key 'colour' is unknown; known: name, seed, data"),
        ('name = "x"\n[init]\nepoch = 3', "key 'init.epoch' is unknown (did you mean epochs?)"),
        ('name = "x"\n[init]\nepochs = "many"', "init.epochs is 'many', expected a valid integer"),
        ('name = "x"\n[init]\nepochs = true', "init.epochs is True, expected a valid integer"),
        ('name = "x"\ninit = 3', "init is 3, expected an object"),
        ("seed = 1", "key 'name' is missing"),
        ('name = "x"\n[init]\nepochs = [1, 2]', "expected a valid integer"),
        ('name = "x"\n[model]\nwidths = 24', "model.widths is 24, expected a valid array"),
        ('name = "x"\n[model]\nwidths = ["a"]', "expected a valid integer"),
        ('name = "x"\n[init]\nepochs = 0', "expected greater than or equal to 1"),
        ('name = "x', "recipe.toml"),
        ('name = "x"\n[tuned]\ntarget = "magic"', "tuned.target is 'magic', expected 'output', 'labels' or 'shallow'"),
        ('name = "x"\n[signatures]\nmethod = "magic"', "signatures.method is 'magic', expected 'tuned' or 'residual'"),
        ('name = "x"\n[init]\nprecision = "fp8"', "init.precision is 'fp8', expected 'bf16' or 'fp32'"),
        ('name = "x"\n[calibration]\nalphas = [0.5]', "alphas that hold 1.0"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line_that_names_the_key(tmp_path, text, message):
    with pytest.raises(FormatError) as refused:
        load_recipe(write(tmp_path, text))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="cifar10"):
        load_recipe("nothing")
