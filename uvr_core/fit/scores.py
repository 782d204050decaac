"""Scores of unregulated generations, and figures over them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch

from .. import plugins
from ..concepts import ConceptBank
from ..engine.attach import attach
from ..ops.evidence import Evidence, Scores
from ..ops.masks import Mask
from ..protocols import Detector
from ..sampling import Sampling
from .record import recorded
from .regions import MaskSource, mask_of


@attrs.frozen(eq=False)
class ScoredRuns:
    """Scores of unregulated generations: {probe: (images, steps, patches)}, with the steps' noise levels."""

    scores: dict[str, Scores]
    sigmas: list[float]
    grid: tuple[int, int]
    masks: Mask | None  # (images, H, W)

    @property
    def images(self) -> int:
        """How many there are."""
        return len(next(iter(self.scores.values())))

    def gathered(self, memory: float) -> ScoredRuns:
        """With the scores gathered over steps; see uvr_core.ops.evidence.Evidence."""
        return attrs.evolve(self, scores={path: Evidence.over(scores, memory) for path, scores in self.scores.items()})


def score_runs(
    pipe: Any,
    bank: ConceptBank,
    prompts: Sequence[str],
    *,
    detector: Any = "contrast",
    adapter: Any = None,
    seed: int = 0,
    batch_size: int = 8,
    generate: dict[str, Any] | None = None,
    masks: MaskSource | None = None,
    progress: Callable[[int], None] | None = None,
    sources: Sequence[Any] | None = None,
) -> ScoredRuns:
    """Generate without regulation and score every patch at every step and probe of the bank.

    Args: as of `collect`.
    """
    scorer = plugins.registry().make("detector", detector).object
    sampling = Sampling(prompts, range(seed, seed + len(prompts)), {"image": sources}, generate or {}, batch_size)
    columns: dict[str, list[Scores]] = defaultdict(list)
    located: list[Mask] = []
    sigmas, grid = [1.0], (0, 0)
    with attach(pipe, adapter) as reg:
        bank.fingerprint.check(reg.fingerprint, f"concept {bank.name!r}")
        for batch in recorded(reg, pipe, sampling, bank.probes, progress):
            sigmas, grid = batch.sigmas, batch.grid
            for path, scores in scores_of(scorer, bank, batch.features, sigmas).items():
                columns[path].append(scores)
            if masks is not None:
                located.append(mask_of(masks, batch.images, grid, batch.first))
    whole = {path: np.concatenate(parts) for path, parts in columns.items()}
    return ScoredRuns(whole, sigmas, grid, np.concatenate(located) if located else None)


def scores_of(
    detector: Detector, bank: ConceptBank, features: Mapping[tuple[str, int], torch.Tensor], sigmas: Sequence[float]
) -> dict[str, Scores]:
    """{probe: (B, steps, patches)} of a batch's features {(probe, step): (B, N, C)} at the steps' noise levels."""
    scores = {}
    for path in bank.probes:
        steps = [detector.scores(features[path, i].float(), s, bank, path).numpy() for i, s in enumerate(sigmas)]
        scores[path] = np.stack(steps, 1)
    return scores


def image_scores(scores: Scores, min_patches: int) -> Scores:
    """(images, steps, patches) -> (images, steps): the min_patches-th largest patch score."""
    return np.sort(scores, axis=-1)[..., -min_patches]


def auroc_of(scores: npt.NDArray[np.floating], truth: Mask) -> float | None:
    """Area under the ROC curve by ranks (ties averaged); None if one class is absent."""
    from scipy.stats import rankdata

    positives = int(truth.sum())
    negatives = truth.size - positives
    if not positives or not negatives:
        return None
    ranks = rankdata(scores)[truth].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def best_threshold(scores: Scores, truth: npt.NDArray[np.bool_], beta: float = 0.5) -> float:
    """The threshold with the best F-beta over patches; beta < 1 weighs precision, which spares the neighbours."""
    order = np.argsort(-scores)
    hits = np.cumsum(truth[order])
    f = (1 + beta**2) * hits / (np.arange(1, len(order) + 1) + beta**2 * truth.sum())
    return float(scores[order[int(f.argmax())]])
