"""The one place that makes torchvision importable beside a CPU-only torch.

torchvision's wheel from PyPI is built for CUDA. Beside a CPU build of torch its compiled operators do not load, and the
import dies on ``operator torchvision::nms does not exist``: Python code of torchvision registers fake kernels for two
operators that nobody declared. With the two schemas declared, the import works, and with it everything that needs no
compiled operator: data sets, transforms, classification models. Nothing is faked: an operator without a kernel still
raises torchvision's own error when it is called.
"""

import importlib
import sys
from types import ModuleType

import torch

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
UNDECLARED = ("nms", "qnms")

_declared: list[torch.library.Library] = []  # the schemas live as long as their Library


def import_torchvision() -> ModuleType:
    """Import torchvision, with its two missing schemas declared where its own operators did not load.

    Returns
    -------
    ModuleType
        ``torchvision``.

    Raises
    ------
    RuntimeError
        If the import fails for another reason, as it came from torchvision.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # left behind half-initialized by the import that failed
    if not _declared:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in UNDECLARED:
            library.define(name + SCHEMA)
        _declared.append(library)
    return importlib.import_module("torchvision")
