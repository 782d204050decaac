"""The unconditional part's text: copied, expanded to the batch, and missed as soon as that is known."""

from __future__ import annotations

import pytest
import torch
from driven import joint

from uvr_core import UVRError
from uvr_core.adapter import Layout
from uvr_core.engine.uncond import UncondText
from uvr_core.intercept.calls import AttentionCall, JointCall

LAYOUT = Layout((2, 2))


def call(batch: int, text: int, heads: int = 2) -> JointCall:
    query = torch.randn(batch, 2, text + 4, 8)
    key, value = (torch.randn(batch, heads, text + 4, 8) for _ in range(2))
    return joint(AttentionCall("a", query, key, value, query, None, None), LAYOUT)


def test_the_text_alone_is_kept_and_serves_every_image() -> None:
    uncond, other = UncondText("two_pass"), call(1, 3)
    uncond.remember(other)
    text = uncond.at(call(2, 5))
    assert text is not None
    assert text.key.shape == (2, 2, 3, 8)
    assert torch.equal(text.value[1], other.value[0, :, :3])
    kept = uncond._texts["a"].key
    assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


def test_keys_of_grouped_queries_are_repeated() -> None:
    uncond, other = UncondText("batched:uc"), call(2, 3, heads=1)
    uncond.remember(other)
    text = uncond.at(call(2, 3, heads=1))
    assert text is not None
    assert torch.equal(text.key[:, 1], other.grouped_key[:, 0, :3])


def test_in_the_first_step_of_two_passes_it_may_still_come() -> None:
    assert UncondText("two_pass").at(call(1, 3)) is None
    with pytest.raises(UVRError, match="none before a at step 0: turn guidance on"):
        UncondText("batched:uc").at(call(1, 3))


def test_another_number_of_images_is_refused() -> None:
    uncond = UncondText("two_pass")
    uncond.remember(call(2, 3))
    with pytest.raises(UVRError, match="unconditional pass holds 2 samples and the conditional one 3"):
        uncond.at(call(3, 3))
