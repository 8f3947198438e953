import pytest

from rws.edge.common.extras import require
from rws.errors import MissingExtraError


def test_a_missing_package_names_its_extra():
    message = r"'nowhere_to_be_found'.*pip install 'rws-edge\[train\]'"
    with pytest.raises(MissingExtraError, match=message), require("train"):
        import nowhere_to_be_found  # noqa: F401


def test_a_missing_module_of_ours_is_our_mistake():
    with pytest.raises(ModuleNotFoundError) as caught, require("train"):
        import rws.nowhere_to_be_found  # noqa: F401
    assert not isinstance(caught.value, MissingExtraError)


def test_other_exceptions_pass():
    with pytest.raises(ZeroDivisionError), require("train"):
        raise ZeroDivisionError
