"""A regulation driven by hand, attention call by attention call; and a spy behind the taps of a real model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch

import uvr_core
from uvr_core.adapter import Adapter, Layout
from uvr_core.engine.locate import ConceptState
from uvr_core.engine.plan import ConceptPlan
from uvr_core.engine.readings import Reader
from uvr_core.engine.regulation import Regulation
from uvr_core.engine.report import Report
from uvr_core.intercept.calls import AttentionCall, JointCall, joint_call
from uvr_core.intercept.forwards import intervene
from uvr_core.intercept.guidance import Part, parts_of
from uvr_core.intercept.ledger import Forward, Run
from uvr_core.protocols import PolicyTraits


def adapter_of(image_at: Any = "end", output_first: bool = True, guidance: str = "two_pass") -> Adapter:
    """The adapter of a model whose only block is "a"."""
    return Adapter(
        name="driven",
        model="Driven",
        attention=("a",),
        layout=lambda arguments: arguments["layout"],
        time=lambda arguments: arguments["sigma"],
        image_at=image_at,
        output_first=output_first,
        guidance=guidance,
    )


class Driven:
    """A run of a model whose only block is "a", under a plan.

    Attributes:
        name: what the pipeline calls the next guidance part.
        split: how many parts it batches.
    """

    def __init__(
        self,
        plan: Sequence[ConceptPlan],
        image_at: str = "end",
        output_first: bool = True,
        *,
        seeds: tuple[int, ...] = (0,),
        bare: bool = False,
        guidance: str = "two_pass",
        batched: bool = False,
        reader: Reader | None = None,
    ) -> None:
        self.adapter = adapter_of(image_at, output_first, guidance)
        self.run, self.split = Run(("a",), seeds, bare), 2 if batched else 1
        self.name: str | None = None
        taps = frozenset(("a",)) if reader else frozenset()
        self.regulation = Regulation(self.run, self.adapter, plan, lambda report, grid: None, reader, taps)

    @property
    def states(self) -> list[ConceptState]:
        return self.regulation._states

    @property
    def report(self) -> Report:
        return self.regulation.report()

    def forward(self, call: AttentionCall, sigma: float, layout: Layout) -> torch.Tensor | None:
        """One forward; what the engine makes of the call."""
        run, batch = self.run, len(call.query)
        step, number, level = run.next_forward(torch.full((batch,), sigma), layout)
        parts = parts_of(
            self.adapter.guidance, self.name, number, not run.bare, call.query.new_zeros(batch), batch // self.split
        )
        forward = Forward(step, number, layout, level, batch, parts)
        run.open(forward)
        self.regulation.on_forward(forward)
        run.enter("a")
        edited = intervene(call, self.regulation, self.adapter)
        run.leave()
        self.regulation.on_forward_end(run.close())
        return edited


def plan_of(
    bank: uvr_core.ConceptBank, detector: Any, policy: Any, threshold: float = 0.0, **options: Any
) -> ConceptPlan:
    """A plan that looks for the concept in block "a" at every noise level."""
    traits = PolicyTraits.of(policy)
    options = {"grow": threshold, **attrs.asdict(traits, recurse=False), **options}
    return ConceptPlan(
        bank,
        detector,
        policy,
        detector.name,
        policy.name,
        "a",
        (1.0, 0.0),
        threshold,
        exact=bool(getattr(detector, "exact", False)),
        **options,
    )


def joint(call: AttentionCall, layout: Layout, image_at: str = "end", sigma: float = 1.0) -> JointCall:
    """The joint call of block "a" in the first forward of a run."""
    part = Part("cond")
    return joint_call(call, adapter_of(image_at), Forward(0, 0, layout, sigma, len(call.query), (part,)), part)


def spied(reg: uvr_core.Regulator) -> list[tuple[AttentionCall, torch.Tensor | None]]:
    """All calls of the model's tapped modules from now on, as they were made, with what the engine made of them."""
    calls: list[tuple[AttentionCall, torch.Tensor | None]] = []
    taps = reg._interceptor.taps
    stock = taps.observer

    def spy(call: AttentionCall) -> torch.Tensor | None:
        before = call.output.clone()  # the engine may write into the output that it is shown
        edited = stock(call)
        after = call.output if edited is None else edited
        calls.append((attrs.evolve(call, output=before), None if torch.equal(after, before) else after))
        return edited

    taps.observer = spy
    for path, module in taps.modules.items():  # seat the processors anew, with the spy behind them
        module.processor = taps._originals.pop(path)
        taps._seat(path, module)
    return calls
