"""An edit: what flows into located rows, in parts that are refused when made. Each has its file in ops/."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from numbers import Real
from typing import Any, Literal

import attrs
import torch

from ..errors import UVRError


class RowClass(IntEnum):
    """What an output row is to a concept."""

    STOCK = 0
    CORE = 1
    RING = 2


class KeyClass(IntEnum):
    """What a key is to a located row: text, output elsewhere, output in core or ring, reference."""

    TEXT = 0
    SAFE = 1
    LOCATED = 2
    REFERENCE = 3


def _is(expected: str, holds: Callable[[Any], bool], optional: bool = False) -> Any:
    """A validator that names part and field, what was expected and what came. Values on a device are not looked at."""

    def validate(part: object, field: attrs.Attribute[Any], value: Any) -> None:
        if not (holds(value) or (optional and value is None)):
            got = _described(value) if isinstance(value, torch.Tensor) else repr(value)
            raise UVRError(f"{type(part).__name__}.{field.name}: expected {expected}, got {got}")

    return validate


def _described(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _number(value: Any, most: float = math.inf) -> bool:
    return isinstance(value, Real) and math.isfinite(value) and 0 <= float(value) <= most


def _floats(dimensions: int) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, torch.Tensor) and x.dim() == dimensions and x.is_floating_point()


_factor = _is("a finite number >= 0", _number)
_share = _is("a number from 0 to 1", lambda value: _number(value, 1.0))
_factors = _is("floating point (B, tokens), or None", _floats(2), optional=True)


def _part(kind: type, optional: bool = False) -> Any:
    expected = f"{kind.__name__}, or None" if optional else kind.__name__
    return _is(expected, lambda value: isinstance(value, kind), optional)


@attrs.frozen
class KeyWeights:
    """Factors >= 0 on the attention weights of a row by class of key; 1 is neutral, 0 cuts."""

    text: float = attrs.field(default=1.0, validator=_factor)
    safe: float = attrs.field(default=1.0, validator=_factor)
    located: float = attrs.field(default=1.0, validator=_factor)
    reference: float = attrs.field(default=1.0, validator=_factor)

    @property
    def neutral(self) -> bool:
        return attrs.astuple(self) == (1.0,) * len(KeyClass)


@attrs.frozen(eq=False)
class Reweight:
    """Attention weights of located rows times factors, renormalised: sum_j softmax_j(logit + log factor) v_j.

    Attributes:
        core, ring: factors by class of key, for rows of either class.
        text_factor: (B, text) further factors for single text tokens, or None.
        reference_factor: (B, reference) further factors for single reference tokens, or None.
        text: whose text tokens the rows see: their "own", or in their place the keys and values of the part that
            follows the negative prompt ("uncond"), to which the weights of text then apply.

    Raises:
        UVRError: `text_factor`, which is for the rows' own tokens, together with other text.
    """

    core: KeyWeights = attrs.field(default=KeyWeights(), validator=_part(KeyWeights))
    ring: KeyWeights = attrs.field(default=KeyWeights(), validator=_part(KeyWeights))
    text_factor: torch.Tensor | None = attrs.field(default=None, validator=_factors)
    reference_factor: torch.Tensor | None = attrs.field(default=None, validator=_factors)
    text: Literal["own", "uncond"] = attrs.field(
        default="own", validator=_is("'own' or 'uncond'", lambda value: value in ("own", "uncond"))
    )

    def __attrs_post_init__(self) -> None:
        if self.text == "uncond" and self.text_factor is not None:
            raise UVRError("Reweight: text_factor is for a row's own text tokens; text='uncond' replaces them")

    @property
    def neutral(self) -> bool:
        """Whether nothing is asked: the rows need not be computed anew."""
        factors = self.text_factor is not None or self.reference_factor is not None
        return self.text == "own" and not factors and self.core.neutral and self.ring.neutral


@attrs.frozen(eq=False)
class Projection:
    """Take a direction out of rows whose score is positive; the score becomes (1 - share) of what it was.

    P'(i) = P(i) - share * max(0, P(i) . vector + offset(i)) / |vector|^2 * vector

    Attributes:
        vector: (C,); zero = no change.
        offset: (B, N).
        core, ring: share >= 0 for rows of either class; above 1 the score turns negative.
    """

    vector: torch.Tensor = attrs.field(validator=_is("floating point (C,)", _floats(1)))
    offset: torch.Tensor = attrs.field(validator=_is("floating point (B, N)", _floats(2)))
    core: float = attrs.field(default=1.0, validator=_factor)
    ring: float = attrs.field(default=1.0, validator=_factor)


@attrs.frozen
class NoiseBlend:
    """Rows become (1 - share) * row + share * noise.

    Attributes:
        core, ring: share of noise for rows of either class, 0..1.
        kind: "matched" to the output's mean and deviation per head, or "unit" N(0, 1).
    """

    core: float = attrs.field(default=0.0, validator=_share)
    ring: float = attrs.field(default=0.0, validator=_share)
    kind: Literal["matched", "unit"] = attrs.field(
        default="matched", validator=_is("'matched' or 'unit'", lambda value: value in ("matched", "unit"))
    )


@attrs.frozen
class ColumnWeights:
    """Factors >= 0 on a query's attention to every key; 1 is neutral.

    The last two are for reference tokens at the place of a core or ring patch in their own image (nearest, if its grid
    has another size).
    """

    text: float = attrs.field(default=1.0, validator=_factor)
    output: float = attrs.field(default=1.0, validator=_factor)
    reference: float = attrs.field(default=1.0, validator=_factor)
    facing_core: float = attrs.field(default=1.0, validator=_factor)
    facing_ring: float = attrs.field(default=1.0, validator=_factor)


@attrs.frozen
class ColumnScale:
    """Attention weights scaled after the softmax and not renormalised: what the released code does when editing.

    It reaches every query of an image in which something was located, the rows of the call's text, output and
    reference tokens; other images stay bitwise stock.
    """

    text: ColumnWeights = attrs.field(default=ColumnWeights(), validator=_part(ColumnWeights))
    output: ColumnWeights = attrs.field(default=ColumnWeights(), validator=_part(ColumnWeights))
    reference: ColumnWeights = attrs.field(default=ColumnWeights(), validator=_part(ColumnWeights))


@attrs.frozen(eq=False)
class FlowEdit:
    """An edit of what flows into located rows. The engine applies its parts in this order, on fused kernels.

    Attributes:
        rows: (B, N) int64 of RowClass. Rows that are STOCK stay bitwise stock.
        columns: scaling of the whole call's columns, or None.
        reweight: factors on what the rows see, or None.
        projection: a direction taken out of what that gives, or None.
        noise: noise blended into the result, or None.
    """

    rows: torch.Tensor = attrs.field(
        validator=_is("(B, N) torch.int64", lambda x: isinstance(x, torch.Tensor) and x.dtype == torch.int64)
    )
    reweight: Reweight | None = attrs.field(default=None, validator=_part(Reweight, optional=True))
    projection: Projection | None = attrs.field(default=None, validator=_part(Projection, optional=True))
    noise: NoiseBlend | None = attrs.field(default=None, validator=_part(NoiseBlend, optional=True))
    columns: ColumnScale | None = attrs.field(default=None, validator=_part(ColumnScale, optional=True))

    @property
    def rewrites(self) -> bool:
        """Whether rows are to be computed anew, or changed, one by one."""
        reweights = self.reweight is not None and not self.reweight.neutral
        blends = self.noise is not None and bool(self.noise.core or self.noise.ring)
        return reweights or self.projection is not None or blends

    def check_shapes(self, *, batch: int, patches: int, text: int, reference: int, width: int) -> None:
        """Whether it fits a call of B images, N patches, so many text and reference tokens, C = `width` channels.

        Raises:
            UVRError: names the first tensor that does not.
        """
        shapes: list[tuple[str, torch.Tensor, tuple[int, ...]]] = [("FlowEdit.rows", self.rows, (batch, patches))]
        if self.reweight is not None:
            for name, factor, tokens in (
                ("text_factor", self.reweight.text_factor, text),
                ("reference_factor", self.reweight.reference_factor, reference),
            ):
                shapes += [] if factor is None else [(f"Reweight.{name}", factor, (batch, tokens))]
        if self.projection is not None:
            shapes.append(("Projection.vector", self.projection.vector, (width,)))
            shapes.append(("Projection.offset", self.projection.offset, (batch, patches)))
        for name, tensor, shape in shapes:
            if tuple(tensor.shape) != shape:
                raise UVRError(f"{name}: expected {shape}, got {_described(tensor)}")
