"""What ran, per image and concept, and whether every tap can vouch for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs
import numpy as np
import numpy.typing as npt

from ..adapter import TextRoute
from ..intercept.ledger import Run
from .locate import ConceptState
from .source import Sources
from .withhold import Refusal

Posture = Literal["regulate", "observe", "incomplete", "refused"]
Outcome = Literal["not located", "regulated", "erased", "withheld", "let through"]
"""`regulated`: restricted, not verified. `erased`: restricted, and verified to be gone. `let through`: it still stood,
and the policy only observes."""


@attrs.frozen(eq=False)
class Finding:
    """One concept in one image.

    Attributes:
        sample: index in the batch.
        concept, detector, policy: names.
        located: whether the concept was located.
        score: the largest min_patches-th patch score over the window (compare with `threshold`), gathered over steps
            where the calibration has a memory.
        threshold: tau.
        first_step: step at which it was first located, or None.
        patches: number of core patches at the end; core: (H, W) bool.
        steps_regulated: number of steps in which the policy changed an attention output. An edit without rows, or
            with neutral factors alone, changes none.
        from_source: editing: whether the source image shows the concept (True) or the instruction brings it (False);
            None: nothing located, or the detector cannot tell.
        refused: whether the image was kept back because of this concept.
        standing: whether the concept still stood at the end (see uvr_core.engine.verify); None: not verified.
        verified_score, verified_threshold: what that was told by; None: not verified.
        source_score, source_threshold: what the look at the source told it by; None: nobody looked. Reached: it was
            located before the first step.
        heat: (H, W) float32, the largest score of each patch over the window; not part of `to_dict`.
    """

    sample: int
    concept: str
    detector: str
    policy: str
    located: bool
    score: float
    threshold: float
    first_step: int | None
    patches: int
    steps_regulated: int
    core: npt.NDArray[np.bool_] = attrs.field(repr=False)
    from_source: bool | None = None
    refused: bool = False
    heat: npt.NDArray[np.float32] | None = attrs.field(default=None, repr=False)
    standing: bool | None = attrs.field(default=None, kw_only=True)
    verified_score: float | None = attrs.field(default=None, kw_only=True)
    verified_threshold: float | None = attrs.field(default=None, kw_only=True)
    source_score: float | None = attrs.field(default=None, kw_only=True)
    source_threshold: float | None = attrs.field(default=None, kw_only=True)

    @property
    def outcome(self) -> Outcome:
        """What became of the concept in the image, in a word."""
        if self.refused:
            return "withheld"
        if self.standing:
            return "let through"
        if not self.located:
            return "not located"
        return "regulated" if self.standing is None else "erased"


@attrs.frozen(eq=False)
class Report:
    """The account of one generation.

    Attributes:
        posture: "regulate" (concepts in force, all taps verified), "observe" (no concepts, or policies that
            change nothing), "incomplete" (a bare transformer's generation still in progress), "refused" (the
            generation was stopped because no image of it may be returned).
        steps: scheduler steps seen; passes: transformer passes per step (2 with true guidance).
        taps: joint attention blocks; fired: verified tap firings, reused: those that a step cache served from earlier
            ones, edited alike; together steps * passes * taps in a whole run.
        findings: one per image and concept.
        routes: ways by which text reaches the picture beside the joint attention, as the adapter declares them; what
            goes there is not regulated.
        aside: forwards before the first step that draw nothing, as the adapter says; they passed as they are.
        looks: forwards that looked at the sources before the first step: 1 at most for each draw; known: sources on
            which that was known before.
        draws: how often the pipeline was called: once, and once more for each policy that images were handed on to.
    """

    posture: Posture
    steps: int
    passes: int
    taps: int
    fired: int
    findings: tuple[Finding, ...]
    routes: tuple[TextRoute, ...] = ()
    aside: int = 0
    draws: int = 1
    reused: int = 0
    looks: int = 0
    known: int = 0

    def located(self, sample: int, concept: str | None = None) -> bool:
        """Whether the concept (None: any) was located in that image."""
        return any(f.located for f in self.findings if f.sample == sample and concept in (None, f.concept))

    @property
    def refused(self) -> tuple[int, ...]:
        """The images that were kept back."""
        return tuple(sorted({f.sample for f in self.findings if f.refused}))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; masks as lists of row-major patch numbers."""
        data = attrs.asdict(self, recurse=False)
        said = attrs.filters.exclude("heat")
        data["findings"] = [
            {
                **attrs.asdict(f, recurse=False, filter=said),
                "outcome": f.outcome,
                "core": np.flatnonzero(f.core).tolist(),
                "grid": list(f.core.shape),
            }
            for f in self.findings
        ]
        data["routes"] = [{"name": route.name, "description": route.description} for route in self.routes]
        return data

    def __str__(self) -> str:
        lines = [
            f"posture {self.posture}: {self.steps} steps x {self.passes} passes, {self.fired} tap firings verified "
            f"({self.taps} taps)" + (f", {self.reused} served from a step cache" if self.reused else "")
        ]
        if self.aside:
            lines.append(f"  {self.aside} forwards before the first step drew nothing and passed as they are")
        if self.looks:
            lines.append(f"  {self.looks} forward{'s' * (self.looks > 1)} more looked at the sources")
        if self.known:
            known = "source was" if self.known == 1 else "sources were"
            lines.append(f"  {self.known} {known} known from an earlier look")
        for f in self.findings:
            origin = {None: "", True: ", from the source image", False: ", from the instruction"}[f.from_source]
            what = (
                f"located at step {f.first_step}, {f.patches} patches{origin}, {f.steps_regulated} steps regulated"
                if f.located
                else "not located"
            )
            kept = ", the image was kept back" if f.refused else ""
            if f.verified_score is not None and f.verified_threshold is not None:
                stands = "still stood" if f.standing else "gone"
                kept = f", {stands} at the end ({f.verified_score:.3g}, threshold {f.verified_threshold:.3g}){kept}"
            if f.source_score is not None and f.source_threshold is not None:
                kept = f", in the source {f.source_score:.3g}, threshold {f.source_threshold:.3g}{kept}"
            lines.append(
                f"  image {f.sample} {f.concept}: {what} (score {f.score:.3g}, threshold {f.threshold:.3g}){kept}"
            )
        lines += [f"  not regulated, {route.name}: {route.description}" for route in self.routes]
        return "\n".join(lines)


def summarise(
    run: Run,
    states: Sequence[ConceptState],
    refusals: Mapping[int, Refusal],
    posture: Posture,
    verified: Mapping[str, Sequence[float]],
    sources: Sources,
    routes: tuple[TextRoute, ...] = (),
) -> Report:
    """The report of a run; concepts that were not looked for yet have no findings.

    Args:
        verified: concept -> score of each image at the end, of those that were verified.
        sources: what the looks at the sources told.
        routes: see Report.
    """
    findings = []
    for state in states:
        if not state.scores:
            continue
        plan, regulated = state.plan, state.steps_regulated()
        looks = sources.of(plan.name, len(state.core))
        for sample, core in enumerate(state.core):
            refusal = refusals.get(sample)
            end = verified[plan.name][sample] if plan.name in verified else None
            bar = None if end is None or plan.verification is None else plan.verification.threshold
            findings.append(
                Finding(
                    sample=sample,
                    concept=plan.name,
                    detector=plan.detector_name,
                    policy=plan.policy_name,
                    located=state.first_step[sample] is not None,
                    score=state.best[sample],
                    threshold=plan.threshold,
                    first_step=state.first_step[sample],
                    patches=int(core.sum()),
                    steps_regulated=regulated[sample],
                    core=core.copy(),
                    from_source=state.from_source[sample],
                    refused=refusal is not None and refusal.concept == plan.name,
                    standing=None if end is None or bar is None else end >= bar,
                    verified_score=end,
                    verified_threshold=bar,
                    source_score=looks[sample].score if looks else None,
                    source_threshold=plan.look.threshold if looks and plan.look is not None else None,
                    heat=np.max([scores[sample] for scores in state.scores], 0).reshape(core.shape),
                )
            )
    passes = max(run.passes, default=0)
    steps, taps = len(run.steps), len(run.taps)
    looked = {"looks": sources.forwards, "known": sources.known}
    return Report(
        posture, steps, passes, taps, run.fired, tuple(findings), routes, run.aside, reused=run.reused, **looked
    )
