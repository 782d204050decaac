"""The plan of one concept, made before any run."""

from __future__ import annotations

import attrs

from ..concepts import Calibration, ConceptBank, TextCarriers
from ..errors import ConceptMismatch
from ..protocols import Detector, MaskOptions, Policy
from ..validators import count, finite, share, window


@attrs.frozen(eq=False)
class ConceptPlan:
    """One concept with the detector, policy and calibration it runs under.

    Attributes:
        bank: the concept.
        detector, policy: with the names under which they are registered, or those of their classes.
        probe: path of the block in which it is looked for.
        window: (high, low) noise levels in which it is looked for.
        threshold: tau, score from which a patch counts as located.
        grow: score from which a patch connected to a located one is taken too.
        min_patches: an image counts as located from so many patches over the threshold.
        memory: see uvr_core.ops.evidence.Evidence.
        masks: how the policy wants located patches shaped.
        exact: the detector's scores are a mask that is given: its patches are taken as they are, infinite scores
            included.
        acts: the policy may change pictures.
        needs_uncond: the policy may ask for the text of the unconditional part.
        withholds: the policy gives no picture in which the concept is located.
        by_text: the policy needs no place where the text tells which tokens carry the concept.
        verification: how it is told whether the concept still stands at the end; None: it is not.
        verifier: the verification's detector.
        look: how it is located in the source before the first step; None: nobody looks there.
        text: how it is told which text tokens carry it; None: it is not told.

    Raises:
        ConceptMismatch: a number that is not finite or out of its range: the concept would never be located.
    """

    bank: ConceptBank
    detector: Detector
    policy: Policy
    detector_name: str
    policy_name: str
    probe: str
    window: tuple[float, float] = attrs.field(validator=window(ConceptMismatch))
    threshold: float = attrs.field(validator=finite(ConceptMismatch))
    grow: float = attrs.field(validator=finite(ConceptMismatch))
    min_patches: int = attrs.field(default=1, kw_only=True, validator=count(ConceptMismatch))
    memory: float = attrs.field(default=0.0, kw_only=True, validator=share(ConceptMismatch))
    masks: MaskOptions = attrs.field(factory=MaskOptions, kw_only=True)
    exact: bool = attrs.field(default=False, kw_only=True)
    acts: bool = attrs.field(default=True, kw_only=True)
    needs_uncond: bool = attrs.field(default=False, kw_only=True)
    withholds: bool = attrs.field(default=False, kw_only=True)
    by_text: bool = attrs.field(default=False, kw_only=True)
    verification: Calibration | None = attrs.field(default=None, kw_only=True)
    verifier: Detector | None = attrs.field(default=None, kw_only=True)
    look: ConceptPlan | None = attrs.field(default=None, kw_only=True)
    text: TextCarriers | None = attrs.field(default=None, kw_only=True)

    def due(self, tap: str, sigma: float) -> bool:
        """Whether the concept is looked for at that tap and noise level."""
        high, low = self.window
        return self.probe == tap and low <= sigma <= high

    @property
    def name(self) -> str:
        return self.bank.name
