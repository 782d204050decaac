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
        self._all: torch.Tensor | None = None  # () bool, on the device

    def watch(self, edited: torch.Tensor) -> None:
        """Note on the device whether a tensor is finite. No host sync."""
        finite = torch.stack(torch.aminmax(edited)).isfinite().all()  # NaN in one is NaN in both
        self._all = finite if self._all is None else self._all & finite

    def check(self) -> None:
        """One host sync, if anything was edited.

        Raises:
            UVRError: an edit gave NaN or Inf.
        """
        if self._all is not None and not bool(self._all):
            names = ", ".join(map(repr, self._policies))
            raise UVRError(
                f"an edit gave NaN or Inf (policies: {names}): a factor that is NaN, infinite or negative, a row that "
                "is left nothing to attend to, or overflow in half precision; UVR cannot vouch for the image"
            )
