"""A regulated module goes nowhere else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from uvr_core import UnsupportedRuntime
from uvr_core.intercept.hooks import Hook, InnerHook


def test_a_hook_passes_on_what_it_is_called_with_and_lets_no_copy_be_made() -> None:
    seen: list[object] = []
    module = nn.Linear(2, 2)
    module.register_forward_hook(Hook(lambda *args: seen.append(args[0])))
    module(torch.zeros(1, 2))
    assert seen == [module]
    for take in (copy.deepcopy, pickle.dumps):
        with pytest.raises(UnsupportedRuntime, match="detach first"):
            take(module)


def test_an_inner_hook_leaves_nothing_in_a_graph_but_is_asked_while_it_is_traced() -> None:
    called: list[str] = []
    module = nn.Linear(2, 2)

    def traced(module: nn.Module, args: object) -> None:
        if module.in_features != 2:
            called.append("another module")

    module.register_forward_pre_hook(InnerHook(lambda *args: called.append("eager"), traced))
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    compiled(torch.zeros(1, 2))
    assert called == []
    module(torch.zeros(1, 2))
    assert called == ["eager"]
    torch._dynamo.reset()
