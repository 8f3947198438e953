import pytest

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.options import ModelOptions
from rws.edge.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_bundle(Bundle.load("cifar10"), ModelOptions(threads=1))
