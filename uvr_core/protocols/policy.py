"""What a policy is: located patches in, an edit out, a pure function of tensors; and what it is told."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar, runtime_checkable

import attrs
import torch

from ..errors import UVRError
from .edit import FlowEdit, RowClass

T = TypeVar("T")


def _patches(options: object, field: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, int) or value < 0:
        raise UVRError(f"MaskOptions.{field.name}: expected a number of patches >= 0, got {value!r}")


@attrs.frozen
class MaskOptions:
    """How a policy wants located patches shaped.

    Attributes:
        ring: patches by which the core is ringed.
        margin: patches by which it is widened first.
        mass_ratio: share of the score mass that the kept components cover, above 0 and up to 1.
    """

    ring: int = attrs.field(default=1, validator=_patches)
    margin: int = attrs.field(default=0, validator=_patches)
    mass_ratio: float = 1.0

    def __attrs_post_init__(self) -> None:
        if not (isinstance(self.mass_ratio, (int, float)) and 0 < self.mass_ratio <= 1):
            raise UVRError(f"MaskOptions.mass_ratio: expected 0 < ratio <= 1, got {self.mass_ratio!r}")


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
        kept: what `once` keeps.
    """

    core: torch.Tensor
    ring: torch.Tensor
    grid: tuple[int, int]
    sigma: float
    step: int
    window: tuple[float, float] = (1.0, 0.0)
    from_source: torch.Tensor | None = None
    concept: str = ""
    kept: dict[Hashable, Any] = attrs.field(factory=dict, repr=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What follows from the masks and the source alone, and not from `sigma` or `step`.

        Made when first asked for under this key, and shared by all blocks and steps until the masks change; nobody may
        write into it. An edit whose `rows` come from here, or from `row_classes`, costs no host sync.
        """
        if key not in self.kept:
            with torch.inference_mode(False):  # so that a write into it can be told
                self.kept[key] = make()
        value: T = self.kept[key]
        return value


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
        carriers: (slack) -> (B, text) bool: the text tokens that carry the concept, the same in every block and step,
            at least one of each prompt; with those whose log odds lie up to `slack` below. None: the concept does not
            say how that is told (`calibrate_text`), or the block that tells was not run yet.
    """

    path: str
    text: int
    reference: int
    text_contrast: Callable[[], torch.Tensor]
    reference_contrast: Callable[[], torch.Tensor] = lambda: torch.ones(0)
    direction: Callable[[], Direction | None] = lambda: None
    carriers: Callable[[float], torch.Tensor | None] = lambda slack: None


@runtime_checkable
class Policy(Protocol):
    """Masks -> what flows into the located patches.

    Optional attributes: those of PolicyTraits, and `instead` (what a pipeline returns in place of an image that the
    policy refuses, None unless given).
    """

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        """The edit of one attention call, or None to leave it stock. Called only when something is located.

        Raises:
            UnsafeContent: the images in its `samples` must not be returned. Not asked again until more is located.
        """
        ...


@attrs.frozen
class PolicyTraits:
    """What a policy declares beside its method, by attributes of these names.

    Attributes:
        acts: it may change pictures; false: it only reports.
        needs_uncond: it gives edits with `text="uncond"`, so the engine keeps the text keys and values of parts that
            follow the negative prompt.
        masks: how it wants located patches shaped.
        withholds: it refuses every image in which the concept is located, so nothing is gained by drawing one.
        by_text: it needs no place: the tokens that carry the concept are enough. Without sources, an image whose prompt
            asks for the concept (`TextCarriers.asks`) counts as located everywhere from the first step on.
    """

    acts: bool = True
    needs_uncond: bool = False
    masks: MaskOptions = MaskOptions()
    withholds: bool = False
    by_text: bool = False

    @classmethod
    def of(cls, policy: object) -> PolicyTraits:
        """Those of a policy; what it does not declare has the default.

        Raises:
            UVRError: its `masks` are no MaskOptions.
        """
        masks = getattr(policy, "masks", cls().masks)
        if not isinstance(masks, MaskOptions):
            raise UVRError(f"{type(policy).__name__}.masks: expected MaskOptions, got {masks!r}")
        names = ("acts", "needs_uncond", "withholds", "by_text")
        flags = {name: bool(getattr(policy, name, getattr(cls(), name))) for name in names}
        return cls(masks=masks, **flags)


def row_classes(located: Located) -> torch.Tensor:
    """(B, N) int64 of RowClass, the same tensor until the masks change: work on a copy of it."""

    def classes() -> torch.Tensor:
        return located.core.long() * RowClass.CORE + (located.ring & ~located.core).long() * RowClass.RING

    return located.once("classes", classes)
