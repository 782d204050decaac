"""check_policy: a policy on given masks, and on a small model of a real class."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping

import attrs
import torch

from ..adapter import Adapter
from ..engine.lookup import find_adapter
from ..errors import UnsafeContent
from ..protocols import CallInfo, Direction, FlowEdit, Located, Policy
from .example import Example
from .given import Given, regulated
from .suite import Conformance, expect, run_checks, skip_unless

GRID = (3, 4)
TEXT = 5
REFERENCE = 6
WIDTH = 8
SIGMAS = (1.0, 0.86, 0.5, 0.0)
_OPTIONS = ("ring", "margin", "mass_ratio")


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
        UVRError: `expected_failures` names no check.
    """
    if make_example is None:
        from .tiny import tiny_example

        def make_example() -> Example:
            return tiny_example("FluxTransformer2DModel")

    suite = _Suite(policy, make_example, adapter)
    checks = {
        "protocol": suite.protocol,
        "mask-options": suite.mask_options,
        "shapes": suite.shapes,
        "factors": suite.factors,
        "located-rows-only": suite.located_rows_only,
        "samples-independent": suite.samples_independent,
        "deterministic": suite.deterministic,
        "inputs-unchanged": suite.inputs_unchanged,
        "no-global-random": suite.no_global_random,
        "stock-samples": suite.stock_samples,
        "stock-patches": suite.stock_patches,
    }
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
        return Located(
            self.core[samples].clone(), self.ring[samples].clone(), GRID, self.sigma, 1, from_source=source
        )  # fmt: skip

    def call(self, samples: slice = slice(None)) -> CallInfo:
        return CallInfo(
            "transformer_blocks.0.attn", self.text_contrast.shape[1], self.reference_contrast.shape[1],
            lambda: self.text_contrast[samples].clone(), lambda: self.reference_contrast[samples].clone(),
            lambda: Direction(self.direction.vector.clone(), self.direction.offset[samples].clone()),
        )  # fmt: skip


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
class _Suite:
    policy: Policy
    make_example: Callable[[], Example]
    adapter: Adapter | None

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

    # ------------------------------------------------------------------ the function
    def protocol(self) -> None:
        method = getattr(self.policy, "edit", None)
        expect(callable(method), "edit", expected="a method", got=method)
        for case in _cases():
            inspect.signature(self.policy.edit).bind(case.located(), case.call())
            found = self._edit(case)
            expect(found is None or isinstance(found, FlowEdit), f"edit at {case.where}", expected="FlowEdit or None",
                   got=type(found).__name__)  # fmt: skip

    def mask_options(self) -> None:
        for name in ("ring", "margin"):
            value = getattr(self.policy, name, 0)
            expect(isinstance(value, int) and value >= 0, name, expected="a number of patches >= 0", got=repr(value))
        ratio = getattr(self.policy, "mass_ratio", 1.0)
        expect(isinstance(ratio, (int, float)) and 0 < ratio <= 1, "mass_ratio", expected="0 < ratio <= 1",
               got=repr(ratio))  # fmt: skip

    def shapes(self) -> None:
        for case, edit in self._edits():
            batch, patches = case.core.shape
            _shape("row_class", edit.row_class, (batch, patches), case)
            expect(edit.row_class.dtype == torch.long, "row_class", expected=torch.long, got=edit.row_class.dtype)
            expect(edit.row_class.amin() >= 0 and edit.row_class.amax() <= 2, "row classes", expected="0, 1 or 2",
                   got=sorted(set(edit.row_class.flatten().tolist())))  # fmt: skip
            _table("table", edit.table, 3, 4)
            if edit.columns is not None:
                _table("columns.table", edit.columns.table, 3, 5)
            expect(len(edit.alpha) == 3, "alpha", expected="3 shares", got=edit.alpha)
            expect(edit.noise in ("matched", "unit"), "noise", expected="'matched' or 'unit'", got=repr(edit.noise))
            for name, factor, tokens in (
                ("text_factor", edit.text_factor, TEXT),
                ("reference_factor", edit.reference_factor, case.reference_contrast.shape[1]),
            ):
                if factor is not None:
                    _shape(name, factor, (batch, tokens), case)
            expect(edit.text in ("own", "unconditional"), "text", expected="'own' or 'unconditional'",
                   got=repr(edit.text))  # fmt: skip
            if edit.projection is not None:
                _shape("projection.vector", edit.projection.vector, (WIDTH,), case)
                _shape("projection.offset", edit.projection.offset, (batch, patches), case)
                expect(len(edit.projection.strength) == 3, "projection.strength", expected="3 shares",
                       got=edit.projection.strength)  # fmt: skip

    def factors(self) -> None:
        for case, edit in self._edits():
            numbers = {"table": [x for line in edit.table for x in line]}
            if edit.columns is not None:
                numbers["columns.table"] = [x for line in edit.columns.table for x in line]
            for name, tensor in (("text_factor", edit.text_factor), ("reference_factor", edit.reference_factor)):
                if tensor is not None:
                    numbers[name] = tensor.flatten().tolist()
            if edit.projection is not None:
                numbers["projection.strength"] = list(edit.projection.strength)
            for name, values in numbers.items():
                bad = [x for x in values if not (math.isfinite(x) and x >= 0)]
                expect(not bad, f"{name} at {case.where}", expected="finite factors >= 0", got=bad)
            expect(all(0 <= share <= 1 for share in edit.alpha), "alpha", expected="shares in 0..1", got=edit.alpha)

    def located_rows_only(self) -> None:
        for case, edit in self._edits():
            outside = (edit.row_class > 0) & ~(case.core | case.ring)
            expect(not outside.any(), f"edited rows at {case.where}", expected="located ones alone",
                   got=f"others too, (sample, patch) {outside.nonzero()[:3].tolist()}")  # fmt: skip

    def samples_independent(self) -> None:
        for case in _cases():
            together = self._edit(case)
            for sample in range(3):
                if not (case.core | case.ring)[sample].any():
                    continue  # a policy is not called for it alone
                alone = self._edit(case, slice(sample, sample + 1))
                where = f"edit of sample {sample} alone and in a batch of 3, {case.where}"
                expect((alone is None) == (together is None), where, expected="both or neither", got="one")
                if alone is not None and together is not None:
                    wrong = _differences(alone, together, slice(sample, sample + 1))
                    expect(not wrong, where, expected="the same", got=f"another {', '.join(wrong)}")

    def deterministic(self) -> None:
        for case in _cases():
            found = []
            for seed in (0, 1):
                torch.manual_seed(seed)
                found.append(self._edit(case))
            first, second = found
            expect((first is None) == (second is None), f"edits at {case.where}", expected="the same", got="others")
            if first is not None and second is not None:
                wrong = _differences(first, second, slice(None))
                expect(not wrong, f"edits at {case.where}", expected="the same", got=f"another {', '.join(wrong)}")

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
                "core": torch.equal(located.core, case.core), "ring": torch.equal(located.ring, case.ring),
                "text_contrast": torch.equal(text, case.text_contrast),
                "reference_contrast": torch.equal(reference, case.reference_contrast),
            }  # fmt: skip
            changed = [name for name, same in kept.items() if not same]
            expect(not changed, "inputs changed in place", expected="none", got=", ".join(changed))

    def no_global_random(self) -> None:
        state = torch.random.get_rng_state()
        for case in _cases():
            self._edit(case)
        expect(torch.equal(state, torch.random.get_rng_state()), "global random state", expected="unused",
               got="advanced: the pipeline's noise would depend on the policy")  # fmt: skip

    # ------------------------------------------------------------------ on a model
    def stock_samples(self) -> None:
        """In a real session, a sample in which nothing was located comes out bitwise as from the stock model."""
        for sigma in SIGMAS[:-1]:
            stock, edited, core = self._generate(sigma, self.policy)
            empty = ~core.any(1)
            expect(torch.equal(stock[empty], edited[empty]), f"samples without the concept at noise level {sigma}",
                   expected="bitwise stock", got=_change(stock[empty], edited[empty]))  # fmt: skip

    def stock_patches(self) -> None:
        """At the last block an edit of rows changes the patches of those rows alone."""
        example = self.make_example()
        last = list(find_adapter(example.model, self.adapter).taps(example.model))[-1]
        checked = False
        for sigma in SIGMAS[:-1]:
            options = {name: getattr(self.policy, name) for name in _OPTIONS if hasattr(self.policy, name)}
            spy = _At(self.policy, last, **options)
            stock, edited, _ = self._generate(sigma, spy)
            if spy.edits and spy.edits[-1].columns is None:
                checked = True
                kept = spy.edits[-1].row_class == 0
                expect(torch.equal(stock[kept], edited[kept]), f"patches not edited, at noise level {sigma}",
                       expected="bitwise stock", got=_change(stock[kept], edited[kept]))  # fmt: skip
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
        with regulated(example.model, self.adapter, Given(mask), policy):
            try:
                edited = example.run(arguments, size)
            except UnsafeContent:
                edited = stock
        return stock, edited, mask


@attrs.define(eq=False)
class _At:
    """A policy at one block only, its edits kept."""

    policy: Policy
    path: str
    ring: int = 1
    margin: int = 0
    mass_ratio: float = 1.0
    edits: list[FlowEdit] = attrs.field(factory=list)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit | None:
        if call.path != self.path:
            return None
        found = self.policy.edit(located, call)
        if found is not None:
            self.edits.append(found)
        return found


def _giving(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """() -> that tensor."""
    return lambda: tensor


def _change(stock: torch.Tensor, edited: torch.Tensor) -> str:
    return f"a change of up to {float((stock - edited).abs().max()):.3g}"


def _shape(name: str, tensor: object, shape: tuple[int, ...], case: _Case) -> None:
    got = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
    expect(got == shape, f"{name} at {case.where}", expected=shape, got=got)


def _table(name: str, table: tuple[tuple[float, ...], ...], rows: int, columns: int) -> None:
    got = [len(line) for line in table]
    expect(got == [columns] * rows, name, expected=f"{rows} rows of {columns} factors", got=f"rows of {got}")


def _differences(one: FlowEdit, all_of_them: FlowEdit, samples: slice) -> list[str]:
    """Fields in which an edit differs from those samples of another."""
    plain = ("table", "alpha", "noise", "columns", "text")
    wrong = [name for name in plain if getattr(one, name) != getattr(all_of_them, name)]
    for name in ("row_class", "text_factor", "reference_factor"):
        a, b = getattr(one, name), getattr(all_of_them, name)
        if (a is None) != (b is None) or (a is not None and not torch.equal(a, b[samples])):
            wrong.append(name)
    p, q = one.projection, all_of_them.projection
    if p is None or q is None:
        return wrong + ["projection"] * (p is not q)
    same = p.strength == q.strength and torch.equal(p.vector, q.vector) and torch.equal(p.offset, q.offset[samples])
    return wrong + ["projection"] * (not same)


__all__ = ["check_policy"]
