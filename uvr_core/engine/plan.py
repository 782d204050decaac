"""The plan of one concept, made before any run."""

from __future__ import annotations

import attrs

from ..concepts import ConceptBank
from ..protocols import Detector, MaskOptions, Policy


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
    """

    bank: ConceptBank
    detector: Detector
    policy: Policy
    detector_name: str
    policy_name: str
    probe: str
    window: tuple[float, float]
    threshold: float
    grow: float
    min_patches: int = attrs.field(default=1, kw_only=True)
    memory: float = attrs.field(default=0.0, kw_only=True)
    masks: MaskOptions = attrs.field(factory=MaskOptions, kw_only=True)
    exact: bool = attrs.field(default=False, kw_only=True)
    acts: bool = attrs.field(default=True, kw_only=True)
    needs_uncond: bool = attrs.field(default=False, kw_only=True)

    @property
    def name(self) -> str:
        return self.bank.name
