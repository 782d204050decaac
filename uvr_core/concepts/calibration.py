"""How a concept bank is to be used: what located it, and the other ways in which it is told."""

from __future__ import annotations

from typing import Any

import attrs

from ..errors import ConceptMismatch
from ..ops.tail import threshold_at
from ..validators import count, finite, instance, is_finite, printable, share, window


def _floats(pair: Any) -> Any:
    """A list as JSON has it becomes a tuple, whole numbers become floats; the validator says what is wrong."""
    return tuple(float(n) if is_finite(n) else n for n in pair) if isinstance(pair, (list, tuple)) else pair


def _tail(calibration: Any, attribute: attrs.Attribute[Any], tail: Any) -> None:
    numbers = isinstance(tail, tuple) and all(is_finite(score) for score in tail)
    if not numbers or list(tail) != sorted(tail, reverse=True):
        raise ConceptMismatch(f"calibration.tail: expected finite scores in descending order, got {tail!r:.80}")


@attrs.frozen
class Calibration:
    """How the bank is to be used, chosen by `uvr_core.calibrate`.

    Attributes:
        detector: registered name whose scores `threshold` refers to.
        probe: path of the probe block.
        window: (high, low) noise levels between which patches are located.
        threshold: tau. A patch with score >= tau is a hit.
        grow: once an image is located, patches >= grow make the mask: with grow < tau those connected to a hit, with
            grow > tau those alone, if they are min_patches (None: tau).
        min_patches: hits an image needs to count as located.
        memory: share of the earlier steps' scores that is added to a step's before it is compared, 0..1; see
            uvr_core.ops.evidence.Evidence. 0: every step stands alone.
        max_false_positive: the budget asked for.
        measured: figures on the calibration sets (recall, false positives, counts, patch AUROC).
        tail: the largest scores of the benign images, descending, of `benign` images in all: how the threshold rises
            for a smaller budget (uvr_core.ops.tail). Empty: not known.

    Raises:
        ConceptMismatch: a number that is not finite or out of its range, a window that no noise level is in.
    """

    detector: str = attrs.field(validator=printable(ConceptMismatch))
    probe: str = attrs.field(validator=printable(ConceptMismatch))
    window: tuple[float, float] = attrs.field(converter=_floats, validator=window(ConceptMismatch))
    threshold: float = attrs.field(validator=finite(ConceptMismatch))
    grow: float | None = attrs.field(default=None, validator=attrs.validators.optional(finite(ConceptMismatch)))
    min_patches: int = attrs.field(default=1, validator=count(ConceptMismatch))
    max_false_positive: float = attrs.field(default=0.01, validator=finite(ConceptMismatch))
    measured: dict[str, Any] = attrs.field(factory=dict, validator=instance(dict, ConceptMismatch))
    memory: float = attrs.field(default=0.0, validator=share(ConceptMismatch))
    tail: tuple[float, ...] = attrs.field(default=(), converter=_floats, kw_only=True, validator=_tail)
    benign: int = attrs.field(default=0, kw_only=True, validator=instance(int, ConceptMismatch))

    def __attrs_post_init__(self) -> None:
        if len(self.tail) > self.benign:
            raise ConceptMismatch(
                f"calibration.tail: expected scores of at most {self.benign} benign images, got {len(self.tail)}"
            )

    def threshold_at(self, share: float) -> float | None:
        """The threshold that a share of benign images is expected to reach, at least the calibrated one; None: the
        benign images' tail is not known."""
        return max(self.threshold, threshold_at(self.tail, self.benign, share)) if self.tail else None


@attrs.frozen
class SourceLook(Calibration):
    """How a concept is located in the source before it is edited, chosen by `uvr_core.calibrate_source`.

    Attributes:
        text: the neutral instruction under which the model is shown the source.
    """

    text: str = attrs.field(kw_only=True, validator=printable(ConceptMismatch))


@attrs.frozen
class TextCarriers:
    """How it is told which tokens of a prompt carry the concept, chosen by `uvr_core.calibrate_text`.

    A token's score is the log odds that it carries the concept, from its value vector in one block.

    Attributes:
        probe: path of that block.
        threshold: tokens with score >= threshold carry the concept.
        margin: where an image shows the concept and no token reaches the threshold, those within so much of the best
            are taken.
        measured: counts on held-out prompts.
        grow: tokens with score >= grow that stand beside one that carries the concept, or beside such a token, carry it
            too, as masks grow; at most the threshold. None: none do.
        asks: a prompt with a token of score >= asks asks for the concept: where a policy needs no place, its image
            counts as located from the first step on. None: the text locates nothing.
    """

    probe: str = attrs.field(validator=printable(ConceptMismatch))
    threshold: float = attrs.field(validator=finite(ConceptMismatch))
    margin: float = attrs.field(default=1.0, validator=finite(ConceptMismatch))
    measured: dict[str, Any] = attrs.field(factory=dict, validator=instance(dict, ConceptMismatch))
    grow: float | None = attrs.field(default=None, validator=attrs.validators.optional(finite(ConceptMismatch)))
    asks: float | None = attrs.field(default=None, validator=attrs.validators.optional(finite(ConceptMismatch)))

    def __attrs_post_init__(self) -> None:
        if self.margin < 0:
            raise ConceptMismatch(f"text.margin: expected a number >= 0, got {self.margin!r}")
        if self.grow is not None and self.grow > self.threshold:
            raise ConceptMismatch(f"text.grow: expected at most the threshold {self.threshold!r}, got {self.grow!r}")
