import json

import numpy as np
import pytest

from rws.edge.preprocess import Placement
from rws.edge.tasks.raw import FEW, Raw
from rws.errors import InputError

WHOLE = Placement((4, 4), (4, 4), 1.0, 1.0, 0.0, 0.0)


def test_outputs_of_any_shape_are_kept_as_they_are():
    task = Raw()
    small, large = np.float32([[0.25, -1e-9, 3e30]]), np.zeros((1, FEW + 1), np.float32)
    outputs = [small, large, np.array([[7, -2]], np.int64), np.zeros((0, 4), np.float32), np.array(5, np.int32)]
    task.check([output.shape for output in outputs])
    read = task.read(outputs, WHOLE)
    assert all(kept is given for kept, given in zip(read.arrays, outputs, strict=True))
    record = json.loads(json.dumps(task.to_dict(read), allow_nan=False))
    assert record["outputs"][0] == {"shape": [1, 3], "values": [0.25, -1e-9, 3e30]}
    assert record["outputs"][1] == {"shape": [1, FEW + 1], "values": None}
    assert [one["values"] for one in record["outputs"][2:]] == [[7, -2], [], [5]]
    assert task.summary(read) == ("5 outputs", None)
    assert task.summary(task.read([small], WHOLE)) == ("1 output", None)
    assert list(task.seen(read)) == []


def test_an_output_that_is_not_finite_is_named():
    with pytest.raises(InputError, match="1 of 2 numbers of output 2 are not finite"):
        Raw().read([np.zeros((1, 3), np.float32), np.float32([[1, np.inf]])], WHOLE)
