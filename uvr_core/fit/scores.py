"""Scores of unregulated generations, made as they run, and figures over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from .. import plugins
from ..concepts import ConceptBank
from ..engine.attach import attach
from ..engine.readings import Reader, features
from ..errors import UVRError
from ..intercept.calls import JointCall
from ..ops.evidence import Evidence, Scores
from ..ops.masks import Mask
from ..sampling import Sampling
from .record import read_along
from .regions import MaskSource, mask_of

Peaks = dict[str, npt.NDArray[np.float32]]  # probe -> (images,), what of an image is compared with a threshold


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


def scored(
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
) -> Iterator[ScoredRuns]:
    """Generate without regulation and score every patch at every step and probe of the bank, batch by batch.

    Of the features nothing is kept: a call is scored while it runs.

    Args: as of `collect`.
    """
    scorer = plugins.registry().make("detector", detector).object
    sampling = Sampling(prompts, range(seed, seed + len(prompts)), {"image": sources}, generate or {}, batch_size)
    scores: dict[tuple[str, int], Scores] = {}
    levels: dict[int, float] = {}

    def read(call: JointCall) -> None:
        levels[call.forward.step] = call.forward.sigma
        told = scorer.scores(features(call), call.forward.sigma, bank, call.tap)
        scores[call.tap, call.forward.step] = told.detach().float().cpu().numpy()

    @contextmanager
    def reading(batch: slice) -> Iterator[Reader]:
        scores.clear()
        levels.clear()
        yield read

    with attach(pipe, adapter) as reg:
        bank.fingerprint.check(reg.fingerprint, f"concept {bank.name!r}")
        for drawn in read_along(reg, pipe, sampling, bank.probes, reading, progress):
            assert drawn.grid is not None
            steps = sorted(levels)
            by_probe = {path: np.stack([scores[path, step] for step in steps], 1) for path in bank.probes}
            located = None if masks is None else mask_of(masks, drawn.images, drawn.grid, drawn.first)
            yield ScoredRuns(by_probe, [levels[step] for step in steps], drawn.grid, located)


def score_runs(pipe: Any, bank: ConceptBank, prompts: Sequence[str], **options: Any) -> ScoredRuns:
    """The scores of all images together: 4 bytes a patch, step and probe. Arguments as of `scored`."""
    parts = list(scored(pipe, bank, prompts, **options))
    whole = {path: np.concatenate([part.scores[path] for part in parts]) for path in bank.probes}
    masks = [part.masks for part in parts if part.masks is not None]
    return ScoredRuns(whole, parts[-1].sigmas, parts[-1].grid, np.concatenate(masks) if masks else None)


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


def best_threshold(
    scores: Scores, truth: npt.NDArray[np.bool_], beta: float = 0.5, weight: npt.NDArray[np.floating] | None = None
) -> float:
    """The threshold with the best F-beta over patches; beta < 1 weighs precision, which spares the neighbours.

    `weight`: how many each stands for; None: one.
    """
    order = np.argsort(-scores)
    weight = np.ones(len(scores)) if weight is None else weight
    hits = np.cumsum((truth * weight)[order])
    f = (1 + beta**2) * hits / (np.cumsum(weight[order]) + beta**2 * hits[-1])
    return float(scores[order[int(f.argmax())]])


def block_at(shown: Peaks, others: Peaks, budget: float) -> tuple[str, float]:
    """The block by which most images that show the concept reach the threshold that a budget's share of the others
    does, and that threshold; of equals the widest apart.

    Raises:
        UVRError: there is no image of a kind.
    """
    best: tuple[float, float, str, float] | None = None
    for probe in shown:
        if not len(shown[probe]) or not len(others[probe]):
            which = "shows the concept" if len(others[probe]) else "is without the concept"
            raise UVRError(f"no picture of the calibration {which}; more prompts, or other masks")
        ordered = np.sort(others[probe])[::-1]
        bound = float(ordered[int(budget * len(ordered))])
        threshold = float(np.nextafter(np.float32(bound), np.float32(np.inf)))
        spread = max(bound - float(np.median(ordered)), 1e-3)
        rank = (
            float((shown[probe] >= threshold).mean()),
            (float(np.median(shown[probe])) - bound) / spread,
            probe,
            threshold,
        )
        best = rank if best is None else max(best, rank)
    assert best is not None
    return best[2], best[3]
