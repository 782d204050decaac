"""What flows where, block by block and step by step, and whether the stages that UVR describes are there.

UVR, arXiv 2606.06875, eq. flow: A^{X->Y} = 1 / (|X||Y|) sum_{i in X, j in Y} a(i, j), with a(i, j) the attention weight
of query i on key j. By that formula X reads and Y is read: information moves from Y's tokens into X's. The paper's
words go the other way ("text->output": the prompt's meaning enters the picture), and so do the names here: the flow
"text to output" is that of output queries on text keys, `share[..., OUTPUT, TEXT]`, the formula's A^{output->text}.

Attention weights say where a token looks, not what it takes from there: values and the blocks' gates are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch

from . import plugins
from .concepts import ConceptBank
from .engine.attach import attach
from .engine.readings import features as features_of
from .errors import UVRError, did_you_mean
from .fit.regions import MaskSource, mask_of
from .intercept.calls import JointCall
from .ops.evidence import Evidence, Scores
from .ops.masks import Mask
from .ops.mass import mass_on
from .sampling import Sampling, nonblank
from .tokens import Role

Array = npt.NDArray[np.floating[Any]]
ROLES = ("text", "output", "reference", "located", "rest")
TEXT, OUTPUT, REFERENCE, LOCATED, REST = range(5)

# The stage rules' constants.
LEAST_IMAGES, LEAST_STEPS = 5, 4
LEAST_CHANGE = 0.1  # of the larger of the first and the last level
LEAST_ABRUPT = 0.5  # of the whole change, within a quarter of the steps
LEAST_LIFT = 0.5  # of what uniform attention would give


# ---------------------------------------------------------------------------------------------- measuring


@attrs.frozen(eq=False)
class Flows:
    """The flows of a set of images, in their conditional pass (the one that follows the prompt).

    Attributes:
        share: (I, T, L, 5, 5) float32 in 0..1, image, step, block, query role, key role, in the order of ROLES: the
            attention that a token of the query role pays to all tokens of the key role, mean over its tokens and heads,
            1/|X| sum_{i in X} sum_{j in Y} a(i, j). Over text, output and reference keys it sums to 1. "located" and
            "rest" are the output patches inside and outside of the image's mask. NaN where the query role has no
            tokens, and for what the masks came too late to tell.
        counts: (I, 5) int64, tokens of each role. Text that the model's own mask hides is no token.
        blocks: paths of the L blocks, in order of execution.
        sigmas: T noise levels, 1 = pure noise.
        grid: (H, W) of the output patches.
        images: the I pictures, bitwise those that the pipeline draws by itself.
        masks: (I, H, W) bool, where the concept is; None if it was not asked for.
        scores: {probe: (I, T, H * W) float32}, what the detector said; empty without a bank.
        seconds: what the pipeline calls took, the measuring included.
    """

    share: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    blocks: tuple[str, ...]
    sigmas: list[float]
    grid: tuple[int, int]
    images: list[Any]
    masks: Mask | None = None
    scores: dict[str, Scores] = attrs.field(factory=dict)
    seconds: float = 0.0

    @property
    def density(self) -> npt.NDArray[np.float32]:
        """(I, T, L, 5, 5): the paper's A^{X->Y} with X the query role and Y the key role; NaN where either is empty."""
        keys = np.where(self.counts == 0, np.nan, self.counts)[:, None, None, None, :]
        return np.asarray(self.share / keys, dtype=np.float32)

    @property
    def lift(self) -> npt.NDArray[np.float32]:
        """(I, T, L, 5, 5): attention per key token in units of uniform attention over all keys; 1 = no preference."""
        everything = self.counts[:, : REFERENCE + 1].sum(1)[:, None, None, None, None]
        return np.asarray(self.density * everything, dtype=np.float32)

    def curve(self, source: str, into: str, of: str = "share") -> Array:
        """(I, T) flow from role `source` into role `into`, mean over blocks. `of`: "share", "density" or "lift".

        Raises:
            UVRError: an unknown role.
        """
        return self.by_block(source, into, of).mean(2)  # type: ignore[no-any-return]

    def by_block(self, source: str, into: str, of: str = "share") -> Array:
        """(I, T, L), as `curve`."""
        values: Array = getattr(self, of)
        return values[..., _role(into), _role(source)]

    def directions(self) -> list[tuple[str, str]]:
        """(source, into) of every flow that was measured in some image, in the order of ROLES."""
        measured, there = np.isfinite(self.share[:, 0, 0]), self.counts > 0
        known = np.asarray((measured & there[:, None]).any(0))  # (query, key)
        return [(ROLES[key], ROLES[query]) for query in range(5) for key in range(5) if known[query, key]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: per direction the curve with its band, the block by step means, and the stage boundary."""
        directions = {}
        for source, into in self.directions():
            curve = self.curve(source, into)
            directions[f"{source} to {into}"] = {
                "images": int(np.isfinite(curve).all(1).sum()),
                **{name: _rounded(line) for name, line in zip(("mean", "low", "high"), band(curve), strict=True)},
                "lift": _rounded(_mean(self.curve(source, into, "lift"))),
                "by_step_and_block": _rounded(_mean(self.by_block(source, into))),
                "boundary": attrs.asdict(boundary(curve)),
                "boundary_by_block": [boundary(line).step for line in np.moveaxis(self.by_block(source, into), 2, 0)],
            }
        return {
            "images": len(self.images), "steps": len(self.sigmas), "sigmas": _rounded(np.asarray(self.sigmas)),
            "blocks": list(self.blocks), "grid": list(self.grid),
            "tokens": {role: _rounded(self.counts[:, i].mean()) for i, role in enumerate(ROLES)},
            "directions": directions,
            "stages": {
                into: {name: attrs.asdict(stage) for name, stage in stages(self, into).items()}
                for into in ("output", "located") if into == "output" or self.masks is not None
            },
            "localisation": {
                probe: {**attrs.asdict(found), "auroc": _rounded(found.auroc), "low": _rounded(found.low),
                        "high": _rounded(found.high)}
                for probe, found in localisation(self).items()
            },
            "seconds": round(self.seconds, 3),
        }  # fmt: skip


def flows(
    pipe: Any,
    prompts: Sequence[str],
    sources: Sequence[Any] | None = None,
    *,
    masks: MaskSource | Any = None,
    bank: ConceptBank | None = None,
    detector: Any = None,
    adapter: Any = None,
    seed: int | Sequence[int] = 0,
    batch_size: int = 8,
    generate: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Flows:
    """Generate, unregulated, and measure the flows of UVR, arXiv 2606.06875, eq. flow, at every block and step.

    One fused call more per attention call, with one-hot roles in the place of V; the attention matrix is never held.

    Args:
        pipe: a diffusers pipeline.
        prompts: one per image.
        sources: for an editing pipeline, the source image of each prompt (an instruction).
        masks: where the concept is. A callable (images, (H, W)) -> (B, H, W) bool is asked about the generated images:
            then the flows into located patches are told apart, and those out of them are not. An array (I, H, W) bool,
            known before, tells both apart.
        bank: a concept to localise; its detector's scores at every step and probe of the bank are kept.
        detector: registered name or object; None: the bank's own ("contrast" if it is not calibrated).
        seed: image i is drawn with seed + i; or the seeds themselves.
        generate: keyword arguments of the pipeline call (steps, size, guidance...).
        progress: called with the number of images finished.

    Returns:
        Flows. Host memory holds, with callable masks, one batch's masses of every patch at every step and block
        (3 float32 each), and with a bank one batch's features at its probes.

    Raises:
        UVRError: no prompts, or prompts, sources, masks, seeds and images do not match in number or size.
        ConceptMismatch: the bank was made for another model.
    """
    prompts = nonblank("prompts", prompts)
    seeds = list(range(seed, seed + len(prompts))) if isinstance(seed, int) else list(seed)
    sampling = Sampling(prompts, seeds, {"image": sources}, generate or {}, batch_size)
    if masks is not None and not callable(masks) and len(masks) != len(prompts):
        raise UVRError(f"masks: expected one per prompt, got {len(masks)} for {len(prompts)} prompts")
    found = _detector(detector, bank)
    parts: list[Flows] = []
    with attach(pipe, adapter) as reg:
        if bank is not None:
            bank.fingerprint.check(reg.fingerprint, f"concept {bank.name!r}")
        probes = bank.probes if bank is not None else reg.taps[:1]
        for batch in sampling.batches():
            ahead = None if masks is None or callable(masks) else np.asarray(masks[batch], dtype=bool)
            recorder = _Recorder(ahead, callable(masks))
            features: dict[tuple[str, int], torch.Tensor] = {}
            sigmas: dict[int, float] = {}

            def read(call: JointCall, into=features, at=sigmas, masses=recorder) -> None:  # type: ignore[no-untyped-def]
                if call.tap in probes:
                    into[call.tap, call.forward.step] = features_of(call).detach().cpu()
                    at[call.forward.step] = call.forward.sigma
                masses(call)

            began = time.perf_counter()
            with torch.no_grad(), reg.recording(read):
                images = list(pipe(**sampling.arguments(batch)).images)
            seconds = time.perf_counter() - began
            assert reg.last_grid is not None
            grid, levels = reg.last_grid, [sigmas[step] for step in sorted(sigmas)]
            shown = None if masks is None else mask_of(masks, images, grid, batch.start)
            share, counts = recorder.result(reg.taps, len(levels), shown)
            if len(images) != len(share):
                raise UVRError(f"expected one image per prompt, got {len(images)} for {len(share)} prompts")
            scores = {}
            if bank is not None and found is not None:
                known = bank.calibration
                memory = known.memory if known is not None and known.detector == getattr(found, "name", "") else 0.0
                scores = {
                    path: Evidence.over(np.stack([
                        found.scores(features[path, step].float(), sigma, bank, path).numpy()
                        for step, sigma in enumerate(levels)
                    ], 1), memory)
                    for path in bank.probes
                }  # fmt: skip
            parts.append(Flows(share, counts, reg.taps, levels, grid, images, shown, scores, seconds))
            if progress is not None:
                progress(len(images))
    return _joined(parts)


def _detector(given: Any, bank: ConceptBank | None) -> Any:
    if bank is None:
        return None
    name = given or (bank.calibration.detector if bank.calibration else "contrast")
    return plugins.registry().make("detector", name).object


def _joined(parts: Sequence[Flows]) -> Flows:
    """One set of images from batches of it."""
    first = parts[0]
    for part in parts[1:]:
        if (part.grid, len(part.sigmas)) != (first.grid, len(first.sigmas)):
            raise UVRError(
                f"batches differ: {first.grid} patches in {len(first.sigmas)} steps, then {part.grid} in "
                f"{len(part.sigmas)}; give pictures of one size"
            )
    return attrs.evolve(
        first,
        share=np.concatenate([part.share for part in parts]),
        counts=np.concatenate([part.counts for part in parts]),
        images=[image for part in parts for image in part.images],
        masks=None if first.masks is None else np.concatenate([part.masks for part in parts if part.masks is not None]),
        scores={probe: np.concatenate([part.scores[probe] for part in parts]) for probe in first.scores},
        seconds=sum(part.seconds for part in parts),
    )


class _Recorder:
    """Masses of one batch: a Reader. `located` (B, H, W) are masks known ahead; `patches`: keep every
    output patch's masses, for masks that come later."""

    def __init__(self, located: Mask | None, patches: bool):
        self._known = None if located is None else torch.from_numpy(located.reshape(len(located), -1))
        self._patches = patches
        self._means: dict[tuple[str, int], torch.Tensor] = {}  # (B, 5, M), M = 3, or 4 with located keys
        self._rows: dict[tuple[str, int], torch.Tensor] = {}  # (B, N, 3), on the host
        self._seen: torch.Tensor | None = None  # the mask that `_roles` was made for
        self._roles: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __call__(self, call: JointCall) -> None:
        key, step = call.key, call.forward.step
        if self._roles is None or call.mask is not self._seen:
            self._roles, self._seen = self._roles_of(call), call.mask
        average, weight, _ = self._roles
        mass = mass_on(call.query, key, weight, attn_mask=call.mask, scale=call.scale)  # (B, H, Sq, M)
        mass = mass.mean(1, dtype=torch.float32)
        self._means[call.tap, step] = average @ mass
        if self._patches:
            self._rows[call.tap, step] = mass[:, call.queries.output].cpu()

    def _roles_of(self, call: JointCall) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Averages over query roles (B, 5, Sq), one-hot key roles (B, Sk, M), and tokens of each key role (B, 5)."""
        batch, device, key, queries, keys = call.query.shape[0], call.query.device, call.key, call.queries, call.keys
        on_query = torch.zeros(batch, 5, call.query.shape[2], device=device)
        on_key = torch.zeros(batch, 5, key.shape[2], device=device)
        for role in Role:
            on_query[:, role, queries[role]] = 1.0
            on_key[:, role, keys[role]] = 1.0
        if self._known is not None:
            inside = self._known.to(device)
            if inside.shape != (batch, queries.output.stop - queries.output.start):
                raise UVRError(
                    f"masks: expected one patch each for ({batch}, {queries.output.stop - queries.output.start}) "
                    f"output patches, got {tuple(inside.shape)}"
                )
            for on, span in ((on_query, queries.output), (on_key, keys.output)):
                on[:, LOCATED, span], on[:, REST, span] = inside.float(), (~inside).float()
        if call.mask is not None:
            hidden = ~_seen_keys(call)
            on_key.masked_fill_(hidden[:, None], 0.0)
            if call.query.shape[2] == key.shape[2]:  # what nobody reads is no token, and does not count as a reader
                on_query.masked_fill_(hidden[:, None], 0.0)
        columns = LOCATED + 1 if self._known is not None else LOCATED
        average = on_query / on_query.sum(2, keepdim=True).clamp(min=1)
        return average, on_key[:, :columns].transpose(1, 2), on_key.sum(2)

    def result(
        self, blocks: Sequence[str], steps: int, shown: Mask | None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """`share` (B, T, L, 5, 5) and `counts` (B, 5) of the batch; `shown` (B, H, W): the masks, if there are any."""
        assert self._roles is not None
        stacked = torch.stack([self._means[path, step] for step in range(steps) for path in blocks], 1).cpu().numpy()
        batch, _, _, columns = stacked.shape
        share = np.full((batch, steps, len(blocks), 5, 5), np.nan, np.float32)
        share[..., :columns] = stacked.reshape(batch, steps, len(blocks), 5, columns)
        counts = self._roles[2].cpu().numpy().astype(np.int64)
        if columns > LOCATED:
            share[..., REST] = share[..., OUTPUT] - share[..., LOCATED]
        if self._patches and shown is not None:
            inside = torch.from_numpy(shown.reshape(batch, -1))
            sides = torch.stack([inside, ~inside], 1).float()  # (B, 2, N)
            counts[:, LOCATED:] = sides.sum(2).numpy()
            sides = sides / sides.sum(2, keepdim=True).clamp(min=1)
            for index, path in enumerate(blocks):
                for step in range(steps):
                    share[:, step, index, LOCATED:, :LOCATED] = (sides @ self._rows[path, step]).numpy()
        empty = np.broadcast_to((counts == 0)[:, None, None, :, None], share.shape)
        share[empty] = np.nan
        return share, counts


def _seen_keys(call: JointCall) -> torch.Tensor:
    """(B, Sk) bool: the keys that some query may read."""
    mask = call.mask
    assert mask is not None
    seen = mask if mask.dtype == torch.bool else mask.float().exp() > 0
    return seen.any(1).any(1).expand(call.query.shape[0], call.keys.tokens)


def _role(name: str) -> int:
    if name not in ROLES:
        raise UVRError(f"unknown role {name!r}{did_you_mean(name, ROLES)}")
    return ROLES.index(name)


# ---------------------------------------------------------------------------------------------- summaries


def band(curves: Array, resamples: int = 1000) -> tuple[Array, Array, Array]:
    """Mean over images with its 95% bootstrap band; images with a NaN are left out.

    Args:
        curves: (I, T).

    Returns:
        mean, low, high, (T,) each; NaN where no image is left.
    """
    whole = curves[np.isfinite(curves).all(1)]
    if not len(whole):
        nothing = np.full(curves.shape[1], np.nan)
        return nothing, nothing, nothing
    low, high = np.quantile(_bootstrap(len(whole), resamples) @ whole, (0.025, 0.975), axis=0)
    return whole.mean(0), low, high


def _bootstrap(images: int, resamples: int) -> Array:
    """(resamples, images): how much of a mean each image is, in each resample of them; always the same draws."""
    drawn = np.random.default_rng(0).integers(images, size=(resamples, images))
    return np.stack([np.bincount(row, minlength=images) for row in drawn]) / images


def _mean(values: Array) -> Array:
    """Mean over images (axis 0), without those that have a NaN anywhere."""
    whole = values[np.isfinite(values).reshape(len(values), -1).all(1)]
    return whole.mean(0) if len(whole) else np.full(values.shape[1:], np.nan)


def _rounded(values: Any) -> Any:
    """Lists of floats with 6 significant digits; None for NaN."""
    if np.ndim(values):
        return [_rounded(value) for value in values]
    return float(f"{float(values):.6g}") if np.isfinite(values) else None


@attrs.frozen(eq=False)
class Localisation:
    """How well a detector tells a concept's patches from the others, step by step.

    Attributes:
        auroc: (T,) area under the ROC curve over all patches of all images that show the concept.
        low, high: (T,) its 95% bootstrap band over images.
        images: how many show it.
    """

    auroc: Array
    low: Array
    high: Array
    images: int


def localisation(found: Flows, resamples: int = 1000) -> dict[str, Localisation]:
    """Patch AUROC per probe and step against the masks; {} without masks, scores or an image that shows the concept.

    Ties count half. The area is a mean over pairs of images, one giving the patches inside and one those outside, by
    which a bootstrap over images costs no second ranking. Images that the mask fills or leaves empty are left out.
    """
    if found.masks is None:
        return {}
    inside = found.masks.reshape(len(found.masks), -1)
    use = np.flatnonzero(inside.any(1) & ~inside.all(1))
    if not len(use):
        return {}
    inside = inside[use]
    weights = _bootstrap(len(use), resamples) * len(use)
    hits, others = inside.sum(1), (~inside).sum(1)
    sizes = np.outer(hits, others)
    result = {}
    for probe, scores in found.scores.items():
        value, low, high = [], [], []
        for step in range(scores.shape[1]):
            wins = _wins(scores[use, step], inside)
            value.append(wins.sum() / sizes.sum())
            resampled = _pairs(weights, wins) / _pairs(weights, sizes)
            low.append(np.quantile(resampled, 0.025))
            high.append(np.quantile(resampled, 0.975))
        result[probe] = Localisation(np.array(value), np.array(low), np.array(high), len(use))
    return result


def _wins(scores: Scores, inside: Mask) -> Array:
    """(I, I): how many pairs of a patch inside of image i and one outside of image j are in the right order."""
    return np.array([
        [_below(np.sort(theirs[~out]), mine[own]) for theirs, out in zip(scores, inside, strict=True)]
        for mine, own in zip(scores, inside, strict=True)
    ])  # fmt: skip


def _below(others: Array, values: Array) -> float:
    return 0.5 * float(np.searchsorted(others, values).sum() + np.searchsorted(others, values, "right").sum())


def _pairs(weights: Array, table: Array) -> Array:
    return np.asarray(np.einsum("ri,ij,rj->r", weights, table, weights))


# ---------------------------------------------------------------------------------------------- stages


@attrs.frozen
class Boundary:
    """Where a curve over steps changes over from its first level to its last.

    Attributes:
        step: the first step of the new level; None: no boundary.
        interval: 95% bootstrap interval of the step, (low, high); None where there is no boundary.
        change: (last - first) / max(|first|, |last|), the image-averaged curve's first and last step, in -1..1 for
            curves that are nowhere negative: below 0 = it falls.
        change_interval: its 95% bootstrap interval.
        abrupt: the part of the whole change that lies in the fastest quarter of the steps around the half-way step; a
            straight line has about 0.25.
        reason: why there is none; "" where there is one.
    """

    step: int | None
    interval: tuple[int, int] | None
    change: float
    change_interval: tuple[float, float]
    abrupt: float
    reason: str = ""


def boundary(curves: Array, *, resamples: int = 1000) -> Boundary:
    """Find the step at which the image-averaged curve leaves the half nearer to its first level for good.

    The rule. Let m(t) be the mean over images, and h = (m(0) + m(T-1)) / 2. The boundary is the first step from which
    on m stays on the last level's side of h. There is none unless

    - there are at least 5 images and 4 steps;
    - the relative change between the first and the last step is at least 0.1 in size at both ends of its 95% bootstrap
      interval over images, with one sign: a curve that is flat, or that comes back to where it began, has no boundary;
    - more than half of the change lies within some round(T / 4) consecutive steps around the boundary: a steady drift
      has no boundary;
    - the 95% bootstrap interval of the step spans at most half of the run.

    Multiplying the curves by a positive number changes nothing.

    Args:
        curves: (I, T); images with a NaN are left out.

    Returns:
        Boundary; its `step` is None, and `reason` says why, where there is none.

    Raises:
        UVRError: `curves` is not (I, T) with T >= 1.
    """
    if curves.ndim != 2 or not curves.shape[1]:
        raise UVRError(f"curves: expected (images, steps), got shape {curves.shape}")
    whole = np.asarray(curves[np.isfinite(curves).all(1)], dtype=np.float64)
    steps = curves.shape[1]
    if len(whole) < LEAST_IMAGES or steps < LEAST_STEPS:
        change = _change(whole.mean(0)) if len(whole) else np.nan
        missing = (
            f"{len(whole)} images, {LEAST_IMAGES} needed"
            if len(whole) < LEAST_IMAGES
            else f"{steps} steps, {LEAST_STEPS} needed"
        )
        return Boundary(None, None, float(change), (np.nan, np.nan), np.nan, missing)
    mean, drawn = whole.mean(0), _bootstrap(len(whole), resamples) @ whole
    changes = _change(drawn)
    interval = (float(np.quantile(changes, 0.025)), float(np.quantile(changes, 0.975)))
    step, abrupt = int(_half_way(mean)), _abrupt(mean)
    low, high = (round(float(q)) for q in np.quantile(_half_way(drawn), (0.025, 0.975)))
    reason = ""
    if interval[0] * interval[1] <= 0 or min(map(abs, interval)) < LEAST_CHANGE:
        reason = f"changes by less than {LEAST_CHANGE:.0%} from the first step to the last, or not surely"
    elif abrupt <= LEAST_ABRUPT:
        reason = f"drifts: only {abrupt:.0%} of the change lies within a quarter of the steps"
    elif high - low > steps / 2:
        reason = f"the step is uncertain: {low} to {high} of {steps}"
    change = float(_change(mean))
    if reason:
        return Boundary(None, None, change, interval, abrupt, reason)
    return Boundary(step, (low, high), change, interval, abrupt)


def _change(curve: Array) -> Array:
    """(..., T) -> (...,): relative change from the first step to the last; 0 for all zeros."""
    first, last = curve[..., 0], curve[..., -1]
    scale = np.maximum(np.abs(first), np.abs(last))
    return np.asarray((last - first) / np.where(scale == 0, 1.0, scale))


def _half_way(curve: Array) -> npt.NDArray[np.intp]:
    """(..., T) -> (...,): the first step from which on a curve stays nearer to its last level; T - 1 for a flat one."""
    first, last = curve[..., :1], curve[..., -1:]
    before = np.sign(last - first) * (curve - 0.5 * (first + last)) < 0
    step = curve.shape[-1] - before[..., ::-1].argmax(-1)
    return np.asarray(np.where(before.any(-1), step, curve.shape[-1] - 1))


def _abrupt(curve: Array) -> float:
    """See Boundary.abrupt."""
    steps, step = len(curve), int(_half_way(curve))
    width = max(1, round(steps / 4))
    whole = curve[-1] - curve[0]
    starts = range(max(0, step - width), min(step - 1, steps - 1 - width) + 1)
    if whole == 0 or not len(starts):
        return 0.0
    return float(max((curve[start + width] - curve[start]) / whole for start in starts))


@attrs.frozen
class Stage:
    """One of the stages that UVR, arXiv 2606.06875, describes, as it is found or not found.

    Attributes:
        seen: whether the rule holds; None: the model has no such flow.
        step: the boundary of the flow that it is about; None where there is none.
        why: the numbers behind it, in a sentence.
    """

    seen: bool | None
    step: int | None
    why: str


def stages(found: Flows, into: str = "output") -> dict[str, Stage]:
    """Hold the flows against the paper's three stages, by shares of attention averaged over blocks.

    - start-up (text drives the picture in the first steps, then no longer): text to `into` has a falling boundary in
      the first half of the run; see `boundary`.
    - amplification (the picture takes over from then on): output to `into` has a rising boundary in the first half.
    - interference (the source keeps coming in): reference to `into` has no falling boundary, and at every step a
      reference token gets at least half of what uniform attention over all tokens would give it (lower end of the
      95% band over images).

    Args:
        into: "output", or "located": the patches that show the concept, of which the paper speaks.

    Returns:
        {"start-up", "amplification", "interference": Stage}.

    Raises:
        UVRError: an unknown role.
    """
    return {
        "start-up": _crossing(found, "text", into, falls=True),
        "amplification": _crossing(found, "output", into, falls=False),
        "interference": _interference(found, into),
    }


def _crossing(found: Flows, source: str, into: str, *, falls: bool) -> Stage:
    curve = found.curve(source, into)
    if not (found.counts[:, _role(source)] > 0).any() or not np.isfinite(curve).all(1).any():
        return Stage(None, None, f"there is no flow from {source} to {into}")
    at, words = boundary(curve), _course(curve, source, into)
    if at.step is None:
        return Stage(False, None, f"{words}: {at.reason}")
    low, high = at.interval or (at.step, at.step)
    words += f", with a boundary at step {at.step} (95% interval {low} to {high})"
    if (at.change < 0) != falls:
        return Stage(False, at.step, f"{words}: it {'rises' if falls else 'falls'}")
    if at.step > len(found.sigmas) / 2:
        return Stage(False, at.step, f"{words}: not in the first half of the run")
    return Stage(True, at.step, words)


def _interference(found: Flows, into: str) -> Stage:
    curve = found.curve("reference", into)
    if not (found.counts[:, REFERENCE] > 0).any() or not np.isfinite(curve).all(1).any():
        return Stage(None, None, f"there is no flow from reference to {into}")
    at, low = boundary(curve), band(found.curve("reference", into, "lift"))[1]
    words = f"{_course(curve, 'reference', into)}, at every step at least {min(low):.2f} of uniform attention per token"
    if at.step is not None and at.change < 0:
        return Stage(False, at.step, f"{words}; it falls at step {at.step}")
    if not min(low) >= LEAST_LIFT:
        return Stage(False, None, f"{words}; {LEAST_LIFT} asked for")
    return Stage(True, None, words)


def _course(curve: Array, source: str, into: str) -> str:
    mean = band(curve)[0]
    return f"{source} to {into} goes from {mean[0]:.3f} to {mean[-1]:.3f} ({float(_change(mean)):+.0%})"


__all__ = [
    "LOCATED",
    "OUTPUT",
    "REFERENCE",
    "REST",
    "ROLES",
    "TEXT",
    "Boundary",
    "Flows",
    "Localisation",
    "Stage",
    "band",
    "boundary",
    "flows",
    "localisation",
    "stages",
]
