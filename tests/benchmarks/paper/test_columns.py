import pytest

from rws.benchmarks.paper.columns import COLUMNS, SCALES, ColumnBuild, Place, parse_data
from rws.errors import InputError
from rws.training.models.architectures import build_model, fold_batchnorm, shallow_tensors

RECIPES = [(column, scale) for scale in SCALES for column in COLUMNS.values() if column.has_recipe(scale)]


def test_every_column_has_a_full_recipe_and_all_but_imagenet_a_small_one():
    found = {scale: {column.name for column, its in RECIPES if its == scale} for scale in SCALES}
    assert found["full"] == COLUMNS.keys()
    assert found["small"] == COLUMNS.keys() - {"imagenet-resnet50"}
    assert found["short"] == {"cifar10-vgg16"}


@pytest.mark.parametrize(("column", "scale"), RECIPES, ids=lambda value: getattr(value, "name", value))
def test_a_recipe_is_of_its_column(column, scale, tmp_path):
    recipe = column.recipe(Place({}, tmp_path, scale))
    assert recipe.name == column.name
    assert recipe.data.source == column.dataset
    # With BatchNorm kept, the projection removes what the signature needs; see the table of inits.
    assert recipe.signatures.fold_first or recipe.signatures.projection == "plain"


# ResNet-50: five blocks with their shortcut; the paper's figure of about 468,000 is without it.
@pytest.mark.parametrize(("name", "shallow"), [("cifar10-vgg16", 555_328), ("tiny-imagenet-resnet50", 601_984)])
def test_the_full_models_have_the_papers_shallow_layers(name, shallow, tmp_path):
    model = fold_batchnorm(build_model(COLUMNS[name].recipe(Place({}, tmp_path, "full")).model, 10))
    own = dict(model.named_parameters())
    assert sum(own[tensor].numel() for tensor in shallow_tensors(model, 5)) == shallow


def test_data_sets_are_found_in_a_folder_or_by_name(tmp_path):
    (tmp_path / "tiny-imagenet").mkdir()
    found = parse_data([str(tmp_path), "cifar10=/elsewhere"])
    assert found == {
        "cifar10": "/elsewhere",
        "cifar100": "cifar100",
        "tiny-imagenet": str(tmp_path / "tiny-imagenet"),
    }
    with pytest.raises(InputError, match="no such folder"):
        parse_data([str(tmp_path / "nothing")])
    with pytest.raises(InputError, match="unknown data set 'mnist'"):
        parse_data(["mnist=/data"])


def test_a_column_without_its_data_says_what_to_give(tmp_path):
    with pytest.raises(InputError, match="--data imagenet=FOLDER"):
        ColumnBuild(COLUMNS["imagenet-resnet50"], Place(parse_data([]), tmp_path, "full"))
