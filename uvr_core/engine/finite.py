"""Whether every edit of a run was finite: gathered on the device, asked once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import UVRError
from .plan import ConceptPlan


class Finite:
    """Watches what edits give.

    Args:
        plan: whose policies an error names.
    """

    def __init__(self, plan: Sequence[ConceptPlan]):
        self._policies = tuple(dict.fromkeys(concept.policy_name for concept in plan))
        self._extremes: list[torch.Tensor] = []  # () each, on the device

    def watch(self, edited: torch.Tensor) -> None:
        """Note on the device whether a tensor is finite. One kernel, no host sync."""
        self._extremes += torch.aminmax(edited)  # NaN in one is NaN in both

    def fold(self) -> None:
        """Make one number of what was noted, on the device. No host sync."""
        if len(self._extremes) > 1:
            self._extremes = [torch.stack([x.float() for x in self._extremes]).abs().amax()]

    def check(self) -> None:
        """One host sync, if anything was edited.

        Raises:
            UVRError: an edit gave NaN or Inf.
        """
        self.fold()
        if self._extremes and not bool(self._extremes[0].isfinite()):
            names = ", ".join(map(repr, self._policies))
            raise UVRError(
                f"an edit gave NaN or Inf (policies: {names}): a factor that is NaN, infinite or negative, a row that "
                "is left nothing to attend to, or overflow in half precision; UVR cannot vouch for the image"
            )
