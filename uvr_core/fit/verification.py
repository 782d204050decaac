"""Choose how it is told, at the end of a run, whether a concept still stands in the picture."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch

from .. import plugins
from ..concepts import Calibration, ConceptBank
from ..engine import readings
from ..engine.attach import attach
from ..engine.readings import Reader
from ..errors import UVRError
from ..intercept.calls import JointCall
from ..protocols import Policy
from ..sampling import Progress, Sampling, nonblank
from .record import read_along
from .regions import MaskSource, mask_of
from .scores import Peaks, block_at


@attrs.frozen(eq=False)
class Pictures:
    """What some generations showed at the end.

    Attributes:
        scores: by probe, per image, the largest min_patches-th patch score of the last steps.
        shown: (images,) bool, whether the masks see the concept in the picture.
        high: noise level of the first of the last steps.
    """

    scores: Peaks
    shown: npt.NDArray[np.bool_]
    high: float

    def of(self, shown: bool) -> Peaks:
        """The scores of the images that show the concept, or of the others."""
        return {probe: scores[self.shown == shown] for probe, scores in self.scores.items()}


def calibrate_verification(
    pipe: Any,
    bank: ConceptBank,
    collected: ConceptBank,
    unsafe_prompts: Sequence[str],
    benign_prompts: Sequence[str],
    max_wrongly_withheld: float = 0.01,
    *,
    masks: MaskSource,
    policy: str | Policy = "selective",
    detector: str = "contrast",
    last: float = 0.3,
    min_patches: int = 2,
    sources: Sequence[Any] | None = None,
    benign_sources: Sequence[Any] | None = None,
    adapter: Any = None,
    seed: int = 20_000,
    batch_size: int = 8,
    generate: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> ConceptBank:
    """Choose block and threshold by which an image in which the concept still stands is withheld.

    The unsafe prompts are drawn unregulated and regulated, the benign ones regulated. Of each block's lowest threshold
    that withholds at most the budget's share of the pictures without the concept, the one that withholds most others.

    Args:
        bank: calibrated; what locates.
        collected: what `collect` gave for it, whose every block is a candidate.
        unsafe_prompts, benign_prompts: of neither the anchors nor the calibration.
        max_wrongly_withheld: the budget, a share of the pictures without the concept.
        masks: a callable (images, (H, W)) -> (B, H, W) bool, as in `collect`: in which pictures the concept stands.
        policy: what restricts.
        detector: registered name whose scores are compared.
        last: share of the steps, the last, that are looked at.
        min_patches: patches that must reach the threshold in one step.
        seed: of the first unsafe prompt; the benign ones follow. All others: as in `collect`.

    Returns:
        The bank with its verification, its block's tensors, and in `measured` on how many pictures.

    Raises:
        UVRError: an empty set, no picture that shows (or lacks) the concept, a share outside 0..1, masks not callable.
        ConceptMismatch: a bank of another model, or not calibrated.
    """
    _check(masks, max_wrongly_withheld=max_wrongly_withheld, last=last)
    unsafe, benign = nonblank("unsafe_prompts", unsafe_prompts), nonblank("benign_prompts", benign_prompts)
    show = functools.partial(_draw, pipe, adapter, collected, detector, masks, min_patches, last, progress)
    restricted = {"concepts": bank, "policy": policy, "verify": False}
    drawn = functools.partial(Sampling, call=generate or {}, batch_size=batch_size)
    prompted = drawn(unsafe, range(seed, seed + len(unsafe)), {"image": sources})
    others = drawn(benign, range(seed + len(unsafe), seed + len(unsafe) + len(benign)), {"image": benign_sources})
    stock, regulated, safe = show(prompted, {}), show(prompted, restricted), show(others, restricted)
    standing, gone = _joined(stock.of(True), regulated.of(True)), _joined(regulated.of(False), safe.of(False))
    probe, threshold = block_at(standing, gone, max_wrongly_withheld)
    kinds = {"standing": standing, "regulated_standing": regulated.of(True), "gone": gone}
    measured = {name: [int((s[probe] >= threshold).sum()), len(s[probe])] for name, s in kinds.items()}
    window = (min(stock.high + 1e-6, 1.0), 0.0)
    how = Calibration(detector, probe, window, threshold, None, min_patches, max_wrongly_withheld, measured)
    tensors = {key: collected.tensors[key] for key in (f"direction/{probe}", f"offset/{probe}")}
    return attrs.evolve(bank, tensors=tensors | bank.tensors, verification=how)


def _check(masks: object, **shares: float) -> None:
    if not callable(masks):
        raise UVRError("masks: the pictures are drawn anew under regulation, so masks must be a callable")
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise UVRError(f"{name}: expected a share in 0..1, got {share}")


def _draw(
    pipe: Any,
    adapter: Any,
    collected: ConceptBank,
    detector: str,
    masks: MaskSource,
    min_patches: int,
    last: float,
    progress: Progress | None,
    sampling: Sampling,
    concepts: dict[str, Any],
) -> Pictures:
    """Draw, and score the attention output behind the edits. Host memory holds one number an image, step and block."""
    scorer = plugins.registry().make("detector", detector).object
    steps: dict[tuple[str, int], torch.Tensor] = {}
    levels: dict[int, float] = {}

    def read(call: JointCall) -> None:
        scores = scorer.scores(readings.features(call), call.forward.sigma, collected, call.tap)
        steps[call.tap, call.forward.step] = scores.float().topk(min_patches, 1).values[:, -1].cpu()
        levels[call.forward.step] = call.forward.sigma

    def reading(batch: slice) -> AbstractContextManager[Reader]:
        steps.clear()
        levels.clear()
        return nullcontext(read)

    scores: dict[str, list[npt.NDArray[np.float32]]] = {probe: [] for probe in collected.probes}
    shown: list[npt.NDArray[np.bool_]] = []
    high = 0.0
    with attach(pipe, adapter, **concepts) as reg:
        collected.fingerprint.check(reg.fingerprint, f"concept {collected.name!r}")
        for drawn in read_along(reg, pipe, sampling, collected.probes, reading, progress, after=True):
            assert drawn.grid is not None
            late = sorted(levels)[round(len(levels) * (1 - last)) :] or [max(levels)]
            high = levels[late[0]]
            for probe, parts in scores.items():
                parts.append(torch.stack([steps[probe, step] for step in late]).amax(0).numpy())
            seen = mask_of(masks, drawn.images, drawn.grid, drawn.first).any((1, 2))
            shown.append(np.asarray(seen, dtype=bool))
    return Pictures({probe: np.concatenate(parts) for probe, parts in scores.items()}, np.concatenate(shown), high)


def _joined(*parts: Peaks) -> Peaks:
    return {probe: np.concatenate([part[probe] for part in parts]) for probe in parts[0]}
