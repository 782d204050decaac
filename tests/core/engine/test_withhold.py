"""Images that stay back are replaced in every form in which pipelines return images."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from uvr_core import UnsafeContent
from uvr_core.engine.withhold import Refusal, without_refused

REFUSALS = {1: Refusal("x", 3, "a placeholder")}


@pytest.mark.parametrize("images", [["a", "b", "c"], np.arange(3), torch.arange(3)], ids=["list", "array", "tensor"])
def test_the_refused_image_alone_is_replaced(images: object) -> None:
    for result in (SimpleNamespace(images=images), (images, "more"), images):
        kept = without_refused(result, REFUSALS, 3, 3)
        got = kept[0] if isinstance(kept, tuple) else getattr(kept, "images", kept)
        assert [got[0], got[2]] == [images[0], images[2]]
        assert got[1] == "a placeholder"
        assert not isinstance(kept, tuple) or kept[1] == "more"


def test_without_a_refusal_the_result_is_the_same_object() -> None:
    result = SimpleNamespace(images=[1])
    assert without_refused(result, {}, 1, 0) is result


@pytest.mark.parametrize(
    "result",
    [
        SimpleNamespace(images=[1, 2]),
        SimpleNamespace(latents=[1, 2, 3]),
        ([1],),
        SimpleNamespace(images=[1, 2, 3], values={"latents": [1, 2, 3]}),  # as the state of a modular pipeline
    ],
)
def test_a_result_that_does_not_say_which_is_which_is_withheld_whole(result: object) -> None:
    with pytest.raises(UnsafeContent, match="1 of 3 images are refused") as caught:
        without_refused(result, REFUSALS, 3, 7)
    assert (caught.value.concept, caught.value.samples, caught.value.step) == ("x", (1,), 7)
