"""The one operation that torch.compile sees of a tap: it runs Python whenever the graph comes to it.

It changes the attention's output in place, depends on nothing but tensors, and so is the same in every layer, step and
prompt: a graph that holds it is compiled once. Whose call it is, the forward knows that is open in this thread, by the
order of calls.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable

import torch

from ..errors import UnsupportedRuntime
from .calls import AttentionCall
from .runtime import OUTSIDE

Observer = Callable[[AttentionCall], torch.Tensor | None]

observing: contextvars.ContextVar[Observer | None] = contextvars.ContextVar("uvr_observing", default=None)
"""What is shown the attention calls of this thread's compiled code, while a regulated transformer runs."""

# Inductor runs what is tagged so outside of CUDA graphs, which would play back kernels and no Python.
_TAGS = tuple(tag for tag in (getattr(torch.Tag, "cudagraph_unsafe", None),) if tag is not None)


@torch.library.custom_op(
    "uvr::tap",
    mutates_args={"out"},
    schema="(Tensor query, Tensor key, Tensor value, Tensor(a!) out, Tensor? attn_mask, float? scale) -> ()",
    tags=_TAGS,
)
def tap(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    attn_mask: torch.Tensor | None,
    scale: float | None,
) -> None:
    """Show an attention call, and put what becomes of it into `out`. All (batch, heads, tokens, dim).

    Raises:
        UnsupportedRuntime: no regulated transformer runs in this thread.
    """
    observer = observing.get()
    if observer is None:
        raise UnsupportedRuntime(OUTSIDE.format("compiled attention"))
    edited = observer(AttentionCall("", query, key, value, out, attn_mask, scale))
    if edited is not None:
        out.copy_(edited)


@tap.register_fake
def _nothing(*args: object) -> None:
    return None
