"""What detectors and policies are. Both are small objects whose one method is a pure function of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import attrs
import torch

from .concepts import ConceptBank
from .errors import UVRError

STOCK, CORE, RING = 0, 1, 2  # classes of an output row
TEXT, SAFE, LOCATED, REFERENCE = (
    0,
    1,
    2,
    3,
)  # classes of a key: text, output elsewhere, output in core or ring, reference


@runtime_checkable
class Detector(Protocol):
    """Tapped attention output -> one score per output patch.

    Optional attributes: `threshold` (tau, for scores that need no calibration), `exact` (true: the scores are a mask
    that is given, and its patches are taken as they are, with no closing, filling or choice of components).
    """

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        """Score patches.

        Args:
            features: (B, N, C) float32, attention output of the probe block at the output patches, heads
                concatenated (C = heads * head_dim), before the output projection. Where there are reference tokens
                (B, N, 2C): the second half is the attention output at the reference token that faces the patch, by
                nearest place, averaged over reference images.
            sigma: noise level of this step, 1 = pure noise.
            bank: the concept.
            probe: path of the probe block.

        Returns:
            (B, N) float32, larger = more of the concept. Each sample's scores depend on that sample alone.
        """
        ...


@runtime_checkable
class TellsOrigin(Protocol):
    """A detector that also tells whether the source image shows what it located, or the instruction brings it."""

    def origin(
        self, features: torch.Tensor, core: torch.Tensor, sigma: float, bank: ConceptBank, probe: str
    ) -> torch.Tensor | None:
        """Tell where a concept comes from.

        Args:
            features: (B, N, 2C) as `scores` gets them.
            core: (B, N) bool, located patches.

        Returns:
            (B,) float32, > 0 where the source shows it (of no meaning where nothing is located), or None: the bank
            cannot tell.
        """
        ...


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


# Classes of a query and of a key in ColumnScale.
Q_TEXT, Q_OUTPUT, Q_REFERENCE = 0, 1, 2
K_TEXT, K_OUTPUT, K_REFERENCE, K_FACING_CORE, K_FACING_RING = 0, 1, 2, 3, 4


@attrs.frozen
class ColumnScale:
    """Attention weights scaled after the softmax and not renormalised: what the released code does when editing.

    It reaches every query of an image in which something was located; other images stay bitwise stock.

    Attributes:
        table: 3 x 5 factors >= 0, [query: Q_TEXT, Q_OUTPUT, Q_REFERENCE][key: K_TEXT, K_OUTPUT, K_REFERENCE,
            K_FACING_CORE, K_FACING_RING]. The last two are reference tokens at the place of a core or ring patch
            in their own image (nearest, if its grid has another size).
    """

    table: tuple[tuple[float, float, float, float, float], ...]


@attrs.frozen(eq=False)
class Projection:
    """Take a direction out of rows whose score is positive; the score becomes (1 - strength) of what it was.

    P'(i) = P(i) - strength[c] * max(0, P(i) . vector + offset(i)) / |vector|^2 * vector

    Attributes:
        vector: (C,); zero = no change.
        offset: (B, N).
        strength: share >= 0 per row class.
    """

    vector: torch.Tensor
    offset: torch.Tensor
    strength: tuple[float, float, float]


@attrs.frozen(eq=False)
class FlowEdit:
    """An edit of what flows into located rows. The engine applies it on fused kernels.

    For a row of class c (STOCK, CORE, RING) and a key of class k:
        P(i) = sum_j softmax_j(logit + log table[c][k]) v_j
        O(i) = (1 - alpha[c]) * P'(i)  +  alpha[c] * noise
    with P' the projection of P, or P itself.

    Attributes:
        row_class: (B, N) long. Rows of class STOCK stay bitwise stock.
        table: 3 x 4 factors lambda >= 0, [row class][TEXT, SAFE, LOCATED, REFERENCE].
        alpha: share of noise per row class, 0..1.
        noise: "matched" to the output's mean and deviation per head, or "unit" N(0, 1).
        text_factor: (B, text) further factors for single text tokens, or None.
        reference_factor: (B, reference) further factors for single reference tokens, or None.
        columns: a ColumnScale applied to the whole call before the rows are written, or None.
        projection: a Projection of the rows, or None.
        text: whose text tokens the rows see: their "own", or in their place the keys and values of the
            "unconditional" pass (see Policy), to which table[c][TEXT] then applies.

    Raises:
        UVRError: `text_factor`, which is for the rows' own tokens, together with unconditional text.
    """

    row_class: torch.Tensor
    table: tuple[tuple[float, float, float, float], ...] = ((1.0,) * 4,) * 3
    alpha: tuple[float, float, float] = (0.0, 0.0, 0.0)
    noise: Literal["matched", "unit"] = "matched"
    text_factor: torch.Tensor | None = None
    reference_factor: torch.Tensor | None = None
    columns: ColumnScale | None = None
    projection: Projection | None = None
    text: Literal["own", "unconditional"] = "own"

    def __attrs_post_init__(self) -> None:
        if self.text == "unconditional" and self.text_factor is not None:
            raise UVRError("FlowEdit: text_factor is for a row's own text tokens; text='unconditional' replaces them")


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


# ---------------------------------------------------------------------------------------------- evaluation


@runtime_checkable
class Judge(Protocol):
    """Says what pictures show. The registered object is a factory: factory() -> Judge.

    Optional: `labels` (every label that it can report) and `locate(images, labels, (H, W)) -> (B, H, W) bool`, the
    patches where it sees any of the labels.
    """

    def __call__(self, images: Sequence[Any]) -> Sequence[Mapping[str, float]]:
        """[{label: score}], one per PIL image: the labels it sees, over its own threshold."""
        ...


@attrs.frozen
class Subject:
    """A concept in the words of prompts and of judges.

    Attributes:
        name: the concept's name.
        labels: what judges call it; an image that shows any of them is unsafe.
        words: what prompts call it: the terms of a blocklist, of a negative prompt, of a safety concept.
    """

    name: str
    labels: tuple[str, ...]
    words: tuple[str, ...]


@attrs.frozen(eq=False)
class Request:
    """One call of a pipeline that a baseline is to make safe.

    Attributes:
        pipe: the pipeline, stock, nothing attached.
        call: its keyword arguments; `prompt`, `generator` and, where the pipeline takes them, `image` and
            `negative_prompt` are lists with one entry per image.
        subjects: the concepts to keep out.
        banks: their concept banks, in the same order, None where there is none.
        judges: the judges of the evaluation, by name, for baselines that look at the result.
    """

    pipe: Any
    call: Mapping[str, Any]
    subjects: tuple[Subject, ...]
    banks: tuple[ConceptBank | None, ...] = ()
    judges: Mapping[str, Judge] = attrs.field(factory=dict)

    @property
    def batch(self) -> int:
        return len(self.call["prompt"])


@runtime_checkable
class Baseline(Protocol):
    """Another way to keep a concept out, behind one interface, for comparison. Made without arguments.

    It leaves the pipeline bitwise as it was, also when it raises.
    """

    def generate(self, request: Request) -> Sequence[Any]:
        """One PIL image per prompt, or None where it refuses to give one.

        Raises:
            UnsupportedRuntime: it does not work on this pipeline; the message says why.
        """
        ...
