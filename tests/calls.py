"""Attention calls under a policy, driven by hand, and the attention computed by hand that they are held against."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from driven import Driven, plan_of
from runner import make_bank
from scipy import ndimage
from torch import Tensor

from uvr_core import ConceptBank
from uvr_core.adapter import Layout
from uvr_core.engine.plan import ConceptPlan
from uvr_core.intercept.calls import AttentionCall
from uvr_core.protocols import CallInfo, Located, RowClass
from uvr_plugins.detectors import Oracle

STOCK, CORE, RING = RowClass


GRID, TEXT, REFERENCE = (4, 5), 3, 6
PATCHES = GRID[0] * GRID[1]


KEYS = TEXT + PATCHES + REFERENCE


def spans(image_at: str, output_first: bool) -> tuple[slice, slice, slice]:
    """Text, output and reference tokens on the token axis."""
    start = TEXT if image_at == "end" else 0
    text = slice(0, TEXT) if image_at == "end" else slice(KEYS - TEXT, KEYS)
    if output_first:
        return text, slice(start, start + PATCHES), slice(start + PATCHES, start + PATCHES + REFERENCE)
    return text, slice(start + REFERENCE, start + REFERENCE + PATCHES), slice(start, start + REFERENCE)


def masks() -> np.ndarray:
    found = np.zeros((3, *GRID), bool)
    found[0, 1:3, 1:3] = True
    found[2, 0, 0:2] = True
    return found


def flow(
    policy: Any, image_at: str = "end", output_first: bool = True, sigma: float = 0.9, bank: ConceptBank | None = None,
    references: tuple[tuple[int, int], ...] = ((1, REFERENCE),),
) -> tuple[Tensor, ...]:  # fmt: skip
    """One attention call through a session: (q, k, v, stock output, edited output), all (3, 2 heads, tokens, 8)."""
    generator = torch.Generator().manual_seed(11)
    q, k, v = (torch.randn(3, 2, KEYS, 8, generator=generator) * 2 for _ in range(3))
    stock = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    session = Driven([rule(policy, bank)], image_at, output_first, seeds=(4, 5, 6))
    layout = Layout(GRID, references)
    edited = forward(session, AttentionCall("a", q, k, v, stock, None, None), sigma, layout)
    return q, k, v, stock, stock if edited is None else edited


def rule(policy: Any, bank: ConceptBank | None = None, where: np.ndarray | None = None) -> ConceptPlan:
    """A plan that locates the given masks in block "a"."""
    return plan_of(bank or make_bank(), Oracle(masks() if where is None else where), policy)


def forward(session: Driven, call: AttentionCall, sigma: float, layout: Layout) -> Tensor | None:
    """One forward of a model whose only block is "a"."""
    return session.forward(call, sigma, layout)


def classes(policy: Any) -> Tensor:
    """(3, PATCHES): CORE within `margin` of the mask, RING within `ring` beyond, else STOCK."""
    result = np.zeros((3, *GRID), int)
    for sample, mask in enumerate(masks()):
        square = np.ones((3, 3), bool)
        core = ndimage.binary_dilation(mask, square, policy.margin) if policy.margin else mask
        wide = ndimage.binary_dilation(core, square, policy.ring) if policy.ring else core
        result[sample] = np.where(core, CORE, np.where(wide, RING, STOCK))
    return torch.from_numpy(result.reshape(3, PATCHES))


def restricted(q: Tensor, k: Tensor, v: Tensor, factor: Tensor) -> Tensor:
    """Attention whose weights are multiplied by factor (B, queries, keys) and normalised again, in float64."""
    weight = (q.double() @ k.double().mT * q.shape[-1] ** -0.5).softmax(-1) * factor[:, None].double()
    return weight / weight.sum(-1, keepdim=True) @ v.double()


LAYOUTS = [(image_at, first) for image_at in ("start", "end") for first in (True, False)]


def text_call(seed: int, text: int, image_at: str, batch: int = 3, masked: str = "none") -> AttentionCall:
    """A call with `text` text tokens; masked: hides some of them per sample ("keys"), or per query as well ("full")."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, 2, text + PATCHES + REFERENCE, 8, generator=generator) for _ in range(3))
    mask = None
    if masked != "none":
        shape = (batch, 1, 1 if masked == "keys" else q.shape[2], q.shape[2])
        mask = torch.rand(shape, generator=generator) > 0.3
        image = slice(0, -text) if image_at == "start" else slice(text, None)
        mask[..., image] = True if masked == "keys" else mask[..., image]
        mask[..., text if image_at == "end" else 0] = True
    output = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    return AttentionCall("a", q, k, v, output, mask, None)


LAYOUT = Layout(GRID, ((1, REFERENCE),))


def two_masks() -> tuple[np.ndarray, np.ndarray]:
    """Of two concepts in the first sample, overlapping; the second alone in the third sample."""
    one, two = np.zeros((3, *GRID), bool), np.zeros((3, *GRID), bool)
    one[0, 0:2, 0:2] = True
    two[0, 1:3, 1:3] = two[2, 3, 3] = True
    return one, two


def together(*rules: ConceptPlan) -> tuple[AttentionCall, Tensor, Driven]:
    """One call through a session of several rules."""
    call = text_call(21, TEXT, "end")
    session = Driven(list(rules), seeds=(4, 5, 6))
    edited = forward(session, call, 0.9, LAYOUT)
    return call, call.output if edited is None else edited, session


def located(sigma: float = 0.9) -> Located:
    core = torch.tensor([[True, False, True, False]])
    ring = torch.tensor([[True, True, False, False]])  # overlaps the core, which wins
    return Located(core, ring, (2, 2), sigma, 0)


def info(contrast: Tensor | None = None, source: Tensor | None = None, reference: int = 1) -> CallInfo:
    def unwanted() -> Tensor:
        raise AssertionError("the contrast was computed for a policy that does not need it")

    return CallInfo(
        "x", 3, reference, unwanted if contrast is None else lambda: contrast,
        unwanted if source is None else lambda: source,
    )  # fmt: skip
