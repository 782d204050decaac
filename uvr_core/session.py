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
    LOCATED,
    REFERENCE,
    RING,
    SAFE,
    TEXT,
    CallInfo,
    Detector,
    FlowEdit,
    Located,
    Policy,
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
        recorder: called with (path, step, sigma, features (B, N, C) float32) at the paths in `record`.
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

    step: int = attrs.field(default=-1, init=False)
    passes: list[int] = attrs.field(factory=list, init=False)  # root forwards per step
    sigmas: list[float] = attrs.field(factory=list, init=False)
    fired: int = attrs.field(default=0, init=False)
    batch: int = attrs.field(default=0, init=False)
    layout: Layout | None = attrs.field(default=None, init=False)
    _forward: Counter[str] | None = attrs.field(default=None, init=False)
    _open: str | None = attrs.field(default=None, init=False)
    _regulating: bool = attrs.field(default=False, init=False)
    _broken: bool = attrs.field(default=False, init=False)
    _tracks: list[_Track] = attrs.field(factory=list, init=False)
    _generators: list[torch.Generator] = attrs.field(factory=list, init=False)

    # ------------------------------------------------------------------ one root forward
    def begin_forward(self, layout: Layout, sigma: torch.Tensor) -> None:
        """Open a root forward. A new noise level is a new step; the first forward of a step is the conditional."""
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
        self.batch = call.query.shape[0]
        rows = self._output_span(queries, layout)
        self._observe(call, rows, layout)
        return self._regulate(call, rows, layout)

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
        features = call.output[:, :, rows].transpose(1, 2).flatten(2).float()  # (B, N, C)
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
            self._locate(index, scores.float().cpu().numpy(), layout, call.query.device)

    def _locate(self, index: int, scores: npt.NDArray[np.float32], layout: Layout, device: torch.device) -> None:
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

    def _new_track(self, layout: Layout) -> _Track:
        shape = (self.batch, *layout.grid)
        return _Track(
            np.zeros(shape, bool), np.zeros(shape, bool), [None] * self.batch, [-np.inf] * self.batch,
            [set() for _ in range(self.batch)],
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
        track.device = Located(here, near, layout.grid, self.sigmas[-1], self.step, rule.window)

    # ------------------------------------------------------------------ the edit
    def _regulate(self, call: AttentionCall, span: slice, layout: Layout) -> torch.Tensor | None:
        output = call.output
        for rule, track in zip(self.rules, self._tracks, strict=False):
            if track.device is None:
                continue
            located = attrs.evolve(track.device, sigma=self.sigmas[-1], step=self.step)
            text = call.key.shape[2] - layout.image
            contrast = functools.partial(self._contrast, call, located, span, layout)
            info = CallInfo(call.path, text, layout.image - layout.output, contrast)
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

    def _contrast(self, call: AttentionCall, located: Located, span: slice, layout: Layout) -> torch.Tensor:
        queries, keys = call.query.shape[2], call.key.shape[2]
        inside = self._full_mask(located.core, span, queries)
        outside = self._full_mask(~(located.core | located.ring), span, queries)
        text = self._text_span(keys, layout)
        is_text = torch.zeros(len(inside), keys, dtype=torch.bool, device=inside.device)
        is_text[:, text] = True
        key, _ = _grouped(call)
        contrast = flow.token_contrast(
            call.query, key, inside, outside, is_text, attn_mask=call.attn_mask, scale=call.scale
        )
        return contrast[:, text]

    def _key_classes(self, edit: FlowEdit, keys: int, layout: Layout) -> torch.Tensor:
        classes = torch.full((len(edit.row_class), keys), TEXT, device=edit.row_class.device)
        image = slice(0, layout.image) if self.image_at == "start" else slice(keys - layout.image, keys)
        classes[:, image] = REFERENCE
        classes[:, self._output_span(keys, layout)] = torch.where(edit.row_class > 0, LOCATED, SAFE)
        return classes

    def _apply(
        self, edit: FlowEdit, call: AttentionCall, output: torch.Tensor, span: slice, layout: Layout
    ) -> torch.Tensor:
        full = torch.zeros(len(edit.row_class), call.query.shape[2], dtype=torch.long, device=edit.row_class.device)
        full[:, span] = edit.row_class
        rows = flow.rows_of(full > 0)
        if rows.width == 0:
            return output
        row_class = full.gather(1, rows.index)
        new = flow.take_rows(output, rows)
        if edit.text_factor is not None or any(factor != 1.0 for line in edit.table[1:] for factor in line):
            table = torch.tensor(edit.table)
            bias = flow.log_weights(row_class, self._key_classes(edit, call.key.shape[2], layout), table)
            if edit.text_factor is not None:
                bias[:, :, self._text_span(call.key.shape[2], layout)] += edit.text_factor.log()[:, None]
            key, value = _grouped(call)
            new = flow.restricted_rows(call.query, key, value, rows, bias, attn_mask=call.attn_mask, scale=call.scale)
        if not any(edit.alpha):
            return flow.write_rows(output, new, rows)
        alpha = torch.tensor(edit.alpha, device=output.device)[row_class]
        stats: dict[str, Any] = {"mean": 0.0, "std": 1.0} if edit.noise == "unit" else {}
        noise = flow.matched_noise(new, rows, self._noise_generators(len(full)), **stats)
        return flow.write_rows(output, new, rows, alpha=alpha, noise=noise)

    def _noise_generators(self, batch: int) -> list[torch.Generator]:
        """One CPU generator per sample, seeded apart from the pipeline's own."""
        while len(self._generators) < batch:
            index = len(self._generators)
            seed = self.seeds[index] if index < len(self.seeds) else self.seeds[-1] + index - len(self.seeds) + 1
            self._generators.append(torch.Generator().manual_seed((seed * 2654435761 + 97) % 2**63))
        return self._generators[:batch]


def _grouped(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with as many heads as queries (grouped-query attention repeats them)."""
    repeat = call.query.shape[1] // call.key.shape[1]
    if repeat == 1:
        return call.key, call.value
    return call.key.repeat_interleave(repeat, 1), call.value.repeat_interleave(repeat, 1)


__all__ = ["CORE", "RING", "Rule", "Session", "row_classes"]
