"""The look at the source: where a picture that is to be edited shows a concept, told before the first step.

The user's instruction hides what the source shows; one forward at noise level 1 under a neutral text does not. See
docs/design/measurements.md. What the instruction brings is told by the output's scores, as ever.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch

from ..errors import UnsupportedRuntime, UVRError
from ..intercept.ahead import KEPT, first_step
from ..intercept.calls import JointCall
from ..intercept.intervention import Ahead, Intervention
from ..intercept.ledger import Run
from .locate import ConceptState
from .plan import ConceptPlan
from .readings import source_features
from .unchanged import watchable

MOST = 1024  # sources whose verdicts are kept: at 4,096 patches 4 KB each


@attrs.frozen(eq=False)
class Verdict:
    """What a look said of one concept in one source.

    Attributes:
        score: the largest min_patches-th patch score.
        core: (H, W) bool on the output's grid, where it is; empty: it was not located.
    """

    score: float
    core: npt.NDArray[np.bool_]


Verdicts = Mapping[str, Verdict]  # by concept


class Known:
    """The verdicts on the last MOST sources, by digest. Threads may share it: a verdict follows from the source."""

    def __init__(self) -> None:
        self._verdicts: OrderedDict[str, Verdicts] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: str | None) -> Verdicts | None:
        """None: not known."""
        with self._lock:
            return None if digest is None else self._verdicts.get(digest)

    def add(self, digest: str | None, verdicts: Verdicts) -> None:
        """Keep a verdict, unless the source has no digest."""
        with self._lock:
            if digest is not None:
                self._verdicts[digest] = verdicts
                self._verdicts.move_to_end(digest)
            while len(self._verdicts) > MOST:
                self._verdicts.popitem(last=False)


class Look(Intervention):
    """Locates concepts in the sources of a run of one step. It changes nothing.

    Args:
        plan: the concepts' looks.
        tell: called with the verdicts on each source.
    """

    def __init__(self, run: Run, plan: Sequence[ConceptPlan], tell: Callable[[Sequence[Verdicts]], None]):
        super().__init__(run)
        self._plan, self._tell = tuple(plan), tell
        self._states: list[ConceptState] = []

    def on_call(self, call: JointCall) -> None:
        """Score the reference tokens of a probe's call. One host sync a probe."""
        if not call.part.follows_prompt:
            return
        if not self._states:
            self._states = [ConceptState.of(each, len(call.query), call.layout.grid) for each in self._plan]
        if due := [state for state in self._states if state.plan.due(call.tap, call.forward.sigma)]:
            with torch.no_grad():
                tokens = watchable(source_features(call))
                for state in due:
                    state.take(state.scores_of(call, tokens).cpu().numpy(), call, tokens)

    def on_end(self, result: Any) -> Any:
        """Hand the verdicts on.

        Raises:
            UVRError: the run was not of one step, or a concept was not looked for in it.
        """
        unseen = [state.plan.name for state in self._states if not state.scores]
        if len(self.run.steps) != 1 or unseen or not self._states:
            names = ", ".join(repr(name) for name in unseen or [each.name for each in self._plan])
            raise UVRError(
                f"the look at the source ran {len(self.run.steps)} steps from noise level {self.run.sigmas[0]:.3g} and "
                f"did not look for {names}; expected one step at noise level 1. No image is drawn: attach with "
                "look=False, or report this pipeline"
            )
        count = len(self._states[0].core)
        self._tell([{s.plan.name: Verdict(s.best[i], s.core[i].copy()) for s in self._states} for i in range(count)])
        return result


class Sources:
    """The sources of one run, and what is known of them.

    Args:
        plan: all concepts of the run.
        known: verdicts of earlier runs; this run's join them.

    Attributes:
        forwards: of this run's look: 1, or 0 where all were known or there is nothing to look at.
        known: how many sources were known, where all were.
    """

    def __init__(self, plan: Sequence[ConceptPlan], known: Known):
        self._plan = tuple(concept.look for concept in plan if concept.look is not None)
        self._texts = [concept.bank.source.text for concept in plan if concept.look and concept.bank.source]
        self._known = known
        self._verdicts: Sequence[Verdicts] = ()
        self.forwards = self.known = 0

    def ahead(self, arguments: Mapping[str, Any]) -> Ahead | None:
        """The call that looks at the sources of a pipeline's call, whose arguments these are; None: none is needed.

        Raises:
            UnsupportedRuntime: `image` is nothing that sources are told apart in.
        """
        if not self._plan or arguments.get("image") is None:
            return None
        sources = sources_in(arguments["image"])
        digests = digests_of(sources, {name: arguments.get(name) for name in KEPT})
        known = [verdicts for digest in digests if (verdicts := self._known.get(digest)) is not None]
        if len(known) == len(sources):
            self._verdicts, self.known = known, len(known)
            return None
        self.forwards = 1

        def tell(verdicts: Sequence[Verdicts]) -> None:
            if len(verdicts) != len(sources):
                raise UVRError(
                    f"the look at the source drew {len(verdicts)} pictures of {len(sources)} sources; no image is drawn"
                )
            self._verdicts = verdicts
            for digest, each in zip(digests, verdicts, strict=True):
                self._known.add(digest, each)

        call = first_step(arguments, self._texts[0], len(sources))
        return Ahead(call, lambda run: Look(run, self._plan, tell))

    def of(self, name: str, batch: int) -> list[Verdict]:
        """The verdict on each of a batch's rows, of one concept; none: nobody looked. Sources are repeated in order, as
        diffusers does.

        Raises:
            UVRError: another number of rows than the sources make.
        """
        if not self._verdicts or name not in self._verdicts[0]:
            return []
        if batch % len(self._verdicts):
            raise UVRError(f"{batch} rows follow the prompt and {len(self._verdicts)} sources were looked at")
        return [self._verdicts[row % len(self._verdicts)][name] for row in range(batch)]

    def cores(self, name: str, batch: int, grid: tuple[int, int]) -> npt.NDArray[np.bool_] | None:
        """(B, H, W) bool, where a concept was located in the rows' sources; None: nobody looked.

        Raises:
            UVRError: the look drew on another grid.
        """
        verdicts = self.of(name, batch)
        if not verdicts:
            return None
        if any(verdict.core.shape != grid for verdict in verdicts):
            raise UVRError(f"the look at the source drew {verdicts[0].core.shape} patches, and this run draws {grid}")
        return np.stack([verdict.core for verdict in verdicts])


def sources_in(image: Any) -> list[Any]:
    """The pictures of a pipeline's `image`: one, a list of them, or the entries of an array with four axes.

    Raises:
        UnsupportedRuntime: anything else.
    """
    if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4:
        return list(image)
    pictures = list(image) if isinstance(image, (list, tuple)) else [image]
    if not pictures or not all(_is_picture(each) for each in pictures):
        raise UnsupportedRuntime(
            f"image: expected one picture or a list of them, got {type(image).__name__}; UVR cannot tell the sources "
            "apart that it is to look at: pass pictures, or attach with look=False"
        )
    return pictures


def _is_picture(value: Any) -> bool:
    array = isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim <= 3
    return array or (hasattr(value, "mode") and hasattr(value, "tobytes"))


def digests_of(sources: Sequence[Any], beside: Mapping[str, Any]) -> list[str | None]:
    """A digest of each source and of what the look's call shares; None of all where that cannot be told.

    Args:
        beside: the other arguments that the call keeps. The first source's size belongs to it: pipelines bring all to
            that size.
    """
    said = {name: value for name, value in beside.items() if value}
    if not all(isinstance(value, (bool, int, float, str)) for value in said.values()):
        return [None] * len(sources)
    size = sources[0].shape if isinstance(sources[0], (np.ndarray, torch.Tensor)) else sources[0].size
    shared = repr((sorted(said.items()), size))
    return [hashlib.sha256(shared.encode() + _bytes_of(source)).hexdigest() for source in sources]


def _bytes_of(source: Any) -> bytes:
    """What tells a picture from another: kind, size and content."""
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().contiguous()
        kind, source = repr((source.dtype, source.shape)), source.view(-1).view(torch.uint8).numpy()
        return kind.encode() + bytes(source.tobytes())
    if isinstance(source, np.ndarray):
        return repr((source.dtype.str, source.shape)).encode() + source.tobytes()
    palette = source.getpalette() if source.mode == "P" else None
    return repr((source.mode, source.size, palette)).encode() + bytes(source.tobytes())
