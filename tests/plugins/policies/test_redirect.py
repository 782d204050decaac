"""redirect: text of the unconditional part in the place of the prompt's, against attention computed by hand."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from calls import LAYOUT, PATCHES, REFERENCE, STOCK, classes, forward, rule, text_call
from driven import Driven
from torch import Tensor

from uvr_core import UVRError
from uvr_core.intercept.calls import AttentionCall
from uvr_plugins.policies import Block, Redirect


def joined(call: AttentionCall, other: AttentionCall | None, image_at: str) -> tuple[Tensor, Tensor, Tensor]:
    """By hand: keys, values and additive mask (B, 1, N, keys) of the output rows, text first."""
    image = PATCHES + REFERENCE
    parts = []
    for source, of_text in ((other, True), (call, False)):
        if source is None:
            continue
        total = source.key.shape[2]
        text = slice(image, total) if image_at == "start" else slice(0, total - image)
        rest = slice(0, image) if image_at == "start" else slice(total - image, total)
        keys = text if of_text else rest
        rows = slice(rest.start, rest.start + PATCHES)
        mask = torch.ones(len(source.query), 1, total, total, dtype=torch.bool)
        if source.attn_mask is not None:
            mask = source.attn_mask.expand(-1, 1, total, total)
        bias = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)[:, :, rows, keys]
        parts.append((source.key[:, :, keys].double(), source.value[:, :, keys].double(), bias))
    keys_, values, bias = zip(*parts, strict=True)
    return torch.cat(keys_, 2), torch.cat(values, 2), torch.cat(bias, 3)


def assert_redirected(
    call: AttentionCall, edited: Tensor | None, other: AttentionCall | None, image_at: str, policy: Any
) -> None:
    """Located rows equal softmax attention over the image keys and the other call's text; the rest is stock."""
    assert edited is not None
    start = 0 if image_at == "start" else call.query.shape[2] - PATCHES - REFERENCE
    output = slice(start, start + PATCHES)
    k, v, bias = joined(call, other, image_at)
    expected = (call.query[:, :, output].double() @ k.mT * 8**-0.5 + bias).softmax(-1) @ v
    rows = classes(policy) != STOCK
    error = (edited[:, :, output].double() - expected).abs().amax((1, 3))
    assert error[rows].max() < 2e-6
    changed = torch.zeros(call.query.shape[0], call.query.shape[2], dtype=torch.bool)
    changed[:, output] = rows
    assert torch.equal((edited != call.output).any(-1).any(1), changed)


@pytest.mark.parametrize("masked", ["none", "keys", "full"])
@pytest.mark.parametrize("image_at", ["start", "end"])
@pytest.mark.parametrize("order", ["cond first", "uncond first", "unnamed"])
def test_redirect_sees_the_text_of_the_last_unconditional_pass(image_at: str, masked: str, order: str) -> None:
    policy = Redirect()
    session = Driven([rule(policy)], image_at)
    conds = [text_call(s, 5, image_at, masked=masked) for s in (1, 2)]
    unconds = [text_call(s, 3, image_at, masked=masked) for s in (3, 4)]
    edits = []
    for step, sigma in enumerate((1.0, 0.5)):
        passes = [("cond", conds[step]), ("uncond", unconds[step])]
        for name, call in passes[::-1] if order == "uncond first" else passes:
            session.name = None if order == "unnamed" else name
            edited = forward(session, call, sigma, LAYOUT)
            if name == "cond":
                edits.append(edited)
            else:
                assert edited is None
    sources = unconds if order == "uncond first" else [None, unconds[0]]
    for call, edited, other in zip(conds, edits, sources, strict=True):
        assert_redirected(call, edited, other, image_at, policy)
    held = session.regulation._uncond._texts["a"]
    for tensor in (held.key, held.value):
        assert tensor.shape[2] == 3
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 4, "nothing but the text is kept alive"


@pytest.mark.parametrize("masked", ["none", "keys", "full"])
@pytest.mark.parametrize("halves", ["uc", "cu"])
@pytest.mark.parametrize("image_at", ["start", "end"])
def test_redirect_sees_the_other_half_of_the_batch(image_at: str, halves: str, masked: str) -> None:
    policy = Redirect()
    session = Driven([rule(policy)], image_at, guidance=f"batched:{halves}", batched=True)
    whole = text_call(5, 4, image_at, batch=6, masked=masked)
    edited = forward(session, whole, 1.0, LAYOUT)
    assert edited is not None
    first, second = (
        attrs.evolve(whole, **{n: getattr(whole, n)[part] for n in ("query", "key", "value", "output")},
                     attn_mask=None if whole.attn_mask is None else whole.attn_mask[part])
        for part in (slice(0, 3), slice(3, 6))
    )  # fmt: skip
    cond, uncond, own = (second, first, slice(3, 6)) if halves == "uc" else (first, second, slice(0, 3))
    assert_redirected(cond, edited[own], uncond, image_at, policy)
    rest = slice(0, 3) if halves == "uc" else slice(3, 6)
    assert torch.equal(edited[rest], whole.output[rest])


def test_redirect_uses_one_negative_prompt_for_all_samples_and_refuses_two_for_three() -> None:
    policy = Redirect()
    call, one, two = text_call(1, 5, "end"), text_call(2, 4, "end", batch=1), text_call(2, 4, "end", batch=2)
    session = Driven([rule(policy)])
    for other in (one, two):
        forward(session, call, 1.0, LAYOUT)
        forward(session, other, 1.0, LAYOUT)
        if other is one:
            same = attrs.evolve(one, **{n: getattr(one, n).expand(3, -1, -1, -1) for n in ("query", "key", "value")})
            assert_redirected(call, forward(session, call, 0.5, LAYOUT), same, "end", policy)
            session = Driven([rule(policy)])
        else:
            with pytest.raises(UVRError, match="unconditional pass holds 2 samples and the conditional one 3"):
                forward(session, call, 0.5, LAYOUT)


@pytest.mark.parametrize(("guidance", "every_pass", "step"), [
    ("single", False, 0), ("batched:uc", False, 0), ("batched:uc", True, 0), ("two_pass", False, 1),
    ("two_pass", True, 1),
])  # fmt: skip
def test_redirect_without_guidance_raises_as_soon_as_that_is_known(guidance: str, every_pass: bool, step: int) -> None:
    policy, call = Redirect(), text_call(1, 5, "end")
    session = Driven([rule(policy)], bare=every_pass, guidance=guidance)
    if step:
        assert_redirected(call, forward(session, call, 1.0, LAYOUT), None, "end", policy)  # the text is cut
    with pytest.raises(UVRError, match=rf"none before a at step {step}: turn guidance on"):
        forward(session, call, 0.5, LAYOUT)


def test_nothing_is_remembered_for_policies_that_do_not_ask() -> None:
    session = Driven([rule(Block())])
    for _ in range(2):
        forward(session, text_call(1, 5, "end"), 1.0, LAYOUT)
    assert session.run.passes == [2]
    assert not session.regulation._uncond._texts
