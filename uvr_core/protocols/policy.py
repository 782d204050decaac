"""What a policy is: located patches in, an edit out, a pure function of tensors; and what it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import attrs
import torch

from .edit import CORE, RING, FlowEdit


@attrs.frozen
class MaskOptions:
    """How a policy wants located patches shaped.

    Attributes:
        ring: patches by which the core is ringed.
        margin: patches by which it is widened first.
        mass_ratio: share of the score mass that the kept components cover, 0..1.
    """

    ring: int = 1
    margin: int = 0
    mass_ratio: float = 1.0


@attrs.frozen(eq=False)
class Located:
    """Where a concept was located so far, for the whole batch.

    Attributes:
        core, ring: (B, N) bool.
        grid: (H, W), row-major.
        sigma: noise level of this step.
        step: scheduler step, 0 first.
        window: (high, low) noise levels in which the concept is located.
        from_source: (B,) bool, where there are reference tokens: True unless the detector can tell that an image's
            source does not show the concept, so that the instruction brings it. None without reference tokens.
        concept: the concept's name.
    """

    core: torch.Tensor
    ring: torch.Tensor
    grid: tuple[int, int]
    sigma: float
    step: int
    window: tuple[float, float] = (1.0, 0.0)
    from_source: torch.Tensor | None = None
    concept: str = ""


@attrs.frozen(eq=False)
class Direction:
    """A concept's linear score in one block at one noise level: s(i) = O(i) . vector + offset(i).

    Attributes:
        vector: (C,) float32, the bank's whitened direction for the block, or the mean anchor if it has none.
        offset: (B, N) float32, of each output patch: the bank's offset (0 for the mean anchor) and, where the
            direction is 2C wide, the product of its second half with the facing reference token's output.
    """

    vector: torch.Tensor
    offset: torch.Tensor


@attrs.frozen(eq=False)
class CallInfo:
    """What a policy may look at in one attention call.

    Attributes:
        path: the block.
        text: number of text tokens among the keys; reference: number of reference tokens.
        text_contrast: () -> (B, text): attention mass that each text token receives from the located rows, per
            row, over what it receives from the other output rows. Computed only when called; on large grids from
            256 located and 512 other patches, evenly spread.
        reference_contrast: () -> (B, reference): the same for reference tokens.
        direction: () -> the concept's Direction in this block, or None: the bank has no tensors for it. Raises
            ConceptMismatch if the direction needs reference tokens and the call has none.
    """

    path: str
    text: int
    reference: int
    text_contrast: Callable[[], torch.Tensor]
    reference_contrast: Callable[[], torch.Tensor] = lambda: torch.ones(0)
    direction: Callable[[], Direction | None] = lambda: None


@runtime_checkable
class Policy(Protocol):
    """Masks -> what flows into the located patches.

    Optional attributes: `ring`, `margin` (patches by which the mask is ringed and widened), `mass_ratio` (share of
    the score mass that the kept components cover), `needs_unconditional` (true: it gives edits with unconditional
    text, so the engine keeps the text keys and values of unconditional passes), `instead` (what a pipeline returns in
    place of an image that the policy refuses, None unless given).
    """

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        """The edit of one attention call, or None to leave it stock. Called only when something is located.

        Raises:
            UnsafeContent: the images in its `samples` must not be returned. Not asked again until more is located.
        """
        ...


def row_classes(located: Located) -> torch.Tensor:
    """(B, N) long: CORE, RING or STOCK."""
    return located.core.long() * CORE + (located.ring & ~located.core).long() * RING
