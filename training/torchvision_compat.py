"""Import torchvision beside a torch that it was not compiled for.

Where the two builds differ (a CPU torch beside the registry's torchvision; most Jetson installs), torchvision's
compiled operators fail to load and `import torchvision` ends with `operator torchvision::nms does not exist`.
Declaring the two operators that it registers Python code for is enough for models, datasets and transforms.
Every import of torchvision in this project goes through this module:
`from training.torchvision_compat import torchvision`.
"""

from __future__ import annotations

import torch

_declared: list[torch.library.Library] = []  # a Library that is collected takes its operators with it


def _declare_missing_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in (
        ("nms", "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
        ("qnms", "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
    ):
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _declared.append(library)


try:
    import torchvision
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    import sys

    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    _declare_missing_operators()
    import torchvision

__all__ = ["torchvision"]
