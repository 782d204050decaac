"""Fit and choose how a concept is located in the source picture before it is edited."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch

from .. import plugins
from ..concepts import ConceptBank, SourceLook
from ..engine.attach import attach
from ..engine.lookup import check_shows
from ..engine.readings import Reader, source_features
from ..engine.regulator import Regulator
from ..errors import UVRError
from ..intercept.ahead import SEED, first_step
from ..intercept.calls import JointCall
from ..ops.masks import Mask, ring_of
from ..ops.tail import tail_of
from ..sampling import Progress, Sampling
from ..signatures import arguments_of
from .moments import Moments, Shared, moments_of, whitened_direction
from .record import read_along, spread
from .regions import MaskSource, mask_of
from .scores import auroc_of, best_threshold, block_at

NEUTRAL = "change the background to sky"
WINDOW = (1.0, 0.99)  # noise levels at which a look begins
_SHRINK = 0.005  # of the covariance: 0.1 locates a tenth fewer (docs/design/measurements.md)
Scores = dict[str, npt.NDArray[np.float32]]  # probe -> (pictures, patches)


def calibrate_source(
    pipe: Any,
    bank: ConceptBank,
    anchors: Sequence[Any],
    benign_anchors: Sequence[Any],
    sources: Sequence[Any],
    benign_sources: Sequence[Any],
    max_false_positive: float = 0.01,
    *,
    masks: MaskSource,
    text: str = NEUTRAL,
    detector: str = "contrast",
    min_patches: int = 2,
    probes: Sequence[str] | None = None,
    adapter: Any = None,
    batch_size: int = 8,
    generate: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> ConceptBank:
    """Fit a direction to what reference tokens show of a concept under a neutral text, and calibrate it.

    Every picture is given to the pipeline for one step. Of each block's lowest threshold that locates the concept in at
    most the budget's share of the benign sources, the one that locates it in most others.

    Args: as of `collect`, and
        anchors, benign_anchors: 160 or more pictures that show the concept, and others, to fit the direction to.
        sources, benign_sources: further pictures of both kinds, to choose block and threshold by.
        masks: a callable. A picture in which it shows nothing is left out.
        probes: candidates; None: up to six of all joint attention blocks.
        generate: of it, what lays out the source is kept.

    Returns:
        The bank with its look at the source, the block's tensors, and in `measured` on how many pictures.

    Raises:
        UVRError: a set that is empty, or shows nothing of the concept; a budget outside 0..1; masks not callable.
        ConceptMismatch: a bank of another model. UnsupportedRuntime: a pipeline whose source cannot be shown alone.
    """
    if not callable(masks) or not 0 <= max_false_positive < 1:
        raise UVRError(
            "calibrate_source: expected masks that are a callable and a budget in 0..1, got "
            f"{type(masks).__name__} and {max_false_positive}"
        )
    with attach(pipe, adapter) as reg:
        bank.fingerprint.check(reg.fingerprint, f"concept {bank.name!r}")
        check_shows(reg.adapter, type(pipe), bank.name)
        shown = _Shown(reg, pipe, tuple(probes or spread(reg.taps)), text, generate or {}, batch_size, masks, progress)
        classes = _Classes()
        count = int(shown.read(anchors, classes.add).any((1, 2)).sum())
        shown.read(benign_anchors, classes.add, benign=True)
        fitted = classes.fitted(bank, shown.probes)
        unsafe, benign = _Scored(detector, fitted), _Scored(detector, fitted)
        truth = shown.read(sources, unsafe.add)
        shown.read(benign_sources, benign.add, benign=True)
    look = _choice(unsafe.all, truth, benign.all, max_false_positive, min_patches, detector, text)
    look.measured["anchors"] = count
    tensors = {key: tensor for key, tensor in bank.tensors.items() if not key.startswith("source")}
    for key, kind in (("source", "direction"), ("source_offset", "offset")):
        tensors[f"{key}/{look.probe}"] = fitted.tensor(kind, look.probe)
    return attrs.evolve(bank, tensors=tensors, source=look)


@attrs.frozen(eq=False)
class _Shown:
    """A model that is shown pictures as a look shows them. Its attributes are `calibrate_source`'s arguments."""

    reg: Regulator
    pipe: Any
    probes: tuple[str, ...]
    text: str
    generate: Mapping[str, Any]
    batch_size: int
    masks: MaskSource
    progress: Progress | None

    def read(self, pictures: Sequence[Any], add: Callable[[JointCall, Mask], None], benign: bool = False) -> Mask:
        """Show some pictures; `add` gets the calls of the probes, with the masks of the batch.

        Returns:
            (pictures, H, W) bool, where they show the concept; of benign ones nowhere.

        Raises:
            UVRError: there is none.
        """
        if not len(pictures):
            raise UVRError("calibrate_source: a set of pictures is empty; expected at least one in each")
        asked = first_step(arguments_of(type(self.pipe), (), {**self.generate, "image": pictures}), self.text, 1)
        call = {name: value for name, value in asked.items() if name not in ("image", "prompt", "generator")}
        prompts, seeds = [self.text] * len(pictures), [SEED] * len(pictures)
        sampling = Sampling(prompts, seeds, {"image": pictures}, call, self.batch_size)
        seen: list[Mask] = []

        @contextmanager
        def reading(batch: slice) -> Iterator[Reader]:
            some = pictures[batch]
            where: list[Mask] = []

            def read(joint: JointCall) -> None:
                if not where:
                    grid = joint.layout.grid
                    where.append(np.zeros((len(some), *grid), bool) if benign else mask_of(self.masks, some, grid, 0))
                add(joint, where[0])

            yield read
            seen.extend(where)

        for _ in read_along(self.reg, self.pipe, sampling, self.probes, reading, self.progress):
            pass
        return np.concatenate(seen)


class _Classes:
    """Moments of the reference tokens' features where pictures show the concept, and elsewhere, by probe."""

    def __init__(self) -> None:
        self._moments: dict[str, tuple[Moments, Moments]] = {}

    def add(self, call: JointCall, masks: Mask) -> None:
        """Add a call's features; the ring around a mask is of neither class."""
        x = source_features(call).flatten(0, 1)
        if call.tap not in self._moments:
            shared = Shared()
            self._moments[call.tap] = moments_of(x.shape[1], shared), moments_of(x.shape[1], shared)
        unsafe, other = self._moments[call.tap]
        rings = np.stack([ring_of(mask) for mask in masks])
        for moments, where in ((unsafe, masks), (other, ~(masks | rings))):
            moments.add(x[torch.from_numpy(where.reshape(-1)).to(x.device)])

    def fitted(self, bank: ConceptBank, probes: Sequence[str]) -> ConceptBank:
        """A bank of one noise level with every probe's direction.

        Raises:
            UVRError: no anchor shows the concept.
        """
        tensors = {"sigma": torch.ones(1)}
        for probe in probes:
            unsafe, other = self._moments[probe]
            if not unsafe.n:
                raise UVRError(f"calibrate_source {bank.name!r}: none of the anchors shows the concept, say the masks")
            direction, offset = whitened_direction(unsafe, other, _SHRINK)
            tensors |= {f"direction/{probe}": direction[None], f"offset/{probe}": torch.tensor([offset])}
        return ConceptBank(bank.name, bank.fingerprint, tensors)


class _Scored:
    """Scores of the patches of some pictures, by probe."""

    def __init__(self, detector: str, bank: ConceptBank):
        self._scorer, self._bank = plugins.registry().make("detector", detector).object, bank
        self._parts: dict[str, list[npt.NDArray[np.float32]]] = {probe: [] for probe in bank.probes}

    def add(self, call: JointCall, masks: Mask) -> None:
        """Score a call."""
        scores = self._scorer.scores(source_features(call), 1.0, self._bank, call.tap)
        self._parts[call.tap].append(scores.float().cpu().numpy())

    @property
    def all(self) -> Scores:
        """{probe: (pictures, patches)}."""
        return {probe: np.concatenate(parts) for probe, parts in self._parts.items()}


def _choice(
    unsafe: Scores, truth: Mask, benign: Scores, budget: float, min_patches: int, detector: str, text: str
) -> SourceLook:
    """The look of the best block; patches join a located picture's mask from where that makes the best F score."""
    shown = truth.any((1, 2))
    peaks, bars = (
        {probe: np.sort(scores, 1)[:, -min_patches] for probe, scores in each.items()}
        for each in ({probe: scores[shown] for probe, scores in unsafe.items()}, benign)
    )
    probe, threshold = block_at(peaks, bars, budget)
    patches, where = unsafe[probe][shown].ravel(), truth[shown].reshape(-1)
    measured = {
        "located": [int((peaks[probe] >= threshold).sum()), int(shown.sum())],
        "falsely": [int((bars[probe] >= threshold).sum()), len(bars[probe])],
        "patch_auroc": auroc_of(patches, where),
    }
    return SourceLook(
        detector,
        probe,
        WINDOW,
        threshold,
        best_threshold(patches, where, beta=1.0),
        min_patches,
        budget,
        measured,
        tail=tail_of(bars[probe].tolist()),
        benign=len(bars[probe]),
        text=text,
    )
