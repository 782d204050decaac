"""What detectors, policies and readers may ask of a joint call. Pure; B rows, N output patches, T text tokens."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
import torch

from ..concepts import ConceptBank
from ..intercept.calls import JointCall
from ..ops.attn_mask import mask_rows
from ..ops.grids import facing
from ..ops.masks import Mask, thinned
from ..ops.mass import flow_contrast, mass_on
from ..ops.rows import Rows, rows_of, take_rows
from ..protocols import Direction
from ..tokens import Role

Reader = Callable[[JointCall], None]
"""Called with the joint calls of the rows that follow the prompt, before anything is changed in them."""

# A flow contrast is measured on at most so many patches of the core and of the rest: on all of them it would cost a
# second attention call. See docs/design/measurements.md.
_COMPARED = (256, 512)


@attrs.frozen(eq=False)
class Compared:
    """The patches on which a flow contrast is measured, and on which side of it they are, (B, R) bool.

    `rows` is None where all N patches stand, for grids so small that none is left out.
    """

    rows: Rows | None
    core: torch.Tensor
    rest: torch.Tensor

    @classmethod
    def of(cls, core: Mask, ring: Mask, device: torch.device) -> Compared:
        """From the masks (B, H, W) of the located patches and of the ring around them."""
        whole = (core, ~(core | ring))
        some = [
            np.stack([thinned(sample, count) for sample in side]) for side, count in zip(whole, _COMPARED, strict=True)
        ]
        inside, rest = (torch.from_numpy(side.reshape(len(side), -1)).to(device) for side in some)
        if all(np.array_equal(a, b) for a, b in zip(whole, some, strict=True)):
            return cls(None, inside, rest)
        rows = rows_of(inside | rest, (some[0] | some[1]).sum((1, 2)).tolist())
        return cls(rows, inside.gather(1, rows.index) & rows.valid, rest.gather(1, rows.index) & rows.valid)


def features(call: JointCall) -> torch.Tensor:
    """(B, N, C) float32, or (B, N, 2C) where there are reference tokens among the queries; see Detector.scores."""
    outputs = _tokens(call, call.queries.output)
    if not call.queries.count(
        Role.REFERENCE
    ):  # a copy, where heads and dtype let it be a view: nobody else writes into the model
        return (
            outputs.clone()
            if outputs.untyped_storage().data_ptr() == call.output.untyped_storage().data_ptr()
            else outputs
        )
    sizes = [height * width for height, width in call.layout.references]
    sources = zip(_tokens(call, call.queries.reference).split(sizes, 1), call.layout.references, strict=True)
    faced = [facing(source, grid, call.layout.grid) for source, grid in sources]
    return torch.cat([outputs, torch.stack(faced).mean(0)], -1)


def _tokens(call: JointCall, span: slice) -> torch.Tensor:
    """(B, tokens, C) float32: the attention output of a span, heads concatenated."""
    return call.output[:, :, span].transpose(1, 2).flatten(2).float()


def text_rows(call: JointCall) -> torch.Tensor:
    """(B, T, C) float32: the attention output of the text tokens, for calls whose queries include them."""
    return _tokens(call, call.queries.text)


def word_mass(call: JointCall, words: torch.Tensor) -> torch.Tensor:
    """How much each output patch attends to some text tokens. One fused call.

    Args:
        words: (B, T) bool, which ones.

    Returns:
        (B, N) float32 in 0..1, mean over heads.
    """
    weight = torch.zeros(*words.shape[:1], call.keys.tokens, 1, dtype=call.query.dtype, device=call.query.device)
    weight[:, call.keys.text, 0] = words.to(weight)
    query, mask = _output_queries(call)
    mass = mass_on(query, call.key, weight, attn_mask=mask, scale=call.scale)
    return mass[..., 0].mean(1, dtype=torch.float32)


def _output_queries(call: JointCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Queries of the output patches, and what the mask says of them."""
    span, mask = call.queries.output, call.mask
    return call.query[:, :, span], mask if mask is None or mask.shape[2] == 1 else mask[:, :, span]


def direction(call: JointCall, bank: ConceptBank) -> Direction | None:
    """The concept's linear score in this block; see CallInfo.direction."""
    width, device = call.query.shape[1] * call.query.shape[3], call.query.device
    offset = torch.zeros(call.query.shape[0], call.layout.output, device=device)
    if f"direction/{call.tap}" not in bank.tensors:
        if f"anchors/{call.tap}" not in bank.tensors:
            return None
        return Direction(bank.tensor("anchors", call.tap).to(device, torch.float32).mean(0), offset)
    index = bank.bin_at(call.forward.sigma)
    vector = bank.tensor("direction", call.tap)[index].to(device, torch.float32)
    offset += float(bank.tensor("offset", call.tap)[index])
    if len(vector) > width:
        if not call.queries.count(Role.REFERENCE):
            raise bank.without_sources()
        offset += features(call)[..., width:] @ vector[width:]
    return Direction(vector[:width], offset)


def contrast(call: JointCall, compared: Compared, *, references: bool = True) -> torch.Tensor:
    """(B, Sk): the flow contrast of every text and reference token, or of the text alone; 0 elsewhere."""
    layout, keys = call.layout, call.keys.tokens
    measured = torch.ones(len(compared.core), keys, dtype=torch.bool, device=call.query.device)
    measured[:, call.keys.output] = measured[:, call.keys.padding] = False
    if not references:
        measured[:, call.keys.reference] = False
    left_out = layout.padding + (layout.output if references else layout.image)
    query, mask = _output_queries(call)
    if compared.rows is not None:
        query = take_rows(query, compared.rows)
        mask = None if mask is None else mask_rows(mask, compared.rows.index)
    return flow_contrast(
        query,
        call.key,
        compared.core,
        compared.rest,
        measured,
        key_counts=[keys - left_out] * len(measured),
        attn_mask=mask,
        scale=call.scale,
    )
