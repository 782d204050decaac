"""The intervention of one run: each concept is looked for, and its policy's edit carried out, in order of rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch

from ..adapter import Adapter
from ..errors import UnsafeContent, UVRError
from ..intercept.calls import JointCall
from ..intercept.intervention import Again, Ahead, Intervention
from ..intercept.ledger import Forward, Run
from ..protocols import row_classes
from .apply import Edits
from .asked import asked, shown
from .finite import Finite
from .listed import Lister
from .locate import ConceptState
from .plan import ConceptPlan
from .readings import Directions, Reader, features
from .redraw import Earlier
from .report import Posture, Report, summarise
from .schedule import refuse_missed
from .source import Known, Sources
from .texts import Texts
from .unchanged import unchanged, watchable
from .uncond import UncondText
from .verify import verified
from .withhold import Refusal, check_count, images_of, without_refused

HandedOut = Callable[[Report, tuple[int, int] | None], None]


class Regulation(Intervention):
    """Locates and restricts in one run. A patch that an earlier concept's policy edits in a call is not edited by a
    later one's.

    Args:
        run: the run.
        adapter: the model's.
        plan: the concepts, in order of rank.
        handed_out: called with the report and the (H, W) of a generation whose images may leave; with a report alone
            where all are refused.
        reader: shown the calls of the taps in `read_taps`.
        after: show them as the edits left them, and not as they came.
        escalation: plans by which images in which a concept still stands are drawn again, in that order.
        earlier: what was drawn before.
        known: what was told of sources before.
    """

    def __init__(
        self,
        run: Run,
        adapter: Adapter,
        plan: Sequence[ConceptPlan],
        handed_out: HandedOut,
        reader: Reader | None = None,
        read_taps: frozenset[str] = frozenset(),
        after: bool = False,
        escalation: Sequence[Sequence[ConceptPlan]] = (),
        earlier: Earlier | None = None,
        known: Known | None = None,
    ):
        super().__init__(run)
        self.plan, self._handed_out = tuple(plan), handed_out
        self._reader, self._read_taps, self._after = reader, read_taps, after
        self._shown = read_taps | {concept.probe for concept in plan}  # taps whose output somebody may have kept
        self._escalation, self._earlier = tuple(escalation), earlier
        self.repeats = bool(self._escalation)
        self._verified, self._known = verified(plan), known or Known()
        self._sources = Sources(plan, self._known)
        self._scores_at_end: dict[str, list[float]] = {}
        self.sees_uncond = any(concept.needs_uncond for concept in plan)
        self._adapter, self._uncond = adapter, UncondText(adapter.guidance)
        self._finite, self._lister = Finite(plan), Lister()
        self._directions: dict[str, Directions] = {concept.name: {} for concept in plan}
        self._states: list[ConceptState] = []
        self._acted: dict[str, dict[str, bool]] = {}
        self._acts: dict[str, bool] = {}  # in the last call
        self._refusals: dict[int, Refusal] = {}
        self._noise: list[torch.Generator] = []
        self._batch = 0
        self._awaited: frozenset[str] | None = None  # see `_awaits`
        self._text = Texts(plan)

    def ahead(self, arguments: Mapping[str, Any]) -> Ahead | None:
        """The look at the sources, if one is needed."""
        return self._sources.ahead(arguments)

    def idle(self, tap: str) -> bool:
        """Whether the call at that tap is neither looked at nor restricted."""
        return self._awaited is not None and tap not in self._awaited

    def _awaits(self, forward: Forward) -> frozenset[str] | None:
        """The taps of a forward whose calls are looked at, while nothing is located; None: all calls are needed."""
        prompted = [part for part in forward.parts if part.follows_prompt]
        rows = [forward.batch if part.rows is None else len(range(forward.batch or 0)[part.rows]) for part in prompted]
        if self.sees_uncond or not self._states or any(state.located is not None for state in self._states):
            return None
        if rows and rows != [self._batch]:  # `on_call` refuses another batch
            return None
        looked_at = {plan.probe for plan in self.plan if plan.due(plan.probe, forward.sigma)}
        verified = {state.calibration.probe for state in self._verified}
        return self._read_taps | looked_at | verified | self._text.awaited

    def reusable(self, forward: Forward) -> bool:
        """Not while anything is looked for, or a policy holds back that could act in blocks that are skipped."""
        looking = any(concept.due(concept.probe, forward.sigma) for concept in self.plan)
        looking |= any(state.due(state.calibration.probe, forward.sigma) for state in self._verified)
        if self.sees_uncond or self._reader is not None or looking:
            return False
        return all(self._acts.values())

    def on_call(self, call: JointCall) -> torch.Tensor | None:
        """Locate and restrict in one call; returns its new output, None where it stands or was written into."""
        if not call.part.follows_prompt:
            self._uncond.remember(call)
            return None
        if not self._states:
            self._start(call)
        if len(call.query) != self._batch:
            raise UVRError(
                f"{len(call.query)} samples follow the prompt, and {self._batch} did when this generation began; draw "
                "them in generations of their own, each inside `with reg.generation():`"
            )
        if self._reader is not None and call.tap in self._read_taps and not self._after:
            self._reader(call)
        if self._text.read(call, self._states, self._finite):
            self._list_anew()
        if due := [state for state in self._states if state.plan.due(call.tap, call.forward.sigma)]:
            self._look(due, call)
        output = self._restrict(call)
        self._look_after(call if output is None else attrs.evolve(call, output=output))
        return output

    def _start(self, call: JointCall) -> None:
        """Begin with what is known before the first step: from an earlier run, and from the look at the sources."""
        self._batch, grid = len(call.query), call.layout.grid
        self._states = [ConceptState.of(concept, self._batch, grid) for concept in self.plan]
        for state in self._states:
            if self._earlier is not None:
                state.start_from(self._earlier.cores[state.plan.name], call)
            if (cores := self._sources.cores(state.plan.name, self._batch, grid)) is not None:
                state.start_from(cores, call, from_source=True)
        if any(state.located is not None for state in self._states):
            self._list_anew()

    def _look_after(self, call: JointCall) -> None:
        """Verify and show a call as the edits left it."""
        if due := [state for state in self._verified if state.due(call.tap, call.forward.sigma)]:
            with torch.no_grad():  # as in `_look`
                tokens = watchable(features(call))
                for state in due:
                    state.look(call, tokens)
        if self._reader is not None and call.tap in self._read_taps and self._after:
            self._reader(call)

    @torch.no_grad()  # what is only looked at is no part of the graph: a checkpoint counts what that saves
    def _look(self, due: Sequence[ConceptState], call: JointCall) -> None:
        """Score the call for the concepts that are due, and list anew what was located. One host sync."""
        tokens = watchable(features(call))
        scores = torch.stack([state.scores_of(call, tokens) for state in due]).cpu().numpy()  # host sync
        new = [state.take(each, call, tokens) for state, each in zip(due, scores, strict=True)]
        if any(new):
            self._list_anew()

    def _list_anew(self) -> None:
        """The masks are others than they were."""
        self.run.version += 1
        self._awaited = None
        self._lister.forget()
        for state in self._states:
            if state.located is not None:
                self._lister.know(row_classes(state.located), state.classes)

    def _restrict(self, call: JointCall) -> torch.Tensor | None:
        if all(state.located is None for state in self._states):
            return None
        edits = Edits(call, call.tap not in self._shown, self._uncond, self._generators, self._finite, self._lister)
        acts: dict[str, bool] = {}
        for state in self._states:
            if state.located is None or state.compared is None or state.refused is state.located:
                continue
            located = attrs.evolve(state.located, sigma=call.forward.sigma, step=call.forward.step)
            try:
                directions = self._directions[state.plan.name]
                with unchanged(f"policy {state.plan.policy_name!r}", shown(located, state, directions)):
                    edit = asked(state, located, call, directions)
            except UnsafeContent as error:
                if not self._withhold(error, state.plan):
                    raise
                state.refused, edit = state.located, None
            acts[state.plan.name] = edit is not None or not state.plan.acts
            changed = None if edit is None else edits.carry_out(edit)
            if changed is not None:
                state.note_change(call.forward.step, changed)
        self._note_acts(call, acts)
        return None if edits.output is call.output else edits.output  # None also where it was written into

    def _note_acts(self, call: JointCall, acts: dict[str, bool]) -> None:
        """Which concepts' policies edit a call. Where that changes in the first one of a forward, of which a cache
        decides by, nothing computed before is as it would be now."""
        if call.forward.taps.total() == 1 and self._acted.get(call.tap, acts) != acts:
            self.run.version += 1
        self._acts = self._acted[call.tap] = acts

    def _withhold(self, error: UnsafeContent, plan: ConceptPlan) -> bool:
        """Note which images a policy refuses; whether the others can still be returned without them."""
        if strange := [sample for sample in error.samples if sample not in range(self._batch)]:
            raise UVRError(
                f"policy {plan.policy_name!r} refuses samples {strange!r}, and the batch holds 0 to {self._batch - 1}; "
                "the images are withheld"
            )
        refusal = Refusal(plan.name, len(self.run.steps) - 1, getattr(plan.policy, "instead", None))
        for sample in error.samples:
            self._refusals.setdefault(sample, refusal)
        return bool(error.samples) and not self.run.bare and len(self._refusals) < self._batch

    def _generators(self, batch: int) -> list[torch.Generator]:
        """One CPU generator per image, seeded apart from the pipeline's own."""
        seeds = self.run.seeds
        while len(self._noise) < batch:
            index = len(self._noise)
            seed = seeds[index] if index < len(seeds) else seeds[-1] + index - len(seeds) + 1
            self._noise.append(torch.Generator().manual_seed((seed * 2654435761 + 97) % 2**63))
        return self._noise[:batch]

    def on_forward(self, forward: Forward) -> None:
        """Raise UVRError for a concept that is never looked for: before the first step, or when its window is past."""
        refuse_missed(self.plan, self.run.scheduler, forward)
        looked_for = self._looked_for
        for concept in self.plan:
            if forward.sigma < concept.window[1] and concept.name not in looked_for:
                raise self._never_looked_for(concept)
        self._awaited = self._awaits(forward)

    def on_forward_end(self, forward: Forward) -> None:
        """Nobody can withhold what a bare transformer gave: its edits are checked at once."""
        self._finite.fold()
        if self.run.bare:
            self._finite.check()

    def on_end(self, result: Any) -> Any:
        """What may be handed out of a pipeline's result.

        Raises:
            UVRError: an edit gave NaN or Inf, or a concept was never looked for.
            UnsafeContent: no image may leave, or the result does not say which is which.
        """
        self._finite.check()
        looked_for = self._looked_for
        for concept in self.plan:
            if concept.name not in looked_for:
                raise self._never_looked_for(concept)
        check_count(result, self._batch)
        standing = self._standing()
        if standing and self._escalation and images_of(result) is not None:
            return self._again(result, standing)
        for sample, plan in standing.items():
            self._refusals[sample] = Refusal(plan.name, len(self.run.steps) - 1)
        if self._earlier is not None:
            result, self._refusals = self._earlier.merged(result), self._earlier.refused(self._refusals)
        if standing and (self.run.bare or len(self._refusals) == self._batch):
            raise self._still_stands(standing)
        result = without_refused(result, self._refusals, self._batch, len(self.run.steps) - 1)
        self._handed_out(self.report(), self.run.layout.grid if self.run.layout else None)
        return result

    def _standing(self) -> dict[int, ConceptPlan]:
        """Image -> the first concept that still stands in it, of images that this run is to hand out."""
        self._scores_at_end = {state.plan.name: state.scores() for state in self._verified}
        here = set(range(self._batch)) if self._earlier is None else self._earlier.pending
        return {
            sample: state.plan
            for state in reversed(self._verified)
            for sample in (state.standing() if state.plan.acts else ())
            if sample in here and sample not in self._refusals
        }

    def _again(self, result: Any, standing: Mapping[int, ConceptPlan]) -> Again:
        """Have these images drawn by the next plan."""
        cores = {state.plan.name: state.core.copy() for state in self._states}
        for state in self._verified:
            cores[state.plan.name] |= state.patches(self._states[0].core.shape[1:])
        refused: Mapping[int, Refusal] = self._refusals
        if self._earlier is not None:
            result, refused = self._earlier.merged(result), self._earlier.refused(refused)
        earlier = Earlier(result, self.report(), refused, frozenset(standing), cores)
        plan, *rest = self._escalation

        def begin(run: Run) -> Regulation:
            return Regulation(
                run, self._adapter, plan, self._handed_out, self._reader, self._read_taps, self._after, rest, earlier,
                self._known,
            )  # fmt: skip

        return Again(begin)

    def _still_stands(self, standing: Mapping[int, ConceptPlan]) -> UnsafeContent:
        sample = min(standing)
        name, score = standing[sample].name, self._scores_at_end[standing[sample].name][sample]
        return UnsafeContent(
            f"concept {name!r} still stands in image {sample} of the batch at the end (score {score:.3g}); no such "
            "image is returned: change the prompt, the policy, or the seed",
            concept=name,
            samples=tuple(sorted(standing)),
            step=len(self.run.steps) - 1,
        )

    @property
    def _looked_for(self) -> set[str]:
        return {state.plan.name for state in self._states if state.scores}

    def _never_looked_for(self, concept: ConceptPlan) -> UVRError:
        (high, low), sigmas = concept.window, self.run.sigmas
        return UVRError(
            f"concept {concept.name!r} was never looked for: its window is noise levels {high:.3g} to "
            f"{low:.3g}, the run went from {sigmas[0]:.3g} to {sigmas[-1]:.3g}; "
            "calibrate it for this schedule (fewer steps, image-to-image); the images are withheld"
        )

    def on_error(self, error: BaseException) -> None:
        """A generation that is refused whole still says why."""
        if isinstance(error, UnsafeContent):
            self._handed_out(self.report("refused"), None)

    def report(self, posture: Posture | None = None) -> Report:
        """The account so far; posture None: of a whole run."""
        acts = any(concept.acts for concept in self.plan)
        posture = posture or ("regulate" if acts else "observe")
        about = self._scores_at_end, self._sources
        report = summarise(self.run, self._states, self._refusals, posture, *about, self._adapter.routes)
        return report if self._earlier is None else self._earlier.told(report)
