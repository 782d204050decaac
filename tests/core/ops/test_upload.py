"""What is uploaded is a copy that nobody else holds, and whose writes can be told."""

from __future__ import annotations

import numpy as np
import torch

from uvr_core.ops.upload import upload


def test_a_copy_goes_up_in_the_arrays_own_dtype_and_order() -> None:
    array = np.arange(6, dtype=np.int64).reshape(2, 3).T
    tensor = upload(array, torch.device("cpu"))
    assert tensor.dtype == torch.int64
    assert tensor.tolist() == [[0, 3], [1, 4], [2, 5]]
    array[0, 0] = 9
    assert tensor[0, 0] == 0


def test_writes_into_it_are_counted_in_inference_mode_too() -> None:
    with torch.inference_mode():
        tensor = upload(np.zeros(3, bool), torch.device("cpu"))
        before = tensor._version
        tensor[0] = True
    assert not tensor.is_inference()
    assert tensor._version > before
