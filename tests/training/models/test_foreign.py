import pytest

from rws.edge.onnx.graph import data_input, read_model
from rws.errors import InputError, UsageError
from rws.training.models.foreign import load_model

MODULES = """
import torch
def make():
    torch.manual_seed(0)
    pool = torch.nn.AdaptiveAvgPool2d(1)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3), pool,
                               torch.nn.Flatten())
def grey():
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(2))
def with_torchvision():
    import torchvision
    return make().append(torchvision.ops.Permute([0, 1]))
class Fixed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
    def forward(self, x):
        assert x.shape[0] == 1
        return self.conv(x)
def fixed():
    return Fixed()
def wants(size):
    return make()
def unfit():
    return torch.nn.Linear(7, 2)
def three():
    return 3
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    (tmp_path / "modules_of_a_test.py").write_text(MODULES)
    monkeypatch.chdir(tmp_path)
    return "modules_of_a_test"


@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        ("make", (None, 3, 32, 48)),
        ("grey", (None, 1, 32, 48)),
        ("with_torchvision", (None, 3, 32, 48)),
        ("fixed", (1, 3, 32, 48)),
    ],
)
def test_a_factory_is_found_in_the_working_folder(factory, shape, modules):
    proto = read_model(load_model(f"{modules}:{factory}", (32, 48)))
    assert data_input(proto).shape == shape


@pytest.mark.parametrize(
    ("model", "size", "error", "message"),
    [
        ("{}:make", None, UsageError, "--size"),
        ("{}:three", (32, 32), InputError, "gave a int"),
        ("{}:none", (32, 32), InputError, "package.module:factory"),
        ("{}:wants", (32, 32), InputError, "missing 1 required"),
        ("{}:unfit", (32, 32), InputError, "cannot export it for 32x32 px"),
        (":make", (32, 32), InputError, "package.module:factory"),
        ("no_module_of_that_name:make", (32, 32), InputError, "package.module:factory"),
    ],
)
def test_a_factory_that_cannot_be_used_is_refused_in_a_line(model, size, error, message, modules):
    with pytest.raises(error, match=message) as caught:
        load_model(model.format(modules), size)
    assert "\n" not in str(caught.value)
