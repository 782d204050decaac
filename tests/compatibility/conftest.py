"""The equation, checked on every attention call that is edited; and a process that is left as it was found."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from rig import MASK, PATCHES, PIPELINES, reference

from uvr_core.adapter import Adapter, Layout
from uvr_core.intercept import forwards
from uvr_core.intercept.calls import AttentionCall
from uvr_core.intercept.intervention import Intervention


@attrs.define
class Witness:
    """Checks every attention call that was edited; counts them."""

    edited: int = 0
    worst: float = 0.0

    def check(
        self, layout: Layout, adapter: Adapter, call: AttentionCall, stock: torch.Tensor, edited: torch.Tensor
    ) -> None:
        if torch.equal(edited, stock):
            return
        keys, queries = call.key.shape[2], call.query.shape[2]
        assert layout.output == PATCHES
        assert adapter.output_first
        text = slice(layout.image, keys) if adapter.image_at == "start" else slice(0, keys - layout.image)
        first = 0 if adapter.image_at == "start" else queries - layout.image
        rows = first + MASK[1].flatten().nonzero().flatten()
        q, k, v = call.query[-1][:, rows].double(), call.key[-1][:, text].double(), call.value[-1][:, text].double()
        logits = q @ k.mT * (q.shape[-1] ** -0.5 if call.scale is None else call.scale)
        if call.attn_mask is not None:
            assert call.attn_mask.dtype == torch.bool
            keep = call.attn_mask.expand(len(call.query), 1, queries, keys)[-1][:, rows][..., text]
            logits = logits.masked_fill(~keep, -torch.inf)
        error = (edited[-1][:, rows].double() - logits.softmax(-1) @ v).abs().max()
        others = torch.ones(edited.shape[0], queries, dtype=torch.bool)
        others[-1, rows] = False
        assert torch.equal(edited.transpose(1, 2)[others], stock.transpose(1, 2)[others])
        half = 4 * torch.finfo(edited.dtype).eps * float(v.abs().max())  # weights and sums are rounded to the dtype
        assert error < (5e-6 if edited.dtype == torch.float32 else half)
        self.edited, self.worst = self.edited + 1, max(self.worst, float(error))


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> Witness:
    """Sees what is made of every call of every run."""
    witness, stock = Witness(), forwards.intervene

    def intervene(call: AttentionCall, intervention: Intervention, adapter: Adapter) -> torch.Tensor | None:
        output, forward = call.output.clone(), intervention.run.forward
        edited = stock(call, intervention, adapter)
        if forward is not None:
            witness.check(forward.layout, adapter, call, output, call.output if edited is None else edited)
        return edited

    monkeypatch.setattr(forwards, "intervene", intervene)
    return witness


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """One thread; what diffusers and torch keep for the process is put back."""
    registry, threads = _AttentionBackendRegistry, torch.get_num_threads()
    active, tables = registry._active_backend, ("_backends", "_constraints", "_supported_arg_names")
    kept = {table: dict(getattr(registry, table)) for table in tables}
    torch.set_num_threads(1)
    for name in PIPELINES:
        reference(name)
    yield
    torch.set_num_threads(threads)
    registry._active_backend = active
    for table, entries in kept.items():
        getattr(registry, table).clear()
        getattr(registry, table).update(entries)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    torch._dynamo.reset()
