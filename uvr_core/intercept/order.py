"""Tokens in the adapter's order: gathered before a joint call is read or edited, scattered after."""

from __future__ import annotations

import attrs
import torch

from ..errors import AdapterMismatch
from ..ops.attn_mask import as_4d, mask_keys, mask_rows
from .calls import AttentionCall
from .ledger import Forward


def in_order(call: AttentionCall, forward: Forward) -> AttentionCall:
    """Copies of a joint call's tensors, every axis in the order that the adapter declares.

    Raises:
        AdapterMismatch: what the layout gives is no order of these tokens.
    """
    rows, columns = (_index(call, forward, tensor.shape[2]) for tensor in (call.query, call.key))
    mask = call.attn_mask
    if mask is not None:
        mask = mask_rows(mask_keys(as_4d(mask, call.query, call.key), columns), rows)
    return attrs.evolve(
        call,
        query=_gathered(call.query, rows),
        key=_gathered(call.key, columns),
        value=_gathered(call.value, columns),
        output=_gathered(call.output, rows),
        attn_mask=mask,
    )


def put_back(output: torch.Tensor, call: AttentionCall, forward: Forward) -> torch.Tensor:
    """An output (B, H, Sq, D) in the adapter's order, in that of the model's call."""
    return _gathered(output, _index(call, forward, output.shape[2]).argsort(1))


def _gathered(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return tensor.gather(2, index[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3]))


def _index(call: AttentionCall, forward: Forward, tokens: int) -> torch.Tensor:
    """(B, tokens), on the call's device; the layout is asked once for each number of tokens in a forward."""
    if tokens not in forward.orders:
        order, batch = forward.layout.order, len(call.query)
        assert order is not None
        index = order(tokens)
        every = torch.arange(tokens, device=index.device)
        if index.shape != (batch, tokens) or not torch.equal(index.sort(1).values, every.expand(batch, -1)):
            raise AdapterMismatch(
                f"{call.path}: the layout's order of {tokens} tokens is no permutation for each of {batch} samples; "
                f"expected ({batch}, {tokens}), got {tuple(index.shape)}: {index.tolist()!s:.80}"
            )
        forward.orders[tokens] = index.to(call.query.device)
    return forward.orders[tokens]
