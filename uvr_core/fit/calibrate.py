"""Choose how a collected concept is detected: probe block, window, threshold, from an unsafe and a benign set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np

from ..concepts import Calibration, ConceptBank
from ..errors import UVRError
from ..ops.tail import tail_of
from ..sampling import nonblank
from .marks import Marks, marks_of
from .regions import MaskSource
from .scores import auroc_of, best_threshold, scored

_INTO_GAP = 0.25  # of the way from the benign bound to the unsafe scores: unseen styles score lower than seen ones


@attrs.frozen
class Choice:
    """One way to detect a concept, and how it does on the calibration sets.

    Attributes:
        probe, memory, threshold, grow: see Calibration; last: the last step watched, 0 the first.
        recall, false_positive: shares of the unsafe and of the benign images that are located.
        auroc: of patches against the masks; None without masks.
        margin: see choose.
    """

    probe: str
    memory: float
    last: int
    threshold: float
    recall: float
    false_positive: float
    grow: float
    auroc: float | None
    margin: float


def calibrate(
    pipe: Any,
    bank: ConceptBank,
    unsafe_prompts: Sequence[str],
    benign_prompts: Sequence[str],
    max_false_positive: float = 0.01,
    *,
    detector: str = "contrast",
    masks: MaskSource | Any = None,
    min_patches: int = 2,
    memory: Sequence[float] = (0.0, 0.9),
    steps: Sequence[int] | None = None,
    sources: Sequence[Any] | None = None,
    benign_sources: Sequence[Any] | None = None,
    adapter: Any = None,
    seed: int = 10_000,
    batch_size: int = 8,
    generate: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ConceptBank:
    """Choose probe block, memory, start-up window and threshold from small unsafe and benign sets.

    For every probe of the bank, every memory and every window that starts at the first step, the threshold is the
    lowest that keeps false positives on the benign set within `max_false_positive`, moved a quarter into the gap to the
    unsafe images' 10% quantile, if there is one. The choice with the best recall wins; among equals (within one image)
    the one with the widest margin, which recalls best where the calibration set's style is left behind. The window is
    then extended for as long as false positives stay within the budget.

    Args:
        detector: registered name whose scores are calibrated.
        masks: as in `collect`; when given, `grow` (the score at which patches join the mask of a located image)
            maximises the patches' F0.5 score, and patch AUROC is measured; else it is the benign score that the budget
            allows: in an image that is located anyway, what benign ones do not reach is the concept's.
        sources, benign_sources: for an editing pipeline, the source image of each prompt (an instruction).
        min_patches: an image counts as located when this many patches reach the threshold in one step.
        memory: candidates, see Calibration.memory.
        steps: candidates for the number of steps watched, from the first; None: every number.

    Returns:
        A bank with its calibration, and only the chosen probe's tensors.

    Raises:
        UVRError: an empty set, a budget or memory outside 0..1, no memory, or steps that the runs do not have.
        ConceptMismatch: the bank was made for another model.
    """
    _check_budget(max_false_positive, memory)
    if isinstance(masks, str):
        raise UVRError(f"masks: {masks!r} is for collecting; calibrate takes a callable or an array, or none")
    shown, others = nonblank("unsafe_prompts", unsafe_prompts), nonblank("benign_prompts", benign_prompts)
    score = functools.partial(
        scored, pipe, bank, detector=detector, adapter=adapter, batch_size=batch_size, generate=generate
    )
    unsafe = score(shown, seed=seed, masks=masks, sources=sources, progress=progress)
    benign = score(others, seed=seed + len(shown), sources=benign_sources, progress=progress)
    marks = marks_of(unsafe, memory, min_patches), marks_of(benign, memory, min_patches)
    return _calibrated(bank, detector, *marks, max_false_positive, min_patches, steps)


def _check_budget(max_false_positive: float, memory: Sequence[float]) -> None:
    if not 0 <= max_false_positive < 1:
        raise UVRError(f"max_false_positive: expected a share in 0..1, got {max_false_positive}")
    if not memory or not all(0 <= m <= 1 for m in memory):
        raise UVRError(f"memory: expected at least one number in 0..1, got {tuple(memory)}")


def _calibrated(
    bank: ConceptBank,
    detector: str,
    unsafe: Marks,
    benign: Marks,
    budget: float,
    min_patches: int,
    steps: Sequence[int] | None,
) -> ConceptBank:
    """The bank with the best choice over probes, memories and windows."""
    count = len(unsafe.sigmas)
    lasts = range(count) if steps is None else [n - 1 for n in steps]
    if not lasts or not all(0 <= last < count for last in lasts):
        raise UVRError(f"steps: expected numbers from 1 to the runs' {count}, got {steps}")
    choices = [choose(probe, m, last, unsafe, benign, budget) for m, probe in unsafe.peaks for last in lasts]
    best = _extend(pick(choices, unsafe.images), unsafe, benign, budget)
    measured = {
        "unsafe_prompts": unsafe.images,
        "benign_prompts": benign.images,
        "recall": best.recall,
        "false_positive": best.false_positive,
        "patch_auroc": best.auroc,
        "steps": best.last + 1,
        "of_steps": count,
        "margin": best.margin,
    }
    window = (1.0, unsafe.sigmas[best.last] - 1e-6)
    calibration = Calibration(
        detector,
        best.probe,
        window,
        best.threshold,
        best.grow,
        min_patches,
        budget,
        measured,
        best.memory,
        tail=tail_of(benign.peaks[best.memory, best.probe][:, : best.last + 1].max(1)),
        benign=benign.images,
    )
    kept = ("sigma", "source/", "source_offset/")
    tensors = {k: v for k, v in bank.tensors.items() if k.startswith(kept) or k.endswith(f"/{best.probe}")}
    return attrs.evolve(bank, tensors=tensors, calibration=calibration)


def pick(choices: Sequence[Choice], images: int) -> Choice:
    """The widest margin among those that miss at most one image more than the best."""
    top = max(c.recall for c in choices)
    return max((c for c in choices if c.recall >= top - 1 / images), key=lambda c: c.margin)


def _extend(choice: Choice, unsafe: Marks, benign: Marks, budget: float) -> Choice:
    """Keep watching for as long as false positives stay within the budget: late finds cost nothing else."""
    key = (choice.memory, choice.probe)
    per_step = benign.peaks[key]
    running = np.sort(np.maximum.accumulate(per_step, 1), 0)[::-1][int(budget * len(per_step))]
    last = choice.last
    while last + 1 < running.size and running[last + 1] < choice.threshold:
        last += 1
    positive, negative = (marks.peaks[key][:, : last + 1].max(1) for marks in (unsafe, benign))
    recall, false_positive = (float((scores >= choice.threshold).mean()) for scores in (positive, negative))
    grow = choice.grow if unsafe.truth is not None else float(running[last])
    return attrs.evolve(choice, last=last, recall=recall, false_positive=false_positive, grow=grow)


def choose(probe: str, memory: float, last: int, unsafe: Marks, benign: Marks, budget: float) -> Choice:
    """The threshold of one probe, memory and window, and how it does.

    margin = (low - bound) / (bound - typical), with low the unsafe images' 10% quantile, bound the benign score that
    the budget allows and typical the benign median: the gap, in units of the benign tail.
    """
    key = (memory, probe)
    positive = unsafe.peaks[key][:, : last + 1].max(1)
    negative = np.sort(benign.peaks[key][:, : last + 1].max(1))[::-1]
    bound = float(negative[int(budget * len(negative))])
    low = float(np.quantile(positive, 0.1))
    threshold = float(bound + max(_INTO_GAP * (low - bound), 1e-3 * max(1.0, abs(bound))))
    margin = (low - bound) / max(bound - float(np.median(negative)), 1e-3)
    grow, auroc = bound, None
    if unsafe.truth is not None:
        patches = unsafe.patches[key][: last + 1]
        truth = np.broadcast_to(unsafe.truth, patches.shape)
        auroc = auroc_of(patches.ravel(), truth.ravel())
        grow = float(best_threshold(patches.ravel(), truth.ravel()))
    recall, false_positive = (float((scores >= threshold).mean()) for scores in (positive, negative))
    return Choice(probe, memory, last, threshold, recall, false_positive, grow, auroc, margin)
