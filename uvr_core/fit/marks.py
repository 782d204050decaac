"""What calibration keeps of scored runs: per image and step one number, and some patches with the truth about them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import attrs
import numpy as np

from ..ops.evidence import Scores
from ..ops.masks import Mask, thinned
from .scores import ScoredRuns, image_scores

PATCHES = 256  # of an image, evenly spread; up to so many all are kept

Key = tuple[float, str]  # memory, probe


@attrs.frozen(eq=False)
class Marks:
    """Scores of a set of images, as far as thresholds hang on them.

    Attributes:
        peaks: (images, steps), the min_patches-th largest evidence of a patch, by memory and probe.
        patches: (steps, patches), the evidence of at most PATCHES patches of each image, all images' side by side;
            empty without masks.
        truth: (patches,) bool, whether the concept is there; None without masks.
        sigmas: the steps' noise levels.
    """

    peaks: dict[Key, Scores]
    patches: dict[Key, Scores]
    truth: Mask | None
    sigmas: list[float]

    @property
    def images(self) -> int:
        """How many there are."""
        return len(next(iter(self.peaks.values())))


def marks_of(batches: Iterable[ScoredRuns], memory: Sequence[float], min_patches: int) -> Marks:
    """The marks of scored batches, each of which is let go before the next is drawn."""
    peaks: dict[Key, list[Scores]] = defaultdict(list)
    patches: dict[Key, list[Scores]] = defaultdict(list)
    truth: list[Mask] = []
    sigmas: list[float] = []
    for runs in batches:
        sigmas = runs.sigmas
        kept = thinned(np.ones(runs.grid, bool), PATCHES).reshape(-1)
        for m in memory:
            for path, scores in runs.gathered(m).scores.items():
                peaks[m, path].append(image_scores(scores, min_patches))
                if runs.masks is not None:
                    patches[m, path].append(scores[..., kept].swapaxes(0, 1).reshape(len(sigmas), -1))
        if runs.masks is not None:
            truth.append(runs.masks.reshape(len(runs.masks), -1)[:, kept].reshape(-1))
    return Marks(
        {key: np.concatenate(parts) for key, parts in peaks.items()},
        {key: np.concatenate(parts, 1) for key, parts in patches.items()},
        np.concatenate(truth) if truth else None,
        sigmas,
    )
