"""How well a detector tells a concept's patches from the others."""

from __future__ import annotations

import attrs
import numpy as np

from uvr_core.ops.evidence import Scores
from uvr_core.ops.masks import Mask

from .curves import bootstrap
from .flows import Array, Flows


@attrs.frozen(eq=False)
class Localisation:
    """How well a detector tells a concept's patches from the others, step by step.

    Attributes:
        auroc: (T,) area under the ROC curve over all patches of all images that show the concept.
        low, high: (T,) its 95% bootstrap band over images.
        within: (T,) mean over images of the area among an image's patches alone: what differs from image to image helps
            nobody there.
        prior: the same of the places alone: of each image, how often the other images show the concept in a patch.
            0.5 where there is one image.
        images: how many show it.
    """

    auroc: Array
    low: Array
    high: Array
    within: Array
    prior: float
    images: int


def localisation_of(flows: Flows, resamples: int = 1000) -> dict[str, Localisation]:
    """Patch AUROC per probe and step against the masks; {} without masks, scores or an image that shows the concept.

    Ties count half. The area is a mean over pairs of images, one giving the patches inside and one those outside, by
    which a bootstrap over images costs no second ranking. Images that the mask fills or leaves empty are left out.
    """
    if flows.masks is None:
        return {}
    inside = flows.masks.reshape(len(flows.masks), -1)
    use = np.flatnonzero(inside.any(1) & ~inside.all(1))
    if not len(use):
        return {}
    inside = inside[use]
    weights = bootstrap(len(use), resamples) * len(use)
    hits, others = inside.sum(1), (~inside).sum(1)
    sizes = np.outer(hits, others)
    places = np.broadcast_to(inside.sum(0), inside.shape) - inside
    prior = float(np.mean(np.diag(_wins(places.astype(float), inside)) / np.diag(sizes)))
    result = {}
    for probe, scores in flows.scores.items():
        value, low, high, within = [], [], [], []
        for step in range(scores.shape[1]):
            wins = _wins(scores[use, step], inside)
            value.append(wins.sum() / sizes.sum())
            within.append(np.mean(np.diag(wins) / np.diag(sizes)))
            resampled = _pairs(weights, wins) / _pairs(weights, sizes)
            low.append(np.quantile(resampled, 0.025))
            high.append(np.quantile(resampled, 0.975))
        lines = map(np.array, (value, low, high, within))
        result[probe] = Localisation(*lines, prior, len(use))
    return result


def _wins(scores: Scores, inside: Mask) -> Array:
    """(I, I): how many pairs of a patch inside of image i and one outside of image j are in the right order."""
    others = [np.sort(theirs[~hits]) for theirs, hits in zip(scores, inside, strict=True)]
    return np.array([[_below(rest, mine[hits]) for rest in others] for mine, hits in zip(scores, inside, strict=True)])


def _below(others: Array, values: Array) -> float:
    return 0.5 * float(np.searchsorted(others, values).sum() + np.searchsorted(others, values, "right").sum())


def _pairs(weights: Array, table: Array) -> Array:
    return np.asarray(np.einsum("ri,ij,rj->r", weights, table, weights))
