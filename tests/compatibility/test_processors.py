"""Several devices, and processors that come later or hide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import diffusers
import torch
from rig import Rig, reference
from situations import Pair, Topic

topic = Topic("processors")
test_regulated_exactly = topic.regulated_exactly()
test_refused_by_name = topic.refused_by_name()
test_stock_cannot = topic.stock_cannot()
test_every_row_has_its_cases_and_every_case_its_row = topic.complete()


def distributed() -> None:
    """Two ranks, of which this process is the first, on torch's own process group for tests."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)


def context_parallel(rig: Rig) -> None:
    distributed()
    with mock.patch.object(torch.accelerator, "device_count", return_value=1):  # diffusers divides by it
        rig.transformer.enable_parallelism(config=diffusers.ContextParallelConfig(ulysses_degree=2))


topic.neither_order("context parallel", context_parallel)
topic.neither_order("context parallel without a plan", context_parallel)


@topic.case("a processor replaced after attach")
def processor_replaced(rig: Rig) -> Iterator[Pair]:
    attention = rig.transformer.transformer_blocks[0].attn
    mine = type(attention.processor)()
    yield rig.regulated_run(after=lambda r: setattr(attention, "processor", mine)), reference(rig.name)
    assert attention.processor is mine
    other = type(mine)()

    def replace(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            attention.processor = other
        return tensors

    yield rig.regulated_run(callback_on_step_end=replace), reference(rig.name)
    assert attention.processor is other


class Opaque:
    """Attention by a name that nobody knows."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, **kwargs: Any) -> Any:
        return hidden_states, encoder_hidden_states


def opaque(rig: Rig) -> None:
    rig.transformer.transformer_blocks[0].attn.processor = Opaque()


topic.neither_order("a processor that UVR cannot see through", opaque)
