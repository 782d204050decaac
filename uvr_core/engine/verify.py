"""Whether a concept still stands at the end: scores of the attention output as the edits left it, in late steps.

The score that locates is useless for that: it reads what the text asks for. Late, and behind the edit, a block's output
tells what the picture shows. See docs/design/measurements.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import numpy.typing as npt
import torch

from ..concepts import Calibration
from ..errors import UVRError
from ..intercept.calls import JointCall
from ..protocols import Detector
from .locate import patch_scores
from .plan import ConceptPlan


@attrs.define(eq=False)
class Verified:
    """What the late steps of a run showed of one concept. Gathered on the device, read once.

    Attributes:
        plan: the concept's plan; it has a verification.
        heat: (B, N) float32 on the device, each patch's largest score; None before the first look.
        best: (B,) float32 on the device, the largest min_patches-th patch score of a step.
    """

    plan: ConceptPlan
    heat: torch.Tensor | None = None
    best: torch.Tensor | None = None

    @property
    def calibration(self) -> Calibration:
        assert self.plan.verification is not None
        return self.plan.verification

    def due(self, tap: str, sigma: float) -> bool:
        """Whether the concept is looked for at that tap and noise level."""
        high, low = self.calibration.window
        return tap == self.calibration.probe and low <= sigma <= high

    def look(self, call: JointCall, tokens: torch.Tensor) -> None:
        """Score the call's output patches. No host sync.

        Args:
            tokens: `features` of the call as the edits left it.

        Raises:
            UVRError: see `patch_scores`; or the picture has fewer patches than are compared.
        """
        detector, calibration, bank = self.plan.verifier, self.calibration, self.plan.bank
        assert isinstance(detector, Detector)
        scores = patch_scores(detector, calibration.detector, bank, calibration.probe, call.forward.sigma, tokens)
        if scores.shape[1] < calibration.min_patches:
            raise UVRError(
                f"concept {self.plan.name!r} is verified on {calibration.min_patches} patches, and the image has "
                f"{scores.shape[1]}: draw larger, or calibrate it at this size"
            )
        best = scores.topk(calibration.min_patches, 1).values[:, -1]
        self.heat = scores if self.heat is None else torch.maximum(self.heat, scores)
        self.best = best if self.best is None else torch.maximum(self.best, best)

    def scores(self) -> list[float]:
        """Per image, what is compared with the threshold. One host sync.

        Raises:
            UVRError: no step was looked at, or a score is NaN or Inf: nobody can vouch for the images.
        """
        if self.best is None:
            (high, low), name = self.calibration.window, self.plan.name
            raise UVRError(
                f"concept {name!r} was never verified: its verification looks at noise levels {high:.3g} to {low:.3g}, "
                "which this schedule does not meet; calibrate the verification for it, or attach with verify=False; "
                "the images are withheld"
            )
        scores: list[float] = self.best.tolist()
        if not np.isfinite(scores).all():
            raise UVRError(
                f"concept {self.plan.name!r}: NaN or Inf in the verification at {self.calibration.probe}; the run is "
                "broken (overflow in half precision?) and UVR cannot vouch for the image"
            )
        return scores

    def standing(self) -> tuple[int, ...]:
        """The images in which the concept still stands. One host sync."""
        return tuple(i for i, score in enumerate(self.scores()) if score >= self.calibration.threshold)

    def patches(self, grid: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """(B, H, W): patches that ever reached the threshold. One host sync."""
        assert self.heat is not None
        reached: npt.NDArray[np.bool_] = (self.heat >= self.calibration.threshold).cpu().numpy()
        return reached.reshape(len(reached), *grid)


def verified(plan: Sequence[ConceptPlan]) -> tuple[Verified, ...]:
    """One for each concept that is verified."""
    return tuple(Verified(concept) for concept in plan if concept.verification is not None)
