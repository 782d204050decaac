"""From the host to a device without waiting for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def upload(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy of an array on a device. No host sync: CUDA copies from pinned memory when its queue comes to it.

    Never a tensor of inference mode, so that whoever writes into it can be told.
    """
    with torch.inference_mode(False):
        tensor = torch.from_numpy(np.array(array, order="C"))
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
