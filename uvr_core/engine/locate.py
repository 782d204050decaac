"""What one concept has shown in each image of a run so far: scores, evidence, core, ring."""

from __future__ import annotations

import attrs
import numpy as np
import numpy.typing as npt
import torch

from ..concepts import ConceptBank
from ..errors import ConceptMismatch, UVRError
from ..intercept.calls import JointCall
from ..ops.evidence import Evidence
from ..ops.masks import core_of, grow_from, ring_of
from ..ops.upload import upload
from ..protocols import Detector, Located, RowClass, TellsOrigin
from .carriers import chosen_by, text_scores
from .plan import ConceptPlan
from .readings import Compared
from .unchanged import unchanged


@attrs.define(eq=False)
class ConceptState:
    """One concept in one run. `take` alone changes what was located.

    Attributes:
        plan: the concept's plan.
        core: (B, H, W) bool, union over the window's steps.
        first_step: step at which each image's concept was first located, or None.
        best: per image, the largest min_patches-th patch score so far.
        scores: evidence (B, N), one per scored step.
        from_source: per image, whether the source shows the concept; None: not known (yet).
        located: the masks on the device, None before anything is located.
        classes: (B, N) RowClass on the host, as of `located`.
        compared: where a flow contrast is measured, as of `located`.
        refused: the masks for which the policy refused.
        changed: step -> (B,) bool on the device, the images in which an output was changed.
        text_scores: (B, T) on the device, the log odds that a text token carries the concept; None: not told (yet).
        kept: what `carriers` has told, by slack.
    """

    plan: ConceptPlan
    core: npt.NDArray[np.bool_]
    first_step: list[int | None]
    best: list[float]
    from_source: list[bool | None]
    evidence: Evidence
    scores: list[npt.NDArray[np.float32]] = attrs.field(factory=list)
    located: Located | None = None
    classes: npt.NDArray[np.int64] = attrs.field(factory=lambda: np.zeros((0, 0), np.int64))
    compared: Compared | None = None
    refused: Located | None = None
    changed: dict[int, torch.Tensor] = attrs.field(factory=dict)
    text_scores: torch.Tensor | None = None
    kept: dict[float, torch.Tensor] = attrs.field(factory=dict)

    @classmethod
    def of(cls, plan: ConceptPlan, batch: int, grid: tuple[int, int]) -> ConceptState:
        """Nothing located yet in `batch` images of (H, W) patches."""
        nothing = np.zeros((batch, *grid), bool)
        return cls(plan, nothing, [None] * batch, [-np.inf] * batch, [None] * batch, Evidence(plan.memory))

    def start_from(self, core: npt.NDArray[np.bool_], call: JointCall, from_source: bool | None = None) -> None:
        """Take patches (B, H, W) as located before the first step; `from_source`: who brings them, if that is known."""
        if not core.any():
            return
        self.core |= core
        for sample in np.flatnonzero(core.any((1, 2))):
            self.first_step[sample], self.from_source[sample] = 0, from_source
        self._upload(call)

    def steps_regulated(self) -> list[int]:
        """Per image, the number of steps in which an output was changed. One host sync."""
        if not self.changed:
            return [0] * len(self.core)
        steps: list[int] = torch.stack(list(self.changed.values())).sum(0).tolist()
        return steps

    def note_change(self, step: int, changed: torch.Tensor) -> None:
        """(B,) bool, on the device: in which images an edit of this step changed the output."""
        self.changed[step] = self.changed[step] | changed if step in self.changed else changed

    def read_text(self, call: JointCall) -> torch.Tensor:
        """(B, T): how likely each text token carries the concept; once a generation."""
        assert self.plan.text is not None
        self.text_scores = text_scores(call, self.plan.bank, self.plan.text)
        return self.text_scores

    def take_asked(self, call: JointCall) -> bool:
        """Take the images as located whose prompts ask for the concept, all of their patches: nothing says a place.

        One host sync, if the policy and the concept know of that and there are no sources. Returns whether any do.
        """
        how = self.plan.text
        if how is None or how.asks is None or not self.plan.by_text or call.layout.references:
            return False
        assert self.text_scores is not None
        asked = (self.text_scores.amax(1) >= how.asks).cpu().numpy()  # host sync
        self.start_from(np.broadcast_to(asked[:, None, None], self.core.shape), call)
        return bool(asked.any())

    def carriers(self, slack: float) -> torch.Tensor | None:
        """(B, T) bool, the asker's own; see CallInfo.carriers."""
        if self.text_scores is None or self.plan.text is None:
            return None
        if slack not in self.kept:
            self.kept[slack] = chosen_by(self.text_scores, self.plan.text, slack)
        return self.kept[slack].clone()

    def scores_of(self, call: JointCall, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N) float32: what the detector says of the call's output patches, of which `tokens` are the `features`."""
        plan = self.plan
        return patch_scores(plan.detector, plan.detector_name, plan.bank, plan.probe, call.forward.sigma, tokens)

    def take(self, scores: npt.NDArray[np.float32], call: JointCall, tokens: torch.Tensor) -> bool:
        """Add what the scores (B, N) locate to the masks; whether these are new.

        No host sync, but for one where a detector tells from which source a freshly located concept comes.

        Raises:
            UVRError: NaN or Inf among the scores.
        """
        new = self._add(scores, call.forward.step)
        if new:
            self._tell_origin(tokens, call)
            self._upload(call)
        return new

    def _add(self, scores: npt.NDArray[np.float32], step: int) -> bool:
        """Add this step's scores to the masks; whether these grew."""
        plan = self.plan
        if not np.isfinite(scores).all() and (np.isnan(scores).any() or (np.isposinf(scores).any() and not plan.exact)):
            raise UVRError(
                f"concept {plan.name!r}: NaN or Inf in the score of {plan.probe} at step {step}; the run is "
                "broken (overflow in half precision?) and UVR cannot vouch for the image"
            )
        if scores.shape[1] < plan.min_patches:
            raise ConceptMismatch(
                f"concept {plan.name!r} counts as located from {plan.min_patches} patches, and the image has "
                f"{scores.shape[1]}: draw larger, or calibrate it at this size"
            )
        scores = self.evidence.add(scores)
        self.scores.append(scores)
        best = np.partition(scores, -plan.min_patches, axis=1)[:, -plan.min_patches].tolist()
        self.best = [max(pair) for pair in zip(self.best, best, strict=True)]
        enough = (scores >= plan.threshold).sum(1) >= plan.min_patches
        changed = False
        for sample in range(len(scores)):
            located_before = self.first_step[sample] is not None
            if not enough[sample] and not located_before:
                continue
            core = self._core_of(scores[sample].reshape(self.core.shape[1:]))
            if not core.any():
                continue
            if not located_before:
                self.first_step[sample] = step
            changed |= bool((core & ~self.core[sample]).any())
            self.core[sample] |= core
        return changed

    def _core_of(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """(H, W) bool: the patches of one image's scores that count."""
        plan, hits = self.plan, scores >= self.plan.threshold
        wanted = scores >= plan.grow
        if plan.grow > plan.threshold and wanted.sum() >= plan.min_patches:
            hits = wanted
        if plan.exact:
            return hits
        weights = np.nan_to_num(scores, neginf=-1e4, posinf=1e4)
        return core_of(grow_from(hits, wanted), weights, mass_ratio=plan.masks.mass_ratio)

    def _tell_origin(self, tokens: torch.Tensor, call: JointCall) -> None:
        """Ask where a concept comes from, in the step in which it is located first: later ones are regulated."""
        plan, step = self.plan, call.forward.step
        known = self.from_source
        fresh = [sample for sample, first in enumerate(self.first_step) if first == step and known[sample] is None]
        if not fresh or not call.layout.references or not isinstance(plan.detector, TellsOrigin):
            return
        core = upload(self.core.reshape(len(self.core), -1), tokens.device)
        with unchanged(f"detector {plan.detector_name!r}", (tokens, *plan.bank.tensors.values())):
            origin = plan.detector.origin(tokens, core, call.forward.sigma, plan.bank, plan.probe)
        if origin is None:
            return
        told = origin.detach().float().cpu().numpy()
        for sample in fresh:
            self.from_source[sample] = not told[sample] <= 0  # NaN: fail closed

    def _upload(self, call: JointCall) -> None:
        """The masks, to the device."""
        plan, device = self.plan, call.query.device
        core = np.stack([mask | ring_of(mask, plan.masks.margin) for mask in self.core])
        ring = np.stack([ring_of(wide, plan.masks.ring) for wide in core])
        inside, near = (mask.reshape(len(mask), -1) for mask in (core, ring))
        self.classes = inside.astype(np.int64) * RowClass.CORE + near.astype(np.int64) * RowClass.RING
        self.compared = Compared.of(core, ring, device)
        source = np.array([told is not False for told in self.from_source])
        self.located = Located(
            upload(inside, device),
            upload(near, device),
            call.layout.grid,
            call.forward.sigma,
            call.forward.step,
            plan.window,
            upload(source, device) if call.layout.references else None,
            plan.name,
        )
        self.located.once("classes", lambda: upload(self.classes, device))


def patch_scores(
    detector: Detector, name: str, bank: ConceptBank, probe: str, sigma: float, tokens: torch.Tensor
) -> torch.Tensor:
    """(B, N) float32: what a detector says of `features` (B, N, C).

    Raises:
        UVRError: it wrote into what it was shown, or gave no scores.
    """
    with unchanged(f"detector {name!r}", (tokens, *bank.tensors.values())):
        scores = detector.scores(tokens, sigma, bank, probe)
    if not isinstance(scores, torch.Tensor) or scores.shape != tokens.shape[:2]:
        shape = f"scores of shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else repr(scores)
        raise UVRError(f"detector {name!r} returned {shape}, expected a tensor {tuple(tokens.shape[:2])}")
    if scores.is_sparse or scores.is_meta:
        kind = "sparse" if scores.is_sparse else "on the meta device"
        raise UVRError(f"detector {name!r} returned scores that are {kind}; expected dense numbers")
    return scores.detach().float()
