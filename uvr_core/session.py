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

from . import edits
from .adapter import Layout
from .concepts import ConceptBank
from .errors import TapNotFired, UnsafeContent, UVRError
from .ops import masks
from .ops.attn_mask import as_4d, mask_rows
from .ops.columns import scaled_columns
from .ops.evidence import Evidence
from .ops.grids import facing
from .ops.mass import flow_contrast, mass_on
from .ops.noise import blended_rows, matched_noise
from .ops.project import projected_rows
from .ops.restrict import log_weights, redirected_rows, restricted_rows
from .ops.rows import Rows, rows_of, take_rows, write_rows
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
    STOCK,
    TEXT,
    CallInfo,
    Detector,
    Direction,
    FlowEdit,
    Located,
    Policy,
    TellsOrigin,
    row_classes,
)  # fmt: skip
from .seam import AttentionCall

# A flow contrast is measured on at most so many patches of the core and of the rest: on all of them it would cost a
# second attention call. See docs/design/measurements.md.
_COMPARED = (256, 512)

Recorder = Callable[[str, int, float, torch.Tensor], None]
TextRecorder = Callable[[str, int, torch.Tensor, torch.Tensor], None]
Spans = tuple[slice, slice, slice]  # text, output, reference on one token axis
CallRecorder = Callable[[AttentionCall, int, Spans, Spans], None]


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
    min_patches: int = attrs.field(default=1, kw_only=True)
    memory: float = attrs.field(default=0.0, kw_only=True)
    mass_ratio: float = attrs.field(default=1.0, kw_only=True)
    ring: int = attrs.field(default=1, kw_only=True)
    margin: int = attrs.field(default=0, kw_only=True)

    @property
    def name(self) -> str:
        return self.bank.name


def shape_of(policy: object) -> dict[str, Any]:
    """How a policy wants located patches shaped: `mass_ratio`, `ring`, `margin` of its Rule."""
    usual = {"mass_ratio": 1.0, "ring": 1, "margin": 0}
    return {name: getattr(policy, name, value) for name, value in usual.items()}


@attrs.frozen(eq=False)
class _Compared:
    """The patches on which a flow contrast is measured, and on which side of it they are, (B, R) bool.

    `rows` is None where all N patches stand, for grids so small that none is left out.
    """

    rows: Rows | None
    core: torch.Tensor
    rest: torch.Tensor

    @classmethod
    def of(cls, core: masks.Mask, ring: masks.Mask, device: torch.device) -> _Compared:
        """From the masks (B, H, W) of the located patches and of the ring around them."""
        whole = (core, ~(core | ring))
        some = [
            np.stack([masks.thinned(sample, count) for sample in side])
            for side, count in zip(whole, _COMPARED, strict=True)
        ]
        here, rest = (torch.from_numpy(side.reshape(len(side), -1)).to(device) for side in some)
        if all(np.array_equal(a, b) for a, b in zip(whole, some, strict=True)):
            return cls(None, here, rest)
        rows = rows_of(here | rest, (some[0] | some[1]).sum((1, 2)).tolist())
        return cls(rows, here.gather(1, rows.index) & rows.valid, rest.gather(1, rows.index) & rows.valid)


@attrs.define(eq=False)
class _Track:
    """What one rule has found in each sample so far."""

    core: npt.NDArray[np.bool_]  # (B, H, W), union over the window's steps
    first_step: list[int | None]
    best: list[float]
    changed: dict[int, torch.Tensor] = attrs.field(factory=dict)  # step -> (B,) bool, on the device
    evidence: Evidence = attrs.field(factory=Evidence)
    scores: list[npt.NDArray[np.float32]] = attrs.field(factory=list)  # evidence (B, N), one per scored step
    scored_steps: list[int] = attrs.field(factory=list)
    device: Located | None = None
    compared: _Compared | None = None  # as of `device`
    refused: Located | None = None  # the masks for which the policy refused
    from_source: list[bool | None] = attrs.field(factory=list)  # None: not known (yet)

    def steps_regulated(self) -> list[int]:
        """Per sample, the number of steps in which an output was changed. One host sync."""
        if not self.changed:
            return [0] * len(self.core)
        steps: list[int] = torch.stack(list(self.changed.values())).sum(0).tolist()
        return steps


@attrs.frozen
class Refusal:
    """Why an image is kept back: the concept, the scheduler step, and what to put in its place."""

    concept: str
    step: int
    instead: Any = None


@attrs.frozen(eq=False)
class _Text:
    """The text tokens of one attention call: key and value (B, heads, T, D), and what its mask says of them."""

    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None  # (B|1, H|1, N|1, T|1), rows are output patches


@attrs.define(eq=False)
class Session:
    """State of one generation. Created per pipeline call (or per run of falling noise levels); never shared.

    Args:
        rules: the plan; in a call, a patch that an earlier rule edits is not edited by a later one.
        taps: paths of the joint attention blocks, in order of execution.
        output_first, image_at, text_output: see Adapter.
        seeds: one per sample, for the policies' noise; a short list is extended by counting up.
        every_pass: regulate every forward of a step, not the first (conditional) alone: for a bare transformer,
            where a second forward at the same noise level may be another generation's.
        halves: "uc" or "cu" while the batch holds unconditional and conditional halves in that order, else "". Set
            before each forward.
        recorder: called with (path, step, sigma, features) at the paths in `record`; features as detectors get them.
        guidance: see Adapter.
        text_recorder: called with (path, step, rows, mass) at the paths in `record` whose queries include the text:
            attention output at the text tokens (B, T, C), and the share of attention that each output patch pays to
            each text token (B, N, T), mean over heads; both float32.
        call_recorder: called with (call, step, spans of the queries, spans of the keys) for every stock joint attention
            call of the samples that follow the prompt, before anything is changed in it.
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
    guidance: str = "two_pass"
    text_recorder: TextRecorder | None = None
    call_recorder: CallRecorder | None = None

    step: int = attrs.field(default=-1, init=False)
    passes: list[int] = attrs.field(factory=list, init=False)  # root forwards per step
    sigmas: list[float] = attrs.field(factory=list, init=False)
    fired: int = attrs.field(default=0, init=False)
    batch: int = attrs.field(default=0, init=False)
    refusals: dict[int, Refusal] = attrs.field(factory=dict, init=False)  # by sample
    layout: Layout | None = attrs.field(default=None, init=False)
    branch: str | None = attrs.field(default=None, init=False)  # name that the pipeline gave to the pass it is in
    _forward: Counter[str] | None = attrs.field(default=None, init=False)
    _open: str | None = attrs.field(default=None, init=False)
    _regulating: bool = attrs.field(default=False, init=False)
    _remembering: bool = attrs.field(default=False, init=False)
    _unconditional: dict[str, _Text] = attrs.field(factory=dict, init=False)  # by path, of the last such pass
    _broken: bool = attrs.field(default=False, init=False)
    _finite: torch.Tensor | None = attrs.field(default=None, init=False)  # () bool, on the device: every edit so far
    _regulated: set[int] = attrs.field(factory=set, init=False)  # steps with a pass that follows the prompt
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
            other = self.branch == "uncond"
        else:
            self._regulating = self.every_pass or self.passes[-1] == 1
            other = self.guidance == "two_pass" and self.passes[-1] == 2 and not self.every_pass
        self._remembering = other and self._needs_unconditional
        if self._regulating:
            self._regulated.add(self.step)

    def end_forward(self) -> None:
        """Close a root forward: every tap must have fired exactly once.

        Raises:
            TapNotFired: naming the first tap that did not fire once, and the step.
        """
        counts, unclosed = self._forward, self._open
        self._forward = self._open = None
        assert counts is not None
        if unclosed is not None:
            raise _unclosed(unclosed, self.step)
        for number, path in enumerate(self.taps):
            if counts[path] != 1:
                verb = "did not fire" if counts[path] == 0 else f"fired {counts[path]} times"
                raise TapNotFired(
                    f"tap {number + 1} of {len(self.taps)} ({path}) {verb} at step {self.step}; a cache or a "
                    "layer-skipping feature is on: disable it, or detach UVR"
                )
        self.fired += len(self.taps)
        if self.every_pass:
            self.check_edits()

    def abort_forward(self) -> None:
        """The forward raised: forget it, and remember that this generation broke off."""
        self._forward = self._open = None
        self._broken = True

    def unscored(self) -> list[Rule]:
        """The rules whose concept was never looked for: no step's noise level fell into their window."""
        return [r for i, r in enumerate(self.rules) if i >= len(self._tracks) or not self._tracks[i].scored_steps]

    def check_edits(self) -> None:
        """One host sync, if anything was edited.

        Raises:
            UVRError: an edit gave NaN or Inf.
        """
        if self._finite is not None and not bool(self._finite):
            names = ", ".join(repr(name) for name in dict.fromkeys(rule.policy_name for rule in self.rules))
            raise UVRError(
                f"an edit gave NaN or Inf (policies: {names}): a factor that is NaN, infinite or negative, a row that "
                "is left nothing to attend to, or overflow in half precision; UVR cannot vouch for the image"
            )

    def _watch(self, edited: torch.Tensor) -> None:
        """Note on the device whether what an edit gave is finite."""
        finite = torch.stack(torch.aminmax(edited)).isfinite().all()  # NaN in one is NaN in both
        self._finite = finite if self._finite is None else self._finite & finite

    @property
    def unregulated(self) -> list[int]:
        """The steps in which no pass followed the prompt."""
        return [step for step in range(self.step + 1) if step not in self._regulated]

    @property
    def _needs_unconditional(self) -> bool:
        return any(getattr(rule.policy, "needs_unconditional", False) for rule in self.rules)

    @property
    def interrupted(self) -> bool:
        """Seen from outside of a forward: whether the last one was broken off."""
        return self._broken or self._forward is not None

    @property
    def in_forward(self) -> bool:
        return self._forward is not None

    def enter(self, path: str) -> None:
        if self._open is not None:
            raise _unclosed(self._open, self.step)
        self._open = path if self._forward is not None else None

    def leave(self, path: str) -> None:
        self._open = None

    # ------------------------------------------------------------------ one attention call
    def on_call(self, call: AttentionCall) -> torch.Tensor | None:
        """Locate and restrict in one attention call.

        Returns:
            The output to go on with; None: the call's own, into which rows may have been written.
        """
        layout = self.layout
        if self._forward is None or layout is None or self._open != call.path:
            return None
        keys, queries = call.key.shape[2], call.query.shape[2]
        if keys < layout.image or queries < layout.output or (self.text_output and queries <= layout.output):
            return None  # not the joint call: IP-Adapter, image-only attention
        self._forward[call.path] += 1
        rows = self._output_span(queries, layout)
        if not self._regulating:
            if self._remembering:
                self._unconditional[call.path] = _text_of(call, self._text_span(keys, layout), rows)
            return None
        batch = call.query.shape[0]
        own = self._conditional(batch)
        part = call if own == slice(0, batch) else _part(call, own)
        if part is not call and self._needs_unconditional:
            rest = _part(call, slice(own.stop, batch) if own.start == 0 else slice(0, own.start))
            self._unconditional[call.path] = _text_of(rest, self._text_span(keys, layout), rows)
        self.batch = part.query.shape[0]
        if self.call_recorder is not None:
            self.call_recorder(part, self.step, self._spans(queries, layout), self._spans(keys, layout))
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
            if self.text_recorder is not None and self.text_output:
                self.text_recorder(call.path, self.step, *self._text_features(call, rows, layout))
        for index in due:
            rule = self.rules[index]
            scores = rule.detector.scores(features, sigma, rule.bank, rule.probe)
            if not isinstance(scores, torch.Tensor) or scores.shape != features.shape[:2]:
                shape = f"scores of shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else repr(scores)
                raise UVRError(
                    f"detector {rule.detector_name!r} returned {shape}, expected a tensor {tuple(features.shape[:2])}"
                )
            if self._locate(index, scores.float().cpu().numpy(), layout):
                self._tell_origin(index, features, layout)
                self._upload(index, layout, call.query.device)

    def _features(self, call: AttentionCall, rows: slice, layout: Layout) -> torch.Tensor:
        """(B, N, C) float32, or (B, N, 2C) where there are reference tokens; see Detector.scores."""
        features = call.output[:, :, rows].transpose(1, 2).flatten(2).float()
        if not layout.references:
            return features
        span = self._reference_span(call.query.shape[2], layout)
        tokens = call.output[:, :, span].transpose(1, 2).flatten(2).float()
        sizes = [height * width for height, width in layout.references]
        sources = [
            facing(part, grid, layout.grid)
            for part, grid in zip(tokens.split(sizes, 1), layout.references, strict=True)
        ]
        return torch.cat([features, torch.stack(sources).mean(0)], -1)

    def _text_features(self, call: AttentionCall, rows: slice, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, C) and (B, N, T) float32, see `text_recorder`; ceil(T / D) fused calls of N queries."""
        keys = call.key.shape[2]
        own = call.output[:, :, self._text_span(call.query.shape[2], layout)].transpose(1, 2).flatten(2).float()
        text = torch.eye(keys, dtype=call.query.dtype, device=call.query.device)[:, self._text_span(keys, layout)]
        key, _ = _grouped(call)
        mask = None if call.attn_mask is None else as_4d(call.attn_mask, call.query, key)
        if mask is not None and mask.shape[2] > 1:
            mask = mask[:, :, rows]
        mass = mass_on(call.query[:, :, rows], key, text, attn_mask=mask, scale=call.scale)
        return own, mass.mean(1, dtype=torch.float32)

    def _locate(self, index: int, scores: npt.NDArray[np.float32], layout: Layout) -> bool:
        """Add this step's finds to the masks; whether there were any."""
        rule = self.rules[index]
        if np.isnan(scores).any() or (np.isposinf(scores).any() and rule.detector_name != "oracle"):
            raise UVRError(
                f"concept {rule.name!r}: NaN or Inf in the score of {rule.probe} at step {self.step}; the run is "
                "broken (overflow in half precision?) and UVR cannot vouch for the image"
            )
        while len(self._tracks) <= index:
            self._tracks.append(self._new_track(self.rules[len(self._tracks)], layout))
        track = self._tracks[index]
        scores = track.evidence.add(scores)
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
            wanted = grid >= rule.grow
            if rule.grow > rule.threshold and wanted.sum() >= rule.min_patches:
                hits = wanted
            if getattr(rule.detector, "exact", False):
                core = hits
            else:
                region = masks.grow_from(hits, wanted)
                core = masks.core_of(region, np.nan_to_num(grid, neginf=-1e4, posinf=1e4), mass_ratio=rule.mass_ratio)
            if not core.any():
                continue
            if not found_before:
                track.first_step[sample] = self.step
            track.core[sample] |= core
            changed = True
        return changed

    def _tell_origin(self, index: int, features: torch.Tensor, layout: Layout) -> None:
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

    def _new_track(self, rule: Rule, layout: Layout) -> _Track:
        shape = (self.batch, *layout.grid)
        return _Track(
            np.zeros(shape, bool), [None] * self.batch, [-np.inf] * self.batch, from_source=[None] * self.batch,
            evidence=Evidence(rule.memory),
        )  # fmt: skip

    def _upload(self, index: int, layout: Layout, device: torch.device) -> None:
        """Masks of one rule to the device."""
        rule, track = self.rules[index], self._tracks[index]
        core = np.stack([found | masks.ring_of(found, rule.margin) for found in track.core])
        ring = np.stack([masks.ring_of(wide, rule.ring) for wide in core])
        here, near = (torch.from_numpy(mask.reshape(len(mask), -1)).to(device) for mask in (core, ring))
        source = torch.tensor([told is not False for told in track.from_source], device=device)
        track.compared = _Compared.of(core, ring, device)
        track.device = Located(
            here, near, layout.grid, self.sigmas[-1], self.step, rule.window, source if layout.references else None,
            rule.name,
        )  # fmt: skip

    # ------------------------------------------------------------------ the edit
    def _regulate(self, call: AttentionCall, span: slice, layout: Layout) -> torch.Tensor | None:
        output, keys = call.output, call.key.shape[2]
        claimed: torch.Tensor | None = None  # (B, N), edited by an earlier rule
        scales: torch.Tensor | None = None  # of the columns, by earlier rules
        for rule, track in zip(self.rules, self._tracks, strict=False):
            if track.device is None or track.compared is None or track.refused is track.device:
                continue
            located = attrs.evolve(track.device, sigma=self.sigmas[-1], step=self.step)
            contrast = functools.cache(functools.partial(self._contrast, call, track.compared, span, layout))
            info = CallInfo(
                call.path, keys - layout.image, layout.image - layout.output,
                functools.partial(_columns, contrast, self._text_span(keys, layout)),
                functools.partial(_columns, contrast, self._reference_span(keys, layout)),
                functools.partial(self._direction, rule.bank, call, span, layout),
            )  # fmt: skip
            try:
                edit = rule.policy.edit(located, info)
            except UnsafeContent as error:
                if not self._keep_back(error, rule):
                    raise
                track.refused, edit = track.device, None
            if edit is None:
                continue
            edits.check(
                edit, rule.policy_name, batch=len(output), patches=layout.output, text=info.text,
                reference=info.reference, width=output.shape[1] * output.shape[3],
            )  # fmt: skip
            changed = torch.zeros(len(output), dtype=torch.bool, device=output.device)
            if edit.columns is not None:
                before = output
                output, scales = self._scale_columns(edit, call, output, layout, scales, claimed)
                changed = (output != before).any(3).any(2).any(1) & (scales != 1).flatten(1).any(1)
            row_class = edit.row_class if claimed is None else edit.row_class.masked_fill(claimed, STOCK)
            output, moved = self._write(edit, row_class, call, output, span, layout, self._may_write_into(output, call))
            changed = changed | moved
            track.changed[self.step] = track.changed[self.step] | changed if self.step in track.changed else changed
            own = edit.row_class > 0
            claimed = own if claimed is None else claimed | own
        return None if output is call.output else output  # None also where the stock output was written into

    def _may_write_into(self, output: torch.Tensor, call: AttentionCall) -> bool:
        """Whether nobody but this call can see `output`: it is ours, or no recorder or detector was shown it."""
        shown = self.call_recorder is not None or call.path in self.record or call.path in {r.probe for r in self.rules}
        return not output.requires_grad and not (shown and output is call.output)

    def _keep_back(self, error: UnsafeContent, rule: Rule) -> bool:
        """Note which images a policy refuses; whether the others can still be returned without them."""
        for sample in error.samples:
            self.refusals.setdefault(
                sample, Refusal(rule.name, self.step, getattr(rule.policy, "instead", None))
            )  # fmt: skip
        return bool(error.samples) and not self.every_pass and len(self.refusals) < self.batch

    def _direction(self, bank: ConceptBank, call: AttentionCall, span: slice, layout: Layout) -> Direction | None:
        """The concept's linear score in this block; see CallInfo.direction."""
        width, device = call.query.shape[1] * call.query.shape[3], call.query.device
        offset = torch.zeros(call.query.shape[0], layout.output, device=device)
        if f"direction/{call.path}" not in bank.tensors:
            if f"anchors/{call.path}" not in bank.tensors:
                return None
            return Direction(bank.tensor("anchors", call.path).to(device, torch.float32).mean(0), offset)
        index = bank.bin_at(self.sigmas[-1])
        vector = bank.tensor("direction", call.path)[index].to(device, torch.float32)
        offset += float(bank.tensor("offset", call.path)[index])
        if len(vector) > width:
            if not layout.references:
                raise bank.without_sources()
            offset += self._features(call, span, layout)[..., width:] @ vector[width:]
        return Direction(vector[:width], offset)

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

    def _spans(self, tokens: int, layout: Layout) -> Spans:
        """Where text, output and reference lie on an axis of so many tokens."""
        return (
            self._text_span(tokens, layout), self._output_span(tokens, layout), self._reference_span(tokens, layout),
        )  # fmt: skip

    def _contrast(self, call: AttentionCall, compared: _Compared, span: slice, layout: Layout) -> torch.Tensor:
        """(B, Sk): the flow contrast of every key that is no output patch, 0 elsewhere."""
        keys = call.key.shape[2]
        chosen = torch.ones(len(compared.core), keys, dtype=torch.bool, device=call.key.device)
        chosen[:, self._output_span(keys, layout)] = False
        key, _ = _grouped(call)
        mask = None if call.attn_mask is None else as_4d(call.attn_mask, call.query, key)
        if mask is not None and mask.shape[2] > 1:
            mask = mask[:, :, span]
        query = call.query[:, :, span]
        if compared.rows is not None:
            query = take_rows(query, compared.rows)
            mask = None if mask is None else mask_rows(mask, compared.rows.index)
        return flow_contrast(
            query, key, compared.core, compared.rest, chosen,
            key_counts=[keys - layout.output] * len(chosen), attn_mask=mask, scale=call.scale,
        )  # fmt: skip

    def _key_classes(self, edit: FlowEdit, keys: int, layout: Layout) -> torch.Tensor:
        classes = torch.full((len(edit.row_class), keys), TEXT, device=edit.row_class.device)
        image = slice(0, layout.image) if self.image_at == "start" else slice(keys - layout.image, keys)
        classes[:, image] = REFERENCE
        classes[:, self._output_span(keys, layout)] = torch.where(edit.row_class > 0, LOCATED, SAFE)
        return classes

    def _write(
        self, edit: FlowEdit, row_class: torch.Tensor, call: AttentionCall, output: torch.Tensor, span: slice,
        layout: Layout, in_place: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """The output with the rows of a class above 0 rewritten, and in which samples (B,) that changed it.

        With `in_place` the rows are written into the output that is given. Rows whose every factor is neutral are
        computed anew, but the rounding in them does not count as a change.
        """
        full = torch.zeros(len(row_class), call.query.shape[2], dtype=torch.long, device=row_class.device)
        full[:, span] = row_class
        located = (full > 0, full == CORE)
        counts: list[list[int]] = torch.stack(located).sum(2).tolist()  # host sync
        rows = rows_of(located[0], counts[0])
        if rows.width == 0:
            return output, torch.zeros(len(output), dtype=torch.bool, device=output.device)
        row_class = full.gather(1, rows.index)
        patch = (rows.index - span.start).clamp_min(0)  # padding: any
        old = new = take_rows(output, rows)
        meant = torch.zeros_like(rows.valid)
        plain = edit.text == "own" and edit.text_factor is None and edit.reference_factor is None
        if not plain or any(factor != 1.0 for line in edit.table[1:] for factor in line):
            new, meant = self._restrict(edit, call, rows, row_class, counts[1], patch, layout)
        if edit.projection is not None:
            strength = torch.tensor(edit.projection.strength, device=output.device)[row_class]
            offset = edit.projection.offset.gather(1, patch)
            self._watch(edit.projection.vector)  # NaN there would project nothing
            self._watch(offset)
            projected = projected_rows(new, edit.projection.vector, offset, strength)
            new, meant = projected, meant | _differ(projected, new)
        value = new
        if any(edit.alpha):
            alpha = torch.tensor(edit.alpha, device=output.device)[row_class]
            stats: dict[str, Any] = {"mean": 0.0, "std": 1.0} if edit.noise == "unit" else {}
            noise = matched_noise(new, rows, self._noise_generators(len(full)), **stats)
            value, meant = blended_rows(new, noise, alpha), meant | (alpha > 0)
        written = write_rows(output, value, rows, in_place=in_place)
        after = take_rows(written, rows) if value is not new or rows.padded else new.to(output.dtype)
        self._watch(after)
        return written, (meant & rows.valid & _differ(after, old)).any(1)

    def _restrict(
        self, edit: FlowEdit, call: AttentionCall, rows: Rows, row_class: torch.Tensor, cores: Sequence[int],
        patch: torch.Tensor, layout: Layout,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Rows (B, H, R, D) of the reweighted attention, and which of them (B, R) have a factor that is not neutral.

        `cores`: how many of each sample's rows are CORE.
        """
        lines, keys = [list(line) for line in edit.table], call.key.shape[2]
        own_text, other = self._text_span(keys, layout), None
        if edit.text == "unconditional":
            other = self._unconditional_text(call)
            if other is None:
                lines[CORE][TEXT] = lines[RING][TEXT] = 0.0
            else:
                keys = layout.image + other.key.shape[2]
        every = torch.arange(len(edit.table), device=row_class.device).expand(len(row_class), -1)
        by_class = log_weights(every, self._key_classes(edit, keys, layout), torch.tensor(lines))  # (B, 3, Sk)
        factors = {
            self._text_span: edit.text_factor, self._reference_span: edit.reference_factor,
        }  # fmt: skip
        for find, factor in factors.items():
            if factor is not None:
                by_class[:, :, find(keys, layout)] += factor.log()[:, None]
        if other is None:
            meant = (by_class != 0).any(-1).gather(1, row_class)
            return self._restrict_classes(call, rows, row_class, cores, by_class, lines, layout), meant
        key, value = _grouped(call)
        options: dict[str, Any] = {"attn_mask": call.attn_mask, "scale": call.scale}
        bias = by_class[torch.arange(len(row_class), device=row_class.device)[:, None], row_class]  # (B, R, Sk)
        other_key, other_value = _grouped(attrs.evolve(call, key=other.key, value=other.value))
        seen = None if other.mask is None else mask_rows(other.mask, patch)
        new = redirected_rows(
            call.query, key, value, rows, own_text, other_key, other_value, bias, other_mask=seen, **options
        )
        return new, torch.ones_like(rows.valid)

    def _restrict_classes(
        self, call: AttentionCall, rows: Rows, row_class: torch.Tensor, cores: Sequence[int],
        by_class: torch.Tensor, table: list[list[float]], layout: Layout,
    ) -> torch.Tensor:  # fmt: skip
        """Rows (B, H, R, D) of the call's attention under the log weights by_class (B, 3, Sk) of their class.

        One fused call per class, or one for both if their factors are the same, without the text and reference keys
        that the class does not see at all.
        """
        key, value = _grouped(call)
        mask = None if call.attn_mask is None else as_4d(call.attn_mask, call.query, key)

        def attend(some: Rows, kind: int) -> torch.Tensor:
            seen = self._seen(table[kind], key.shape[2], layout)
            return restricted_rows(
                call.query, key[:, :, seen], value[:, :, seen], some, by_class[:, kind : kind + 1, seen],
                attn_mask=mask if mask is None or mask.shape[3] == 1 else mask[..., seen], scale=call.scale,
            )  # fmt: skip

        if table[CORE] == table[RING]:
            return attend(rows, CORE)
        new = call.query.new_zeros(*call.query.shape[:2], rows.width, call.query.shape[3])
        rings = [n - core for n, core in zip(rows.counts, cores, strict=True)]
        for kind, counts in ((CORE, cores), (RING, rings)):
            slots = rows_of((row_class == kind) & rows.valid, counts)
            if slots.width:
                some = Rows(rows.index.gather(1, slots.index), slots.valid, slots.counts)
                new = write_rows(new, attend(some, kind), slots, in_place=True)
        return new

    def _seen(self, factors: Sequence[float], tokens: int, layout: Layout) -> slice:
        """The keys between the first and the last that a row with these factors sees (by text, ..., reference)."""
        text, _, reference = self._spans(tokens, layout)
        start, stop = 0, tokens
        for span, factor in ((text, factors[TEXT]), (reference, factors[REFERENCE]), (text, factors[TEXT])):
            if factor == 0.0 and span.start == start:
                start = span.stop
            elif factor == 0.0 and span.stop == stop:
                stop = span.start
        return slice(start, stop)

    def _unconditional_text(self, call: AttentionCall) -> _Text | None:
        """The text of the last unconditional pass at this block; None while one may still come: in the first step."""
        batch, found = call.query.shape[0], self._unconditional.get(call.path)
        if found is None and self.guidance == "two_pass" and self.step == 0:
            return None
        if found is None:
            raise UVRError(
                f"a policy needs the text of the unconditional pass, and there was none before {call.path} at step "
                f"{self.step}: turn guidance on (a negative prompt, and true_cfg_scale or guidance_scale above 1), "
                "attach to the pipeline and not to its transformer, or take a policy that needs none ('block' cuts the "
                "text)"
            )
        if found.key.shape[0] not in (1, batch):
            raise UVRError(
                f"the unconditional pass holds {found.key.shape[0]} samples and the conditional one {batch}; expected "
                "as many: give every prompt a negative prompt"
            )
        return attrs.evolve(found, key=found.key.expand(batch, -1, -1, -1), value=found.value.expand(batch, -1, -1, -1))

    def _scale_columns(
        self, edit: FlowEdit, call: AttentionCall, output: torch.Tensor, layout: Layout, before: torch.Tensor | None,
        claimed: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """The call anew with scaled columns, for the samples in which something was located, and all scales (B, 3, Sk).

        Scales multiply those of earlier rules. Rows that earlier rules claimed stay as they are.
        """
        assert edit.columns is not None
        queries, keys = call.query.shape[2], call.key.shape[2]
        if before is None:
            before = torch.ones(len(output), 3, keys, device=output.device)
        some = (edit.row_class > 0).any(1).nonzero().flatten()  # host sync
        if not len(some):
            return output, before
        classes = torch.full((len(some), keys), K_TEXT, device=output.device)
        classes[:, self._output_span(keys, layout)] = K_OUTPUT
        references = [facing(edit.row_class[some], layout.grid, grid) for grid in layout.references]
        if references:
            by_row = torch.tensor([K_REFERENCE, K_FACING_CORE, K_FACING_RING], device=output.device)
            classes[:, self._reference_span(keys, layout)] = by_row[torch.cat(references, 1)]
        scales = torch.tensor(edit.columns.table, device=output.device)[:, classes].transpose(0, 1)  # (b, 3, Sk)
        scales = before[some] * scales
        part = call if len(some) == len(output) else _part(call, some)
        key, value = _grouped(part)
        mask = None if part.attn_mask is None else as_4d(part.attn_mask, part.query, key)
        table = edit.columns.table

        def anew(role: int, span: slice) -> torch.Tensor:
            seen = mask if mask is None or mask.shape[2] == 1 else mask[:, :, span]
            new = scaled_columns(part.query[:, :, span], key, value, scales[:, role], attn_mask=seen, scale=part.scale)
            self._watch(new)
            kept = (scales[:, role] == 1).all(1)[:, None]
            if claimed is not None and role == Q_OUTPUT:
                kept = kept | claimed[some]
            return torch.where(kept[:, None, :, None], output[:, :, span][some], new)

        found = [  # the queries of a role whose every factor is neutral stay as they are
            (span, anew(role, span))
            for role, span in zip((Q_TEXT, Q_OUTPUT, Q_REFERENCE), self._spans(queries, layout), strict=True)
            if span.start < span.stop and any(factor != 1.0 for factor in table[role])
        ]
        result = output.clone()
        for span, new in found:
            result[:, :, span].index_copy_(0, some, new)
        return result, before.index_copy(0, some, scales)

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


def _text_of(call: AttentionCall, text: slice, rows: slice) -> _Text:
    """The text keys and values of a call, copied, so that nothing holds the rest; `rows`: its output patches."""
    mask = None if call.attn_mask is None else as_4d(call.attn_mask, call.query, _grouped(call)[0])
    if mask is not None:
        mask = mask if mask.shape[3] == 1 else mask[..., text]
        mask = (mask if mask.shape[2] == 1 else mask[:, :, rows]).clone()
    return _Text(call.key[:, :, text].clone(), call.value[:, :, text].clone(), mask)


def _columns(keys: Callable[[], torch.Tensor], span: slice) -> torch.Tensor:
    return keys()[:, span]


def _unclosed(path: str, step: int) -> TapNotFired:
    return TapNotFired(f"{path} was entered and not left at step {step}; a hook of UVR was removed: detach, and attach")


def _differ(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(B, R): which rows of (B, H, R, D) are not bitwise the same."""
    return (one != other).any(3).any(1)


def _grouped(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with as many heads as queries (grouped-query attention repeats them)."""
    repeat = call.query.shape[1] // call.key.shape[1]
    if repeat == 1:
        return call.key, call.value
    return call.key.repeat_interleave(repeat, 1), call.value.repeat_interleave(repeat, 1)


__all__ = ["CORE", "RING", "Rule", "Session", "row_classes"]
