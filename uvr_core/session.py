"""A session: the state of one generation, per sample, concept, step and guidance branch, with a ledger of taps."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch

from . import flow, masks
from .adapter import Layout
from .concepts import ConceptBank
from .errors import TapNotFired, UVRError
from .protocols import (
    CORE,
    K_FACING_CORE,
    K_FACING_RING,
    K_OUTPUT,
    K_REFERENCE,
    K_TEXT,
    LOCATED,
    Q_OUTPUT,
    Q_REFERENCE,
    Q_TEXT,
    REFERENCE,
    RING,
    SAFE,
    TEXT,
    CallInfo,
    Detector,
    FlowEdit,
    Located,
    Policy,
    TellsOrigin,
    row_classes,
)  # fmt: skip
from .seam import AttentionCall

Recorder = Callable[[str, int, float, torch.Tensor], None]


@attrs.frozen(eq=False)
class Rule:
    """One concept with the detector, policy and calibration it runs under."""

    bank: ConceptBank
    detector: Detector
    policy: Policy
    detector_name: str
    policy_name: str
    probe: str
    window: tuple[float, float]
    threshold: float
    grow: float
    min_patches: int = 1
    mass_ratio: float = 1.0
    ring: int = 1
    margin: int = 0

    @property
    def name(self) -> str:
        return self.bank.name


@attrs.define(eq=False)
class _Track:
    """What one rule has found in each sample so far."""

    core: npt.NDArray[np.bool_]  # (B, H, W), union over the window's steps
    ring: npt.NDArray[np.bool_]
    first_step: list[int | None]
    best: list[float]
    regulated: list[set[int]]
    scores: list[npt.NDArray[np.float32]] = attrs.field(factory=list)  # one (B, N) per scored step
    scored_steps: list[int] = attrs.field(factory=list)
    device: Located | None = None
    from_source: list[bool | None] = attrs.field(factory=list)  # None: not known (yet)


@attrs.define(eq=False)
class Session:
    """State of one generation. Created per pipeline call (or per run of falling noise levels); never shared.

    Args:
        rules: the plan; a patch claimed by an earlier rule is not regulated by a later one.
        taps: paths of the joint attention blocks, in order of execution.
        output_first, image_at, text_output: see Adapter.
        seeds: one per sample, for the policies' noise; a short list is extended by counting up.
        every_pass: regulate every forward of a step, not the first (conditional) alone: for a bare transformer,
            where a second forward at the same noise level may be another generation's.
        halves: "uc" or "cu" while the batch holds unconditional and conditional halves in that order, else "". Set
            before each forward.
        recorder: called with (path, step, sigma, features) at the paths in `record`; features as detectors get them.
    """

    rules: Sequence[Rule]
    taps: tuple[str, ...]
    image_at: str = "end"
    output_first: bool = True
    text_output: bool = True
    seeds: tuple[int, ...] = (0,)
    recorder: Recorder | None = None
    record: frozenset[str] = frozenset()
    every_pass: bool = False
    halves: str = ""

    step: int = attrs.field(default=-1, init=False)
    passes: list[int] = attrs.field(factory=list, init=False)  # root forwards per step
    sigmas: list[float] = attrs.field(factory=list, init=False)
    fired: int = attrs.field(default=0, init=False)
    batch: int = attrs.field(default=0, init=False)
    layout: Layout | None = attrs.field(default=None, init=False)
    branch: str | None = attrs.field(default=None, init=False)  # name that the pipeline gave to the pass it is in
    _forward: Counter[str] | None = attrs.field(default=None, init=False)
    _open: str | None = attrs.field(default=None, init=False)
    _regulating: bool = attrs.field(default=False, init=False)
    _broken: bool = attrs.field(default=False, init=False)
    _tracks: list[_Track] = attrs.field(factory=list, init=False)
    _generators: list[torch.Generator] = attrs.field(factory=list, init=False)

    # ------------------------------------------------------------------ one root forward
    def begin_forward(self, layout: Layout, sigma: torch.Tensor) -> None:
        """Open a root forward. A new noise level is a new step.

        Which pass is the conditional one: the one so named by the pipeline, else the first of a step.
        """
        level = float(sigma.reshape(-1)[0])
        if not np.isfinite(level):
            raise UVRError(f"the model's time argument gives noise level {level}; expected 0..1")
        if self._forward is not None:
            raise TapNotFired("a second forward of the transformer began inside the first; UVR expects one at a time")
        if self.layout is not None and layout != self.layout:
            raise UVRError(f"the token layout changed inside one generation: {self.layout} became {layout}")
        if not self.sigmas or level != self.sigmas[-1]:
            self.step += 1
            self.sigmas.append(level)
            self.passes.append(0)
        self.passes[-1] += 1
        self.layout = layout
        self._forward = Counter()
        if self.branch in ("cond", "uncond"):
            self._regulating = self.branch == "cond"
        else:
            self._regulating = self.every_pass or self.passes[-1] == 1

    def end_forward(self) -> None:
        """Close a root forward: every tap must have fired exactly once.

        Raises:
            TapNotFired: naming the first tap that did not fire once, and the step.
        """
        counts, self._forward, self._open = self._forward, None, None
        assert counts is not None
        for number, path in enumerate(self.taps):
            if counts[path] != 1:
                verb = "did not fire" if counts[path] == 0 else f"fired {counts[path]} times"
                raise TapNotFired(
                    f"tap {number + 1} of {len(self.taps)} ({path}) {verb} at step {self.step}; a cache or a "
                    "layer-skipping feature is on: disable it, or detach UVR"
                )
        self.fired += len(self.taps)

    def abort_forward(self) -> None:
        """The forward raised: forget it, and remember that this generation broke off."""
        self._forward = self._open = None
        self._broken = True

    def unscored(self) -> list[Rule]:
        """The rules whose concept was never looked for: no step's noise level fell into their window."""
        return [r for i, r in enumerate(self.rules) if i >= len(self._tracks) or not self._tracks[i].scored_steps]

    @property
    def interrupted(self) -> bool:
        """Seen from outside of a forward: whether the last one was broken off."""
        return self._broken or self._forward is not None

    @property
    def in_forward(self) -> bool:
        return self._forward is not None

    def enter(self, path: str) -> None:
        self._open = path if self._forward is not None else None

    def leave(self, path: str) -> None:
        self._open = None

    # ------------------------------------------------------------------ one attention call
    def on_call(self, call: AttentionCall) -> torch.Tensor | None:
        """Locate and restrict in one attention call; None leaves the stock output object untouched."""
        layout = self.layout
        if self._forward is None or layout is None or self._open != call.path:
            return None
        keys, queries = call.key.shape[2], call.query.shape[2]
        if keys < layout.image or queries < layout.output or (self.text_output and queries <= layout.output):
            return None  # not the joint call: IP-Adapter, image-only attention
        self._forward[call.path] += 1
        if not self._regulating:
            return None
        rows = self._output_span(queries, layout)
        own = self._conditional(call.query.shape[0])
        part = call if own == slice(0, call.query.shape[0]) else _part(call, own)
        self.batch = part.query.shape[0]
        self._observe(part, rows, layout)
        edited = self._regulate(part, rows, layout)
        if edited is None or part is call:
            return edited
        return torch.cat([call.output[: own.start], edited, call.output[own.stop :]])

    def _conditional(self, batch: int) -> slice:
        """The samples of the batch that follow the prompt."""
        if not self.halves:
            return slice(0, batch)
        if batch % 2:
            raise UVRError(
                f"a batch of {batch} does not hold an unconditional and a conditional half; another kind of guidance "
                "is on (perturbed attention?): disable it, or detach UVR"
            )
        return slice(batch // 2, batch) if self.halves == "uc" else slice(0, batch // 2)

    def _output_span(self, tokens: int, layout: Layout) -> slice:
        start = 0 if self.image_at == "start" else tokens - layout.image
        if not self.output_first:
            start += layout.image - layout.output
        return slice(start, start + layout.output)

    def _observe(self, call: AttentionCall, rows: slice, layout: Layout) -> None:
        sigma = self.sigmas[-1]
        due = [i for i, r in enumerate(self.rules) if r.probe == call.path and r.window[1] <= sigma <= r.window[0]]
        recording = self.recorder is not None and call.path in self.record
        if not due and not recording:
            return
        features = self._features(call, rows, layout)
        if recording and self.recorder is not None:
            self.recorder(call.path, self.step, sigma, features)
        for index in due:
            rule = self.rules[index]
            scores = rule.detector.scores(features, sigma, rule.bank, rule.probe)
            if scores.shape != features.shape[:2]:
                raise UVRError(
                    f"detector {rule.detector_name!r} returned scores of shape {tuple(scores.shape)}, "
                    f"expected {tuple(features.shape[:2])}"
                )
            if self._locate(index, scores.float().cpu().numpy(), layout, call.query.device):
                self._tell_origin(index, features, layout, call.query.device)

    def _features(self, call: AttentionCall, rows: slice, layout: Layout) -> torch.Tensor:
        """(B, N, C) float32, or (B, N, 2C) where there are reference tokens; see Detector.scores."""
        features = call.output[:, :, rows].transpose(1, 2).flatten(2).float()
        if not layout.references:
            return features
        span = self._reference_span(call.query.shape[2], layout)
        tokens = call.output[:, :, span].transpose(1, 2).flatten(2).float()
        sizes = [height * width for height, width in layout.references]
        facing = [
            part[:, _nearest(layout.grid, grid).to(part.device)]
            for part, grid in zip(tokens.split(sizes, 1), layout.references, strict=True)
        ]
        return torch.cat([features, torch.stack(facing).mean(0)], -1)

    def _locate(self, index: int, scores: npt.NDArray[np.float32], layout: Layout, device: torch.device) -> bool:
        """Add this step's finds to the masks; whether there were any."""
        rule = self.rules[index]
        if np.isnan(scores).any() or (np.isposinf(scores).any() and rule.detector_name != "oracle"):
            raise UVRError(
                f"concept {rule.name!r}: NaN or Inf in the score of {rule.probe} at step {self.step}; the run is "
                "broken (overflow in half precision?) and UVR cannot vouch for the image"
            )
        while len(self._tracks) <= index:
            self._tracks.append(self._new_track(layout))
        track = self._tracks[index]
        track.scores.append(scores)
        track.scored_steps.append(self.step)
        changed = False
        for sample, row in enumerate(scores):
            grid = row.reshape(layout.grid)
            track.best[sample] = max(track.best[sample], float(np.sort(row)[-rule.min_patches]))
            hits = grid >= rule.threshold
            found_before = track.first_step[sample] is not None
            if hits.sum() < rule.min_patches and not found_before:
                continue
            region = masks.grow_from(hits, grid >= rule.grow)
            core = masks.core_of(region, np.nan_to_num(grid, neginf=-1e4, posinf=1e4), mass_ratio=rule.mass_ratio)
            if not core.any():
                continue
            if not found_before:
                track.first_step[sample] = self.step
            track.core[sample] |= core
            changed = True
        if changed:
            self._upload(index, layout, device)
        return changed

    def _tell_origin(self, index: int, features: torch.Tensor, layout: Layout, device: torch.device) -> None:
        """Ask where a concept comes from, in the step in which it is located first: later ones are regulated."""
        rule, track = self.rules[index], self._tracks[index]
        fresh = [s for s, step in enumerate(track.first_step) if step == self.step]
        if not fresh or not layout.references or not isinstance(rule.detector, TellsOrigin):
            return
        core = torch.from_numpy(track.core.reshape(len(track.core), -1)).to(features.device)
        origin = rule.detector.origin(features, core, self.sigmas[-1], rule.bank, rule.probe)
        if origin is None:
            return
        told = origin.float().cpu().numpy()
        for sample in fresh:
            track.from_source[sample] = not told[sample] <= 0  # NaN: fail closed
        self._upload(index, layout, device)

    def _new_track(self, layout: Layout) -> _Track:
        shape = (self.batch, *layout.grid)
        return _Track(
            np.zeros(shape, bool), np.zeros(shape, bool), [None] * self.batch, [-np.inf] * self.batch,
            [set() for _ in range(self.batch)], from_source=[None] * self.batch,
        )  # fmt: skip

    def _upload(self, index: int, layout: Layout, device: torch.device) -> None:
        """Masks of one rule to the device, without the patches that earlier rules claimed."""
        rule, track = self.rules[index], self._tracks[index]
        claimed = np.zeros_like(track.core)
        for other in self._tracks[:index]:
            claimed |= other.core | other.ring
        for sample, core in enumerate(track.core):
            wide = core | masks.ring_of(core, rule.margin)
            track.ring[sample] = masks.ring_of(wide, rule.ring) | (wide & ~core)
        grown = track.core.copy()
        for sample, core in enumerate(track.core):
            grown[sample] |= masks.ring_of(core, rule.margin)
        core, ring = grown & ~claimed, track.ring & ~grown & ~claimed
        here, near = (torch.from_numpy(mask.reshape(len(mask), -1)).to(device) for mask in (core, ring))
        source = torch.tensor([told is not False for told in track.from_source], device=device)
        track.device = Located(
            here, near, layout.grid, self.sigmas[-1], self.step, rule.window, source if layout.references else None
        )

    # ------------------------------------------------------------------ the edit
    def _regulate(self, call: AttentionCall, span: slice, layout: Layout) -> torch.Tensor | None:
        output = call.output
        for rule, track in zip(self.rules, self._tracks, strict=False):
            if track.device is None:
                continue
            located = attrs.evolve(track.device, sigma=self.sigmas[-1], step=self.step)
            text = call.key.shape[2] - layout.image
            references = self._reference_span(call.key.shape[2], layout)
            spans = self._text_span(call.key.shape[2], layout), references
            contrasts = [functools.partial(self._contrast, call, located, span, layout, keys) for keys in spans]
            info = CallInfo(call.path, text, layout.image - layout.output, *contrasts)
            edit = rule.policy.edit(located, info)
            if edit is None:
                continue
            output = self._apply(edit, call, output, span, layout)
            for sample in np.flatnonzero((track.core | track.ring).any((1, 2))):
                track.regulated[sample].add(self.step)
        return None if output is call.output else output

    def _full_mask(self, patches: torch.Tensor, span: slice, tokens: int) -> torch.Tensor:
        full = patches.new_zeros(patches.shape[0], tokens)
        full[:, span] = patches
        return full

    def _text_span(self, tokens: int, layout: Layout) -> slice:
        return slice(layout.image, tokens) if self.image_at == "start" else slice(0, tokens - layout.image)

    def _reference_span(self, tokens: int, layout: Layout) -> slice:
        start = 0 if self.image_at == "start" else tokens - layout.image
        if self.output_first:
            start += layout.output
        return slice(start, start + layout.image - layout.output)

    def _contrast(
        self, call: AttentionCall, located: Located, span: slice, layout: Layout, asked: slice
    ) -> torch.Tensor:
        queries, keys = call.query.shape[2], call.key.shape[2]
        inside = self._full_mask(located.core, span, queries)
        outside = self._full_mask(~(located.core | located.ring), span, queries)
        chosen = torch.zeros(len(inside), keys, dtype=torch.bool, device=inside.device)
        chosen[:, asked] = True
        key, _ = _grouped(call)
        contrast = flow.token_contrast(
            call.query, key, inside, outside, chosen, attn_mask=call.attn_mask, scale=call.scale
        )
        return contrast[:, asked]

    def _key_classes(self, edit: FlowEdit, keys: int, layout: Layout) -> torch.Tensor:
        classes = torch.full((len(edit.row_class), keys), TEXT, device=edit.row_class.device)
        image = slice(0, layout.image) if self.image_at == "start" else slice(keys - layout.image, keys)
        classes[:, image] = REFERENCE
        classes[:, self._output_span(keys, layout)] = torch.where(edit.row_class > 0, LOCATED, SAFE)
        return classes

    def _apply(
        self, edit: FlowEdit, call: AttentionCall, output: torch.Tensor, span: slice, layout: Layout
    ) -> torch.Tensor:
        if edit.columns is not None:
            output = self._scale_columns(edit, call, output, layout)
        full = torch.zeros(len(edit.row_class), call.query.shape[2], dtype=torch.long, device=edit.row_class.device)
        full[:, span] = edit.row_class
        rows = flow.rows_of(full > 0)
        if rows.width == 0:
            return output
        row_class = full.gather(1, rows.index)
        new = flow.take_rows(output, rows)
        factors = {
            self._text_span: edit.text_factor, self._reference_span: edit.reference_factor,
        }  # fmt: skip
        own_tokens = any(factor is not None for factor in factors.values())
        if own_tokens or any(factor != 1.0 for line in edit.table[1:] for factor in line):
            keys = call.key.shape[2]
            table = torch.tensor(edit.table)
            bias = flow.log_weights(row_class, self._key_classes(edit, keys, layout), table)
            for find, factor in factors.items():
                if factor is not None:
                    bias[:, :, find(keys, layout)] += factor.log()[:, None]
            key, value = _grouped(call)
            new = flow.restricted_rows(call.query, key, value, rows, bias, attn_mask=call.attn_mask, scale=call.scale)
        if not any(edit.alpha):
            return flow.write_rows(output, new, rows)
        alpha = torch.tensor(edit.alpha, device=output.device)[row_class]
        stats: dict[str, Any] = {"mean": 0.0, "std": 1.0} if edit.noise == "unit" else {}
        noise = flow.matched_noise(new, rows, self._noise_generators(len(full)), **stats)
        return flow.write_rows(output, new, rows, alpha=alpha, noise=noise)

    def _scale_columns(self, edit: FlowEdit, call: AttentionCall, output: torch.Tensor, layout: Layout) -> torch.Tensor:
        """The call anew with scaled columns, for the samples in which something was located."""
        assert edit.columns is not None
        some = (edit.row_class > 0).any(1).nonzero().flatten()  # host sync
        if not len(some):
            return output
        queries, keys = call.query.shape[2], call.key.shape[2]
        roles = torch.full((queries,), Q_TEXT, device=output.device)
        roles[self._output_span(queries, layout)] = Q_OUTPUT
        roles[self._reference_span(queries, layout)] = Q_REFERENCE
        classes = torch.full((len(some), keys), K_TEXT, device=output.device)
        classes[:, self._output_span(keys, layout)] = K_OUTPUT
        facing = [_facing(edit.row_class[some], layout.grid, grid) for grid in layout.references]
        if facing:
            by_row = torch.tensor([K_REFERENCE, K_FACING_CORE, K_FACING_RING], device=output.device)
            classes[:, self._reference_span(keys, layout)] = by_row[torch.cat(facing, 1)]
        scales = torch.tensor(edit.columns.table, device=output.device)[:, classes].transpose(0, 1)  # (b, 3, Sk)
        part = _part(call, some)
        key, value = _grouped(part)
        new = flow.scaled_columns_by_group(
            part.query, key, value, roles, scales, attn_mask=part.attn_mask, scale=part.scale
        )
        return output.index_copy(0, some, new)

    def _noise_generators(self, batch: int) -> list[torch.Generator]:
        """One CPU generator per sample, seeded apart from the pipeline's own."""
        while len(self._generators) < batch:
            index = len(self._generators)
            seed = self.seeds[index] if index < len(self.seeds) else self.seeds[-1] + index - len(self.seeds) + 1
            self._generators.append(torch.Generator().manual_seed((seed * 2654435761 + 97) % 2**63))
        return self._generators[:batch]


def _part(call: AttentionCall, samples: slice | torch.Tensor) -> AttentionCall:
    """The same call for some of its samples."""
    mask = call.attn_mask
    if mask is not None and mask.dim() == 4 and mask.shape[0] > 1:
        mask = mask[samples]
    return attrs.evolve(
        call, query=call.query[samples], key=call.key[samples], value=call.value[samples],
        output=call.output[samples], attn_mask=mask,
    )  # fmt: skip


def _facing(row_class: torch.Tensor, grid: tuple[int, int], reference: tuple[int, int]) -> torch.Tensor:
    """(B, N) row classes -> (B, h*w) classes of the patches of a reference grid, by nearest place."""
    return row_class[:, _nearest(reference, grid).to(row_class.device)]


def _nearest(of: tuple[int, int], among: tuple[int, int]) -> torch.Tensor:
    """For every patch of one grid the index of the patch of another grid at the same place."""
    rows, columns = (
        torch.div((2 * torch.arange(n) + 1) * m, 2 * n, rounding_mode="floor") for n, m in zip(of, among, strict=True)
    )
    return (rows[:, None] * among[1] + columns).reshape(-1)


def _grouped(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with as many heads as queries (grouped-query attention repeats them)."""
    repeat = call.query.shape[1] // call.key.shape[1]
    if repeat == 1:
        return call.key, call.value
    return call.key.repeat_interleave(repeat, 1), call.value.repeat_interleave(repeat, 1)


__all__ = ["CORE", "RING", "Rule", "Session", "row_classes"]
