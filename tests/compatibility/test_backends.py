"""Attention by another backend of diffusers."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from rig import Rig
from situations import Topic, plain

topic = Topic("backends")
test_regulated_exactly = topic.regulated_exactly()
test_refused_by_name = topic.refused_by_name()
test_stock_cannot = topic.stock_cannot()
test_every_row_has_its_cases_and_every_case_its_row = topic.complete()


def backend(name: str) -> Callable[[Rig], None]:
    return lambda rig: rig.transformer.set_attention_backend(name)


for each in ("native", "_native_math", "_native_flash", "flex"):
    topic.both_orders(f"attention backend {each}", backend(each), plain)
topic.neither_order("attention backend _native_flash, masked attention", backend("_native_flash"))
topic.neither_order("attention backend that is not installed", backend("flash"))


class Backend(enum.StrEnum):
    SPARSE = "sparse-2027"


def sparse(query: Any, key: Any, value: Any, attn_mask: Any = None, scale: float | None = None) -> Any:
    """Every query attends to its own key: one head-dim vector per token, as from any backend."""
    return value


def unknown_backend(rig: Rig) -> None:
    _AttentionBackendRegistry.register(Backend.SPARSE)(sparse)
    _AttentionBackendRegistry.set_active_backend(Backend.SPARSE)


topic.neither_order("attention backend that UVR does not know", unknown_backend)
