"""Make a concept bank: collect what a concept looks like inside a model, then choose how to detect it."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch

from . import plugins
from .concepts import Calibration, ConceptBank
from .errors import ConceptMismatch, UVRError
from .ops.evidence import Evidence, Scores
from .ops.masks import Mask, ring_of
from .regulator import Regulator, attach
from .sampling import Sampling

MaskSource = Callable[[Sequence[Any], tuple[int, int]], Any]
FULL_COVARIANCE = 768  # widths up to this are whitened fully, larger ones per channel
_MAX_PROBES = 6
_LEAST_IMAGES = 8  # per way in (source image, instruction), to tell them apart
_FEEDS = 2.5  # flow contrast above which a text token counts as feeding the concept; as in the `selective` policy
_INTO_GAP = 0.25  # of the way from the benign bound to the unsafe scores: unseen styles score lower than seen ones


@attrs.define
class Moments:
    """Count, sum and second moment of feature vectors (n, C), in float64.

    `full`: the whole covariance, not its diagonal alone; None: up to a width of FULL_COVARIANCE.
    """

    full: bool | None = None
    n: int = 0
    total: Any = 0.0
    second: Any = 0.0

    def add(self, x: torch.Tensor) -> None:
        x = x.double()
        if self.full is None:
            self.full = x.shape[1] <= FULL_COVARIANCE
        self.n += len(x)
        self.total = self.total + x.sum(0)
        self.second = self.second + (x.T @ x if self.full else x.square().sum(0))

    @property
    def mean(self) -> torch.Tensor:
        return self.total / self.n  # type: ignore[no-any-return]

    @property
    def covariance(self) -> torch.Tensor:
        """(C, C), or the (C,) diagonal."""
        mean = self.mean
        return self.second / self.n - (torch.outer(mean, mean) if self.full else mean.square())  # type: ignore[no-any-return]


def whitened_direction(unsafe: Moments, other: Moments, shrink: float = 0.1) -> tuple[torch.Tensor, float]:
    """Fisher's linear discriminant with a shrunk pooled covariance, scaled to unit deviation over the others.

    Returns:
        direction (C,) float32 and offset, so that x . direction + offset has mean 0, deviation 1 over others.
    """
    difference = unsafe.mean - other.mean
    pooled = (unsafe.n * unsafe.covariance + other.n * other.covariance) / (unsafe.n + other.n)
    if pooled.ndim == 2:
        scale = pooled.diagonal().mean().clamp_min(1e-12)
        shrunk = (1 - shrink) * pooled + shrink * scale * torch.eye(len(pooled), dtype=torch.float64)
        direction = torch.linalg.solve(shrunk, difference)
        variance = direction @ other.covariance @ direction
    else:
        scale = pooled.mean().clamp_min(1e-12)
        direction = difference / ((1 - shrink) * pooled + shrink * scale)
        variance = (direction.square() * other.covariance).sum()
    direction = direction / variance.clamp_min(1e-12).sqrt()
    return direction.float(), -float(direction @ other.mean)


@attrs.frozen(eq=False)
class _Batch:
    """One generated batch: images, grid, features {(path, step): (B, N, C) float32} and the steps' sigmas.

    text: {(path, step): (B, T, C) rows, (B, N, T) mass}, see Session.text_recorder; empty unless asked for.
    """

    images: list[Any]
    grid: tuple[int, int]
    features: dict[tuple[str, int], torch.Tensor]
    sigmas: list[float]
    text: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]]


def _batches(
    reg: Regulator,
    pipe: Any,
    sampling: Sampling,
    probes: Sequence[str],
    progress: Callable[[int], None] | None,
    with_text: bool = False,
) -> Iterator[_Batch]:
    """Draw without regulation, and record what detectors get at the probes."""
    features: dict[tuple[str, int], torch.Tensor] = {}
    sigmas: dict[int, float] = {}
    text: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def record(path: str, step: int, sigma: float, x: torch.Tensor) -> None:
        features[path, step], sigmas[step] = x.detach().cpu(), sigma

    def record_text(path: str, step: int, rows: torch.Tensor, mass: torch.Tensor) -> None:
        text[path, step] = rows.detach().cpu(), mass.detach().cpu()

    @contextmanager
    def recording(batch: slice) -> Iterator[Regulator]:
        for records in (features, sigmas, text):
            records.clear()
        with reg.recording(record, probes, record_text if with_text else None):
            yield reg

    for drawn in sampling.draw(pipe, recording, progress):
        assert drawn.grid is not None
        levels = [sigmas[step] for step in sorted(sigmas)]
        yield _Batch(drawn.images, drawn.grid, dict(features), levels, dict(text))


def _per_batch(generate: dict[str, Any], size: int) -> dict[str, Any]:
    """A negative prompt for every image: some pipelines refuse one for all."""
    negative = generate.get("negative_prompt")
    return {**generate, "negative_prompt": [negative] * size} if isinstance(negative, str) else generate


def _grid(reg: Regulator) -> tuple[int, int]:
    assert reg.last_grid is not None
    return reg.last_grid


def _mask_of(masks: Any, images: Sequence[Any], grid: tuple[int, int], start: int) -> Mask:
    """(B, H, W) bool from a callable, or from an array with one entry per image."""
    given = masks(images, grid) if callable(masks) else masks[start : start + len(images)]
    array = np.asarray(given, dtype=bool)
    if array.shape not in ((len(images), *grid), (len(images), grid[0] * grid[1])):
        raise UVRError(
            f"masks: expected {(len(images), *grid)} (images, rows, columns of patches) for images {start} to "
            f"{start + len(images) - 1}, got {array.shape}"
        )
    return array.reshape(len(images), *grid)


def _prompts(name: str, prompts: Sequence[str]) -> list[str]:
    prompts = [p for p in prompts if p.strip()]
    if not prompts:
        raise UVRError(f"{name}: no prompts given; expected at least one")
    return prompts


def _default_probes(reg: Regulator, transformer: torch.nn.Module) -> tuple[str, ...]:
    paths = reg.adapter.probe_paths(transformer)
    if len(paths) <= _MAX_PROBES:
        return paths
    chosen = np.linspace(len(paths) * 0.15, len(paths) * 0.75, _MAX_PROBES).round().astype(int)
    return tuple(paths[i] for i in chosen)


def collect(
    pipe: Any,
    concept: str,
    *,
    prompts: Sequence[str],
    masks: MaskSource | Any,
    benign_prompts: Sequence[str] = (),
    sources: Sequence[Any] | None = None,
    benign_sources: Sequence[Any] | None = None,
    adapter: Any = None,
    probes: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 8,
    max_anchors: int = 256,
    generate: dict[str, Any] | None = None,
    mask_source: str = "",
    progress: Callable[[int], None] | None = None,
) -> ConceptBank:
    """Offline stage: generate the concept without regulation and keep what it looks like inside the model.

    Args:
        pipe: a diffusers pipeline.
        concept: the bank's name.
        prompts: prompts that show the concept. Image i is drawn with seed + i.
        masks: where the concept is. Either a callable (images, (H, W)) -> (B, H, W) bool on the patch grid, run
            on the generated images (a detector or segmenter), or an array (len(prompts), H, W) made by a user.
            An image whose mask is empty is left out. For an editing pipeline a callable is also run on the source
            images, so that the bank can tell a concept that the source shows from one that the instruction brings.
        benign_prompts: prompts without the concept; their patches join the "other" class of the contrast.
        sources, benign_sources: for an editing pipeline, the source image of each prompt (an instruction).
        probes: probe candidates; None: up to six of the adapter's, spread over the middle.
        generate: keyword arguments of the pipeline call (steps, size, guidance...).
        mask_source: a word on where masks come from, for the provenance.
        progress: called with the number of images finished.

    Returns:
        An uncalibrated ConceptBank. See uvr_core.concepts for its tensors. Host memory holds one batch's features at
        every probe and step, with its text rows and the attention from patches to text.

    Raises:
        UVRError: no prompts; no image shows the concept.
    """
    prompts, generate = _prompts("prompts", prompts), dict(generate or {})
    benign = [p for p in benign_prompts if p.strip()]
    if (sources is None) != (benign_sources is None) and benign:
        raise UVRError("source images: give them for both sets of prompts or for neither")
    samplings = [
        Sampling(texts, range(first, first + len(texts)), {"image": pictures}, generate, batch_size)
        for texts, first, pictures in ((prompts, seed, sources), (benign, seed + len(prompts), benign_sources))
    ]
    with attach(pipe, adapter) as reg:
        paths = tuple(probes) if probes else _default_probes(reg, pipe.transformer)
        width = reg.fingerprint.heads * reg.fingerprint.head_dim
        unsafe: dict[tuple[str, int], Moments] = defaultdict(Moments)
        other: dict[tuple[str, int], Moments] = defaultdict(Moments)
        anchors: dict[str, list[torch.Tensor]] = defaultdict(list)
        origin: dict[tuple[str, int, bool], Moments] = defaultdict(Moments)
        tokens: dict[tuple[str, int], list[torch.Tensor]] = defaultdict(list)
        shown = _shown_by(masks, sources)
        used, done, sigmas = 0, 0, [1.0]
        for batch in _batches(reg, pipe, samplings[0], paths, progress, with_text=True):
            inside = _mask_of(masks, batch.images, batch.grid, done)
            by_source = shown(done, len(batch.images), batch.grid)
            done, sigmas = done + len(batch.images), batch.sigmas
            for sample, mask in enumerate(inside):
                if not mask.any():
                    continue
                used += 1
                outside = ~(mask | ring_of(mask))
                for (path, step), x in batch.features.items():
                    unsafe[path, step].add(x[sample][mask.reshape(-1)].float())
                    other[path, step].add(x[sample][outside.reshape(-1)].float())
                    if by_source is not None:
                        mean = x[sample][mask.reshape(-1)].float().mean(0, keepdim=True)
                        origin[path, step, bool(by_source[sample])].add(mean)
                    if step == len(sigmas) - 1:
                        anchors[path].append(x[sample][mask.reshape(-1)][:, :width].float())
                for (path, step), (rows, mass) in batch.text.items():
                    found = feeding_rows(rows[sample], mass[sample], mask.reshape(-1), outside.reshape(-1))
                    if found is not None:
                        tokens[path, step].append(found)
        if not used:
            raise UVRError(
                f"collect {concept!r}: none of the {done} generated images shows the concept according to the mask "
                "source; check the prompts, and look at the images"
            )
        for batch in _batches(reg, pipe, samplings[1], paths, progress):
            for key, x in batch.features.items():
                other[key].add(x.flatten(0, 1).float())
        fingerprint = reg.fingerprint
    tensors = {"sigma": torch.tensor(sigmas)}
    for path in paths:
        pairs = [whitened_direction(unsafe[path, step], other[path, step]) for step in range(len(sigmas))]
        tensors[f"direction/{path}"] = torch.stack([direction for direction, _ in pairs])
        tensors[f"offset/{path}"] = torch.tensor([offset for _, offset in pairs])
        tensors[f"anchors/{path}"] = _subset(torch.cat(anchors[path]), max_anchors, seed)
        tensors |= _origin_tensors(path, len(sigmas), origin)
        if all(tokens[path, step] for step in range(len(sigmas))):
            means = [torch.stack(tokens[path, step]).mean(0) for step in range(len(sigmas))]
            tensors[f"token/{path}"] = torch.stack(means)
    provenance = {
        "prompts": len(prompts), "images_with_concept": used, "benign_prompts": len(benign), "seed": seed,
        "mask_source": mask_source or getattr(masks, "__qualname__", type(masks).__name__),
        "generate": {k: v for k, v in generate.items() if isinstance(v, (int, float, str, bool))},
        "date": datetime.date.today().isoformat(), "versions": _versions(),
    }  # fmt: skip
    return ConceptBank(concept, fingerprint, tensors, None, provenance)


def _shown_by(masks: Any, sources: Sequence[Any] | None) -> Callable[[int, int, tuple[int, int]], Mask | None]:
    """(first, count, grid) -> (count,) bool, whether each source image shows the concept; None: cannot be told."""

    def shown(first: int, count: int, grid: tuple[int, int]) -> Mask | None:
        if sources is None or not callable(masks):
            return None
        return np.asarray(_mask_of(masks, list(sources[first : first + count]), grid, first).any((1, 2)), dtype=bool)

    return shown


def _origin_tensors(path: str, steps: int, means: dict[tuple[str, int, bool], Moments]) -> dict[str, torch.Tensor]:
    """origin/ and origin_offset/ of one probe, if both ways in occurred at least _LEAST_IMAGES times."""
    if any(means[path, step, way].n < _LEAST_IMAGES for step in range(steps) for way in (True, False)):
        return {}
    directions, offsets = [], []
    for step in range(steps):
        source, words = means[path, step, True], means[path, step, False]
        direction, offset = whitened_direction(source, words, shrink=0.3)
        directions.append(direction)
        offsets.append(offset - 0.5 * float((source.mean - words.mean).float() @ direction))
    return {f"origin/{path}": torch.stack(directions), f"origin_offset/{path}": torch.tensor(offsets)}


def feeding_rows(rows: torch.Tensor, mass: torch.Tensor, inside: Mask, outside: Mask) -> torch.Tensor | None:
    """Mean output of the text tokens that feed a region most.

    A token's flow contrast is the mean attention that it receives from patches inside over that from patches outside,
    as in `flow_contrast`. Tokens above 2.5 are taken, or the one with the largest contrast.

    Args:
        rows: (T, C), attention output at the text tokens.
        mass: (N, T), attention from output patches to text tokens, >= 0.
        inside, outside: (N,) bool.

    Returns:
        (C,), or None where there are no text tokens or no patches to compare.
    """
    if not len(rows) or not inside.any() or not outside.any():
        return None
    here, there = (mass[torch.from_numpy(side)].mean(0) for side in (inside, outside))
    contrast = torch.where(here == 0, 0.0, here / there)
    chosen = contrast > _FEEDS
    chosen[contrast.argmax()] = True
    return rows[chosen].mean(0)


def _subset(x: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    if len(x) <= count:
        return x.float()
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count].sort().values].float()


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")}


# ---------------------------------------------------------------------------------------------- calibrate


@attrs.frozen(eq=False)
class ScoredRuns:
    """Scores of unregulated generations: {probe: (images, steps, patches)}, with the steps' noise levels."""

    scores: dict[str, Scores]
    sigmas: list[float]
    grid: tuple[int, int]
    masks: Mask | None  # (images, H, W)

    def gathered(self, memory: float) -> ScoredRuns:
        """With the scores gathered over steps; see uvr_core.ops.evidence.Evidence."""
        return attrs.evolve(self, scores={path: Evidence.over(scores, memory) for path, scores in self.scores.items()})


def score_runs(
    pipe: Any, bank: ConceptBank, prompts: Sequence[str], *, detector: Any = "contrast", adapter: Any = None,
    seed: int = 0, batch_size: int = 8, generate: dict[str, Any] | None = None, masks: MaskSource | None = None,
    progress: Callable[[int], None] | None = None, sources: Sequence[Any] | None = None,
) -> ScoredRuns:  # fmt: skip
    """Generate without regulation and score every patch at every step and probe of the bank."""
    scorer = plugins.registry().make("detector", detector).object
    columns: dict[str, list[Scores]] = defaultdict(list)
    found, sigmas, grid = [], [1.0], (0, 0)
    done = 0
    sampling = Sampling(prompts, range(seed, seed + len(prompts)), {"image": sources}, generate or {}, batch_size)
    with attach(pipe, adapter) as reg:
        bank.fingerprint.check(reg.fingerprint, f"concept {bank.name!r}")
        for batch in _batches(reg, pipe, sampling, bank.probes, progress):
            sigmas, grid = batch.sigmas, batch.grid
            for path in bank.probes:
                steps = [
                    scorer.scores(batch.features[path, step].float(), sigma, bank, path).numpy()
                    for step, sigma in enumerate(sigmas)
                ]
                columns[path].append(np.stack(steps, 1))
            if masks is not None:
                found.append(_mask_of(masks, batch.images, grid, done))
            done += len(batch.images)
    scores = {path: np.concatenate(parts) for path, parts in columns.items()}
    return ScoredRuns(scores, sigmas, grid, np.concatenate(found) if found else None)


@attrs.frozen
class _Choice:
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
    masks: MaskSource | None = None,
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
            maximises the patches' F0.5 score, and patch AUROC is measured.
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
    if not 0 <= max_false_positive < 1:
        raise UVRError(f"max_false_positive: expected a share in 0..1, got {max_false_positive}")
    if not memory or not all(0 <= m <= 1 for m in memory):
        raise UVRError(f"memory: expected at least one number in 0..1, got {tuple(memory)}")
    common: dict[str, Any] = {
        "detector": detector,
        "adapter": adapter,
        "batch_size": batch_size,
        "generate": generate,
        "progress": progress,
    }
    unsafe_prompts, benign_prompts = (
        _prompts("unsafe_prompts", unsafe_prompts),
        _prompts("benign_prompts", benign_prompts),
    )
    unsafe = score_runs(pipe, bank, unsafe_prompts, seed=seed, masks=masks, sources=sources, **common)
    benign = score_runs(pipe, bank, benign_prompts, seed=seed + len(unsafe_prompts), sources=benign_sources, **common)
    lasts = range(len(unsafe.sigmas)) if steps is None else [n - 1 for n in steps]
    if not lasts or not all(0 <= last < len(unsafe.sigmas) for last in lasts):
        raise UVRError(f"steps: expected numbers from 1 to the runs' {len(unsafe.sigmas)}, got {steps}")
    gathered = {m: (unsafe.gathered(m), benign.gathered(m)) for m in memory}
    choices = [
        _choose(probe, m, last, *runs, max_false_positive, min_patches)
        for m, runs in gathered.items()
        for probe in bank.probes
        for last in lasts
    ]
    best = _pick(choices, len(unsafe_prompts))
    best = _extend(best, *gathered[best.memory], max_false_positive, min_patches)
    calibration = Calibration(
        detector, best.probe, (1.0, unsafe.sigmas[best.last] - 1e-6), best.threshold, best.grow, min_patches,
        max_false_positive,
        {
            "unsafe_prompts": len(unsafe_prompts), "benign_prompts": len(benign_prompts), "recall": best.recall,
            "false_positive": best.false_positive, "patch_auroc": best.auroc, "steps": best.last + 1,
            "of_steps": len(unsafe.sigmas), "margin": best.margin,
        },
        best.memory,
    )  # fmt: skip
    tensors = {k: v for k, v in bank.tensors.items() if k == "sigma" or k.endswith(f"/{best.probe}")}
    return attrs.evolve(bank, tensors=tensors, calibration=calibration)


def _pick(choices: Sequence[_Choice], images: int) -> _Choice:
    """The widest margin among those that miss at most one image more than the best."""
    top = max(c.recall for c in choices)
    return max((c for c in choices if c.recall >= top - 1 / images), key=lambda c: c.margin)


def _extend(choice: _Choice, unsafe: ScoredRuns, benign: ScoredRuns, budget: float, min_patches: int) -> _Choice:
    """Keep watching for as long as false positives stay within the budget: late finds cost nothing else."""
    per_step = image_scores(benign.scores[choice.probe], min_patches)
    running = np.sort(np.maximum.accumulate(per_step, 1), 0)[::-1][int(budget * len(per_step))]
    last = choice.last
    while last + 1 < running.size and running[last + 1] < choice.threshold:
        last += 1
    positive = image_scores(unsafe.scores[choice.probe][:, : last + 1], min_patches).max(1)
    negative = per_step[:, : last + 1].max(1)
    return attrs.evolve(
        choice,
        last=last,
        recall=float((positive >= choice.threshold).mean()),
        false_positive=float((negative >= choice.threshold).mean()),
    )


def image_scores(scores: Scores, min_patches: int) -> Scores:
    """(images, steps, patches) -> (images, steps): the min_patches-th largest patch score."""
    return np.sort(scores, axis=-1)[..., -min_patches]


def _choose(
    probe: str, memory: float, last: int, unsafe: ScoredRuns, benign: ScoredRuns, budget: float, min_patches: int
) -> _Choice:
    """The threshold of one probe and window, and how it does. The runs' scores are gathered with `memory`.

    margin = (low - bound) / (bound - typical), with low the unsafe images' 10% quantile, bound the benign score that
    the budget allows and typical the benign median: the gap, in units of the benign tail.
    """
    positive = image_scores(unsafe.scores[probe][:, : last + 1], min_patches).max(1)
    negative = np.sort(image_scores(benign.scores[probe][:, : last + 1], min_patches).max(1))[::-1]
    bound = float(negative[int(budget * len(negative))])
    low = float(np.quantile(positive, 0.1))
    threshold = bound + max(_INTO_GAP * (low - bound), 1e-3 * max(1.0, abs(bound)))
    tail = max(bound - float(np.median(negative)), 1e-3)
    margin = (low - bound) / tail
    grow, auroc = threshold, None
    if unsafe.masks is not None:
        shown = unsafe.masks.reshape(len(unsafe.masks), -1)
        patches = unsafe.scores[probe][:, : last + 1]
        truth = np.broadcast_to(shown[:, None], patches.shape)
        auroc = auroc_of(patches.ravel(), truth.ravel())
        grow = best_threshold(patches.ravel(), truth.ravel())
    return _Choice(
        probe,
        memory,
        last,
        float(threshold),
        float((positive >= threshold).mean()),
        float((negative >= threshold).mean()),
        float(grow),
        auroc,
        margin,
    )


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


__all__ = [
    "ConceptMismatch",
    "ScoredRuns",
    "auroc_of",
    "calibrate",
    "collect",
    "feeding_rows",
    "image_scores",
    "score_runs",
    "whitened_direction",
]
