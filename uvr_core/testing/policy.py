"""check_policy: a policy on given masks, and on a small model of a real class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch

from ..adapter import Adapter
from ..engine.lookup import find_adapter
from ..errors import UnsafeContent
from ..protocols import CallInfo, Direction, FlowEdit, Located, MaskOptions, Policy, PolicyTraits, RowClass
from .example import Example
from .given import Given, regulated
from .suite import Conformance, checks_of, expect, refuse_name, run_checks, skip_unless

GRID = (3, 4)
TEXT = 5
REFERENCE = 6
WIDTH = 8
SIGMAS = (1.0, 0.86, 0.5, 0.0)
ROUNDING = 1e-6  # a vectorised clamp or pow may round the last digit otherwise for one sample than for three


def check_policy(
    policy: Policy,
    *,
    make_example: Callable[[], Example] | None = None,
    adapter: Adapter | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> Conformance:
    """Hold a policy against the protocol, and run it on a small model. A policy may raise UnsafeContent.

    Args:
        policy: the policy.
        make_example: () -> a fresh Example; None: a small FluxTransformer2DModel with reference tokens.
        adapter: for the example's model; None: recognised by its class.
        expected_failures: {check: reason}. The checks: protocol, mask-options, shapes, factors, located-rows-only,
            samples-independent, deterministic, inputs-unchanged, no-global-random, stock-samples, stock-patches.

    Raises:
        ConformanceError: a check failed, or an expected failure did not; all are listed, and `report` holds them.
        UVRError: `expected_failures` names no check, or `policy` is a name or a class.
    """
    refuse_name("policy", policy)
    if make_example is None:
        from .tiny import tiny_example

        def make_example() -> Example:
            return tiny_example("FluxTransformer2DModel")

    checks = checks_of(AsFunction(policy), OnModel(policy, make_example, adapter))
    name = getattr(policy, "name", type(policy).__name__)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return run_checks(f"policy {name!r}", checks, expected_failures)


@attrs.frozen(eq=False)
class _Case:
    """One call of a policy: masks of three samples (some patches, none, most), contrasts and the concept's direction.

    With reference tokens, the first sample's concept is brought by the instruction, the last one's by the source.
    """

    core: torch.Tensor
    ring: torch.Tensor
    sigma: float
    text_contrast: torch.Tensor
    reference_contrast: torch.Tensor
    direction: Direction

    @property
    def where(self) -> str:
        return f"noise level {self.sigma}, {self.reference_contrast.shape[1]} reference tokens"

    def located(self, samples: slice = slice(None)) -> Located:
        source = torch.tensor([False, True, True])[samples] if self.reference_contrast.shape[1] else None
        core, ring = self.core[samples].clone(), self.ring[samples].clone()
        return Located(core, ring, GRID, self.sigma, 1, from_source=source)

    def call(self, samples: slice = slice(None)) -> CallInfo:
        return CallInfo(
            "transformer_blocks.0.attn",
            self.text_contrast.shape[1],
            self.reference_contrast.shape[1],
            lambda: self.text_contrast[samples].clone(),
            lambda: self.reference_contrast[samples].clone(),
            lambda: Direction(self.direction.vector.clone(), self.direction.offset[samples].clone()),
        )


def _cases() -> Iterator[_Case]:
    generator = torch.Generator().manual_seed(5)
    core = torch.zeros(3, *GRID, dtype=torch.bool)
    core[0, 1, 1] = True
    core[2, :, :3] = True
    ring = torch.zeros_like(core)
    ring[0, 0:3, 0:3] = True
    ring[2, :, 3] = True
    for sigma in SIGMAS:
        for reference in (0, REFERENCE):
            text = 4 * torch.rand(3, TEXT, generator=generator)
            text[0, 0], text[0, 1] = torch.inf, 0.0  # only the others give it nothing; the located rows give nothing
            contrast = 4 * torch.rand(3, reference, generator=generator)
            offset = torch.randn(3, GRID[0] * GRID[1], generator=generator)
            direction = Direction(torch.randn(WIDTH, generator=generator), offset)
            yield _Case(core.flatten(1), (ring & ~core).flatten(1), sigma, text, contrast, direction)


@attrs.frozen(eq=False)
class AsFunction:
    """What a policy gives for made-up masks and contrasts."""

    policy: Policy

    def protocol(self) -> None:
        method = getattr(self.policy, "edit", None)
        expect(callable(method), "edit", expected="a method", got=method)
        for case in _cases():
            inspect.signature(self.policy.edit).bind(case.located(), case.call())
            edit, expected = self._edit(case), "FlowEdit or None"
            what, kind = f"edit at {case.where}", type(edit).__name__
            expect(edit is None or isinstance(edit, FlowEdit), what, expected=expected, got=kind)

    def mask_options(self) -> None:
        PolicyTraits.of(self.policy)

    def shapes(self) -> None:
        for case, edit in self._edits():
            batch, patches = case.core.shape
            reference = case.reference_contrast.shape[1]
            edit.check_shapes(batch=batch, patches=patches, text=TEXT, reference=reference, width=WIDTH)
            classes = set(edit.rows.flatten().tolist())
            expect(classes <= set(RowClass), "row classes", expected="0, 1 or 2", got=sorted(classes))

    def factors(self) -> None:
        for case, edit in self._edits():
            for name in ("text_factor", "reference_factor"):
                factor = getattr(edit.reweight, name, None)
                if factor is not None:
                    bad = factor[~(factor.isfinite() & (factor >= 0))].tolist()
                    expect(not bad, f"{name} at {case.where}", expected="finite factors >= 0", got=bad)

    def located_rows_only(self) -> None:
        for case, edit in self._edits():
            outside = (edit.rows != RowClass.STOCK) & ~(case.core | case.ring)
            others = f"others too, (sample, patch) {outside.nonzero()[:3].tolist()}"
            expect(not outside.any(), f"edited rows at {case.where}", expected="located ones alone", got=others)

    def samples_independent(self) -> None:
        for case in _cases():
            together = self._edit(case)
            for sample in range(3):
                if not (case.core | case.ring)[sample].any():
                    continue  # a policy is not called for it alone
                one = slice(sample, sample + 1)
                what = f"edit of sample {sample} alone and in a batch of 3, {case.where}"
                _expect_same(what, self._edit(case, one), together, one, ROUNDING)

    def deterministic(self) -> None:
        for case in _cases():
            torch.manual_seed(0)
            first = self._edit(case)
            torch.manual_seed(1)
            _expect_same(f"edits at {case.where}", first, self._edit(case), slice(None))

    def inputs_unchanged(self) -> None:
        for case in _cases():
            located = case.located()
            text, reference = case.text_contrast.clone(), case.reference_contrast.clone()
            call = attrs.evolve(case.call(), text_contrast=_giving(text), reference_contrast=_giving(reference))
            try:
                self.policy.edit(located, call)
            except UnsafeContent:
                continue
            kept = {
                "core": torch.equal(located.core, case.core),
                "ring": torch.equal(located.ring, case.ring),
                "text_contrast": torch.equal(text, case.text_contrast),
                "reference_contrast": torch.equal(reference, case.reference_contrast),
            }
            changed = [name for name, same in kept.items() if not same]
            expect(not changed, "inputs changed in place", expected="none", got=", ".join(changed))

    def no_global_random(self) -> None:
        state = torch.random.get_rng_state()
        for case in _cases():
            self._edit(case)
        same = torch.equal(state, torch.random.get_rng_state())
        advanced = "advanced: the pipeline's noise would depend on the policy"
        expect(same, "global random state", expected="unused", got=advanced)

    def _edit(self, case: _Case, samples: slice = slice(None)) -> FlowEdit | None:
        """The policy's edit; raising UnsafeContent edits nothing."""
        try:
            return self.policy.edit(case.located(samples), case.call(samples))
        except UnsafeContent:
            return None

    def _edits(self) -> Iterator[tuple[_Case, FlowEdit]]:
        for case in _cases():
            edit = self._edit(case)
            if edit is not None:
                yield case, edit


@attrs.frozen(eq=False)
class OnModel:
    """What a policy does in a real run on a small model."""

    policy: Policy
    make_example: Callable[[], Example]
    adapter: Adapter | None

    def stock_samples(self) -> None:
        """A sample in which nothing was located comes out bitwise as from the stock model."""
        for sigma in SIGMAS[:-1]:
            stock, edited, core = self._generate(sigma, self.policy)
            empty = ~core.any(1)
            _expect_stock(f"samples without the concept at noise level {sigma}", stock[empty], edited[empty])

    def stock_patches(self) -> None:
        """At the last block an edit of rows changes the patches of those rows alone."""
        example = self.make_example()
        last = list(find_adapter(example.model, self.adapter).taps(example.model))[-1]
        checked = False
        for sigma in SIGMAS[:-1]:
            spy = _At(self.policy, last, PolicyTraits.of(self.policy).masks)
            stock, edited, _ = self._generate(sigma, spy)
            if spy.edits and spy.edits[-1].columns is None:
                checked = True
                kept = spy.edits[-1].rows == RowClass.STOCK
                _expect_stock(f"patches not edited, at noise level {sigma}", stock[kept], edited[kept])
        skip_unless(checked, "the policy edits no rows, or scales columns, which reach every query")

    def _generate(self, sigma: float, policy: Policy) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(stock output, output under the policy, located core) of one forward of three samples."""
        example = self.make_example()
        size = example.sizes[-1]
        arguments = example.arguments(size, 3, sigma, example.reference_sizes)
        core = torch.zeros(3, *size, dtype=torch.bool)
        core[0, :2, :2] = core[2, -1, -1] = True
        mask = core.flatten(1)
        stock = example.run(arguments, size)
        try:
            with regulated(example.model, self.adapter, Given(mask), policy):
                edited = example.run(arguments, size)
        except UnsafeContent:
            edited = stock
        return stock, edited, mask


@attrs.define(eq=False)
class _At:
    """A policy at one block only, its edits kept."""

    policy: Policy
    path: str
    masks: MaskOptions
    edits: list[FlowEdit] = attrs.field(factory=list)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        edit = self.policy.edit(located, call) if call.path == self.path else None
        if edit is not None:
            self.edits.append(edit)
        return edit


def _giving(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """() -> that tensor."""
    return lambda: tensor


def _expect_stock(what: str, stock: torch.Tensor, edited: torch.Tensor) -> None:
    if not torch.equal(stock, edited):
        change = float((stock - edited).abs().max())
        expect(False, what, expected="bitwise stock", got=f"a change of up to {change:.3g}")


def _expect_same(
    what: str, one: FlowEdit | None, other: FlowEdit | None, samples: slice, rounding: float = 0.0
) -> None:
    """That an edit is those samples of another: its factors within `rounding`, all else bitwise."""
    expect((one is None) == (other is None), what, expected="both or neither", got="one")
    if one is None or other is None:
        return
    mine, theirs = (dict(_fields(edit)) for edit in (one, other))
    wrong = []
    for name in sorted({*mine, *theirs}):
        a, b = mine.get(name), theirs.get(name)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            same = _alike(a, b if name == "projection.vector" else b[samples], rounding)
        else:
            same = type(a) is type(b) and a == b
        wrong += [] if same else [name]
    expect(not wrong, what, expected="the same", got=f"another {', '.join(wrong)}")


def _alike(one: torch.Tensor, other: torch.Tensor, rounding: float) -> bool:
    if rounding == 0 or not one.is_floating_point() or one.shape != other.shape or one.dtype != other.dtype:
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=rounding, atol=rounding)


def _fields(part: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of every number, word and tensor of an edit."""
    for field in attrs.fields(type(part)):
        value = getattr(part, field.name)
        if attrs.has(type(value)):
            yield from _fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value
