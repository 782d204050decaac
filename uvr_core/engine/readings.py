"""What detectors, policies and readers may ask of a joint call. Pure; B rows, N output patches, T text tokens."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
import torch

from ..concepts import ConceptBank
from ..errors import UVRError
from ..intercept.calls import JointCall
from ..ops.attn_mask import mask_rows
from ..ops.grids import around, facing
from ..ops.masks import Mask, thinned
from ..ops.mass import contrast_share, flow_contrast, indicator, mass_on
from ..ops.rows import Rows, rows_on, take_rows
from ..ops.upload import upload
from ..protocols import Direction
from ..tokens import Role

Reader = Callable[[JointCall], None]
"""Called with the joint calls of the rows that follow the prompt, before anything is changed in them."""

Directions = dict[tuple[str, int], tuple[torch.Tensor, float]]
"""By block and bin of noise levels: a bank's vector on the device, and its offset."""

# A flow contrast is measured on at most so many patches of the core and of the rest: on all of them it would cost a
# second attention call. See docs/design/measurements.md.
_COMPARED = (256, 512)


@attrs.frozen(eq=False, slots=False)
class Compared:
    """The patches on which a flow contrast is measured, R of each of B images.

    Attributes:
        rows: where they stand among the N output patches; None: all N are taken, on grids so small that none is left
            out.
        share: (B, 2, R), see `contrast_share`.
        columns: what `indicator` gave, with references or without, by number of keys, padding and dtype.
    """

    rows: Rows | None
    share: torch.Tensor
    columns: dict[tuple[bool, int, int, torch.dtype], torch.Tensor] = attrs.field(factory=dict, init=False)

    @classmethod
    def of(cls, core: Mask, ring: Mask, device: torch.device) -> Compared:
        """From the masks (B, H, W) of the located patches and of the ring around them. No host sync."""
        whole = (core, ~(core | ring))
        some = [
            np.stack([thinned(sample, count) for sample in side]).reshape(len(core), -1)
            for side, count in zip(whole, _COMPARED, strict=True)
        ]
        share = contrast_share(*map(torch.from_numpy, some)).numpy()
        if all(np.array_equal(a.reshape(b.shape), b) for a, b in zip(whole, some, strict=True)):
            return cls(None, upload(share, device))
        rows = rows_on(some[0] | some[1], device)
        at_rows = np.zeros((*share.shape[:2], rows.width), np.float32)
        for sample, patches in enumerate(some[0] | some[1]):
            at_rows[sample, :, : rows.counts[sample]] = share[sample][:, patches]
        return cls(rows, upload(at_rows, device))


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


def source_features(call: JointCall) -> torch.Tensor:
    """(B, N, 2C) float32: of the reference token facing each output patch its attention output, and the mean of the
    3x3 outputs around it; the mean over several references.

    Raises:
        UVRError: there are no reference tokens among the queries.
    """
    if not call.queries.count(Role.REFERENCE):
        raise UVRError(
            f"{call.tap}: no reference tokens among the queries of this call: nothing tells what the source shows"
        )
    sizes = [height * width for height, width in call.layout.references]
    sources = zip(_tokens(call, call.queries.reference).split(sizes, 1), call.layout.references, strict=True)
    both = [facing(torch.cat([each, around(each, grid)], -1), grid, call.layout.grid) for each, grid in sources]
    return torch.stack(both).mean(0)


def _tokens(call: JointCall, span: slice) -> torch.Tensor:
    """(B, tokens, C) float32: the attention output of a span, heads concatenated."""
    return call.output[:, :, span].transpose(1, 2).flatten(2).float()


def text_rows(call: JointCall) -> torch.Tensor:
    """(B, T, C) float32: the attention output of the text tokens, for calls whose queries include them."""
    return _tokens(call, call.queries.text)


def text_values(call: JointCall) -> torch.Tensor:
    """(B, T, C) float32: the values of the text tokens, heads concatenated. No rotary embedding turns them."""
    return call.value[:, :, call.keys.text].transpose(1, 2).flatten(2).float()


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


def direction(call: JointCall, bank: ConceptBank, kept: Directions) -> Direction | None:
    """The concept's linear score in this block; see CallInfo.direction. No host sync once a vector is kept."""
    width, device = call.query.shape[1] * call.query.shape[3], call.query.device
    known = f"direction/{call.tap}" in bank.tensors
    if not known and f"anchors/{call.tap}" not in bank.tensors:
        return None
    index = bank.bin_at(call.forward.sigma) if known else 0
    if (call.tap, index) not in kept:
        if known:
            vector, constant = bank.tensor("direction", call.tap)[index], float(bank.tensor("offset", call.tap)[index])
        else:
            vector, constant = bank.tensor("anchors", call.tap).to(torch.float32).mean(0), 0.0
        kept[call.tap, index] = upload(vector.to("cpu", torch.float32).numpy(), device), constant
    vector, constant = kept[call.tap, index]
    offset = torch.full((call.query.shape[0], call.layout.output), constant, device=device)
    if len(vector) > width:
        if not call.queries.count(Role.REFERENCE):
            raise bank.without_sources()
        offset += features(call)[..., width:] @ vector[width:]
    return Direction(vector[:width], offset)


def contrast(call: JointCall, compared: Compared, *, references: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) and (B, R): the flow contrast of every text and of every reference token. No host sync.

    `references` False: of the text alone, R = 0.
    """
    spans = (call.keys.text, call.keys.reference) if references else (call.keys.text,)
    which = (references, call.keys.tokens, call.layout.padding, call.query.dtype)
    if which not in compared.columns:
        compared.columns[which] = indicator(spans, call.keys.tokens, call.query.shape[3], call.query)
    query, mask = _output_queries(call)
    if compared.rows is not None:
        query = take_rows(query, compared.rows)
        mask = None if mask is None else mask_rows(mask, compared.rows.index)
    together = flow_contrast(
        query,
        call.key,
        compared.share,
        spans,
        chosen_keys=compared.columns[which],
        attn_mask=mask,
        scale=call.scale,
    )
    text = call.keys.count(Role.TEXT)
    return together[:, :text], together[:, text:]
