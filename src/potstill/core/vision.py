"""The optional library torchvision, also beside a torch that its wheel does not fit."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch

from potstill.core.errors import InputError


@cache
def _schemas() -> torch.library.Library:
    """Declare the operators whose absence makes `import torchvision` fail; kept in the process."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def import_torchvision() -> ModuleType:
    """Return torchvision, with its data sets and models.

    The wheel on PyPI is built for the CUDA build of torch; beside the CPU build its import fails
    with "operator torchvision::nms does not exist". Only then the two schemas are declared first.

    Raises:
        InputError: if torchvision is not installed, or fits no torch of this kind.
    """
    try:
        try:
            import torchvision
        except RuntimeError:
            _schemas()
            import torchvision
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "torchvision":
            raise
        raise InputError("This needs torchvision: pip install 'potstill[nets]'.") from None
    except (ImportError, RuntimeError, OSError) as error:
        raise InputError(
            f"The installed torchvision does not fit torch {torch.__version__} ({error})."
        ) from error
    return torchvision
