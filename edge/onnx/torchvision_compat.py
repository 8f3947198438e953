"""Import torchvision with a torch that it was not compiled for, as on most Jetsons, where its operators fail to load.

Declaring the two that it registers Python code for is enough for models, datasets and transforms.
Upstream: https://github.com/pytorch/pytorch/issues/122494. Delete when `import torchvision` cannot fail that way.
"""

import sys

import torch

_declared: list[torch.library.Library] = []  # a Library that is collected takes its operators with it

try:
    import torchvision  # type: ignore[import-untyped]
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _declared.append(library)
    import torchvision

__all__ = ["torchvision"]
