"""Images in which a concept still stood are drawn again by the next policy, from the first step on where it stood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from .report import Report
from .withhold import Refusal, images_of, with_images


@attrs.frozen(eq=False)
class Earlier:
    """A run whose images are kept, but for some that are drawn again.

    Attributes:
        result: what the pipeline returned.
        report: of that run.
        refusals: of images that are not drawn again.
        pending: the images that are.
        cores: concept -> (B, H, W) bool, where it was located or still stood.
    """

    result: Any
    report: Report
    refusals: Mapping[int, Refusal]
    pending: frozenset[int]
    cores: Mapping[str, npt.NDArray[np.bool_]]

    def merged(self, result: Any) -> Any:
        """The earlier result with the images that were drawn again."""
        images, again = images_of(self.result), images_of(result)
        kept = (
            list(images)
            if isinstance(images, (list, tuple))
            else images.copy()
            if isinstance(images, np.ndarray)
            else images.clone()
        )
        for sample in self.pending:
            kept[sample] = again[sample]
        return with_images(result, kept)

    def refused(self, refusals: Mapping[int, Refusal]) -> dict[int, Refusal]:
        """All refusals, given those of the later run."""
        return {**self.refusals, **{sample: why for sample, why in refusals.items() if sample in self.pending}}

    def told(self, report: Report) -> Report:
        """The later report, of the images that were drawn again, with the earlier findings of the others."""
        before = {(f.sample, f.concept): f for f in self.report.findings if f.sample not in self.pending}
        draws, looks = self.report.draws + 1, self.report.looks + report.looks
        findings = tuple(before.get((f.sample, f.concept), f) for f in report.findings)
        return attrs.evolve(report, findings=findings, draws=draws, looks=looks)
