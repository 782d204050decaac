"""check_adapter: an adapter against a small model of its class."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import attrs
import torch
from torch import nn

from ..adapter import Adapter, Layout
from ..errors import TapNotFired, UnsupportedRuntime
from ..regulator import Regulator, attach
from ..seam import AttentionCall, Seam
from .example import Example, Size
from .plan import Edit, Given, everywhere, regulated
from .report import CheckFailed, Conformance, expect, run_checks, skip_unless

SIGMAS = (1.0, 0.75, 0.25)
BATCHES = (1, 3)
PUBLISHED = (64, 64)  # patches of a picture of 1024 x 1024 pixels


def check_adapter(
    adapter: Adapter,
    make_example: Callable[[], Example],
    *,
    published: Callable[[], Example] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> Conformance:
    """Hold an adapter against a small model of its class.

    Where tokens lie is found out, not believed: a row of a block's attention output is changed at the seam, and the
    output patch that moves first is the one that this row holds.

    Args:
        adapter: the adapter.
        make_example: () -> a fresh Example.
        published: () -> an Example at the released size, its model on the meta device and `inputs` on the CPU: one
            forward of 64 x 64 patches, for which no memory is needed.
        expected_failures: {check: reason}. The checks: recognised, taps-fire-once, execution-order, no-block-missed,
            probes, layout, time, text-span, last-block, earlier-blocks, edit-lands, neutral-edit, no-edit, detach,
            guidance, published-size.

    Raises:
        ConformanceError: a check failed, or an expected failure did not; all are listed, and `report` holds them.
        UVRError: `expected_failures` names no check.
    """
    suite = _Suite(adapter, make_example, published)
    checks = {
        "recognised": suite.recognised,
        "taps-fire-once": suite.taps_fire_once,
        "execution-order": suite.execution_order,
        "no-block-missed": suite.no_block_missed,
        "probes": suite.probes,
        "layout": suite.layout,
        "time": suite.time,
        "text-span": suite.text_span,
        "last-block": suite.last_block,
        "earlier-blocks": suite.earlier_blocks,
        "edit-lands": suite.edit_lands,
        "neutral-edit": suite.neutral_edit,
        "no-edit": suite.no_edit,
        "detach": suite.detach,
        "guidance": suite.guidance,
        "published-size": suite.published_size,
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        torch.manual_seed(0)
        return run_checks(f"adapter {adapter.name!r} on {adapter.model}", checks, expected_failures)


@attrs.define(eq=False)
class _Suite:
    adapter: Adapter
    make_example: Callable[[], Example]
    published: Callable[[], Example] | None

    # ------------------------------------------------------------------ which blocks
    def recognised(self) -> None:
        model = self.make_example().model
        expect(self.adapter.recognises(model), "class", expected=self.adapter.model, got=type(model).__name__)

    def taps_fire_once(self) -> None:
        for example, size, batch, references in self._cases():
            with attach(example.model, self.adapter) as reg:
                example.run(example.arguments(size, batch, references=references), size)
                report = reg.report
            expect(
                report is not None and report.fired == len(reg.taps), f"attention calls at {size}, batch {batch}",
                expected=len(reg.taps), got=report and report.fired,
            )  # fmt: skip

    def execution_order(self) -> None:
        example = self.make_example()
        taps = self.adapter.taps(example.model)
        ran = [call.path for call in watch(example, taps, example.sizes[0])]
        first = list(dict.fromkeys(ran))
        expect(first == list(taps), "order in which the taps ran", expected=list(taps), got=first)

    def no_block_missed(self) -> None:
        example = self.make_example()
        size = example.sizes[0]
        taps = self.adapter.taps(example.model)
        tokens = {call.key.shape[2] for call in watch(example, taps, size)}
        others = {p: m for p, m in example.model.named_modules() if hasattr(m, "processor") and p not in taps}
        joint = []
        for path, module in others.items():
            try:
                seen = watch(example, {path: module}, size)
            except UnsupportedRuntime:  # no attention call that the engine could see
                continue
            if any(call.key.shape[2] in tokens for call in seen):
                joint.append(path)
        expect(
            not joint, "attention modules over as many tokens as the taps that are not tapped", expected="none",
            got=", ".join(joint),
        )  # fmt: skip

    def probes(self) -> None:
        model = self.make_example().model
        chosen = self.adapter.probe_paths(model)
        expect(chosen, f"taps that match probes={self.adapter.probes}", expected="at least one", got="none")

    # ------------------------------------------------------------------ what is read off the arguments
    def layout(self) -> None:
        for example, size, batch, references in self._cases():
            found = self._layout(example, example.arguments(size, batch, references=references))
            height, width = size
            own, others = height * width, sum(h * w for h, w in references)
            expect(found == Layout(own + others, own, size, references), f"layout of {size}, batch {batch}",
                   expected=Layout(own + others, own, size, references), got=found)  # fmt: skip

    def time(self) -> None:
        example = self.make_example()
        for sigma in SIGMAS:
            for batch in BATCHES:
                found = self.adapter.time(example.bound(example.arguments(example.sizes[0], batch, sigma)))
                where = f"time at noise level {sigma}, batch {batch}"
                expect(isinstance(found, torch.Tensor), where, expected="a tensor", got=type(found).__name__)
                expect(found.shape == (batch,), f"shape of {where}", expected=(batch,), got=tuple(found.shape))
                values = [round(value, 6) for value in found.float().tolist()]
                close = all(abs(value - sigma) < 1e-3 for value in values)
                expect(close, where, expected=sigma, got=values)

    def text_span(self) -> None:
        lengths, together = {}, set()
        for example, size, batch, references in self._cases():
            arguments = example.arguments(size, batch, references=references)
            layout = self._layout(example, arguments)
            for call in self._joint(example, arguments, size, layout):
                text = call.key.shape[2] - layout.image
                lengths[(size, references, call.path)] = text
                together.add(call.query.shape[2] == call.key.shape[2])
        each = {(path, text) for (_, _, path), text in lengths.items()}
        expect(
            len(each) == len({path for path, _ in each}), "text tokens of a block, whatever the size",
            expected="one number", got=sorted(set(lengths.values())),
        )  # fmt: skip
        expect(min(lengths.values()) > 0, "text tokens", expected="at least 1", got=min(lengths.values()))
        expect(
            together == {self.adapter.text_output}, "queries include the text", expected=self.adapter.text_output,
            got=sorted(together),
        )  # fmt: skip

    # ------------------------------------------------------------------ where tokens lie
    def last_block(self) -> None:
        """Each output row moves its own patch alone; text and reference rows move none."""
        for references in self._reference_sets(self.make_example()):
            example = self.make_example()
            size = example.sizes[0]
            path = list(self.adapter.taps(example.model))[-1]
            moved, start = self._moved(example, size, references, path)
            count = size[0] * size[1]
            found = [sorted((row > 1e-3 * moved.max()).nonzero().flatten().tolist()) for row in moved]
            wanted = [[row - start] if start <= row < start + count else [] for row in range(len(found))]
            _expect_rows(found, wanted, f"{path}, references {references}")

    def earlier_blocks(self) -> None:
        """Each output row moves its own patch most."""
        example = self.make_example()
        size, references = example.sizes[0], example.reference_sizes
        count = size[0] * size[1]
        for path in list(self.adapter.taps(example.model))[:-1]:
            moved, start = self._moved(example, size, references, path)
            most = moved[start : start + count].argmax(1).tolist()
            _expect_rows([[i] for i in most], [[i] for i in range(count)], path, first=start)

    def edit_lands(self) -> None:
        """The engine, editing one located patch at the last block, changes that patch and no other."""
        example = self.make_example()
        size, references = example.sizes[0], example.reference_sizes
        count = size[0] * size[1]
        arguments = example.arguments(size, count, references=references)
        stock = example.run(arguments, size)
        last = list(self.adapter.taps(example.model))[-1]
        mask = torch.eye(count, dtype=torch.bool)
        with regulated(example.model, self.adapter, Given(mask), Edit(alpha=(0.0, 1.0, 0.0), only=last)):
            edited = example.run(arguments, size)
        moved = (edited - stock).abs().amax(-1)
        found = [(row > 1e-3 * moved.max()).nonzero().flatten().tolist() for row in moved]
        _expect_rows(found, [[i] for i in range(count)], f"located patch, edited at {last}")

    # ------------------------------------------------------------------ nothing changes unasked
    def neutral_edit(self) -> None:
        """Factors of 1 on every row: written back bitwise; computed anew within rounding."""
        example = self.make_example()
        size = example.sizes[0]
        arguments = example.arguments(size, 2, references=example.reference_sizes)
        stock = example.run(arguments, size)
        for policy, tolerance in ((Edit(), 0.0), (Edit(tokens=True), 1e-4)):
            with regulated(example.model, self.adapter, everywhere(2, size), policy) as reg:
                edited = example.run(arguments, size)
                _expect_located(reg)
            error = float((edited - stock).abs().max() / stock.abs().max())
            what = "factors of 1 for each token" if policy.tokens else "a table of ones"
            expect(error <= tolerance, f"change by {what}", expected=f"at most {tolerance:g} of the output", got=error)

    def no_edit(self) -> None:
        example = self.make_example()
        size = example.sizes[0]
        arguments = example.arguments(size, 2, references=example.reference_sizes)
        stock = example.run(arguments, size)
        with regulated(example.model, self.adapter, everywhere(2, size), Edit(nothing=True)) as reg:
            observed = example.run(arguments, size)
            _expect_located(reg)
        expect(torch.equal(observed, stock), "output under a policy that returns None", expected="bitwise stock",
               got=f"a change of {float((observed - stock).abs().max()):.3g}")  # fmt: skip

    def detach(self) -> None:
        example = self.make_example()
        model, size = example.model, example.sizes[0]
        arguments = example.arguments(size, 2, references=example.reference_sizes)
        stock, before = example.run(arguments, size), _state(model)
        with regulated(model, self.adapter, everywhere(2, size), Edit(alpha=(0.0, 1.0, 0.0))):
            edited = example.run(arguments, size)
        expect(not torch.equal(edited, stock), "output under an edit", expected="a change", got="the stock output")
        after = _state(model)
        changed = [key for key in before if before[key] != after[key]]
        expect(not changed, "what differs after detach", expected="nothing", got=", ".join(changed))
        expect(torch.equal(example.run(arguments, size), stock), "output after detach", expected="bitwise stock",
               got="another")  # fmt: skip

    # ------------------------------------------------------------------ guidance
    def guidance(self) -> None:
        """The conditional pass or half is regulated, and no other."""
        example = self.make_example()
        if example.pipeline is not None and example.sample is not None:
            self._real_guidance(example)
            return
        style = example.guidance or self.adapter.guidance
        kind, _, order = style.partition(":")
        if kind == "batched":
            self._batched(example, order)
        elif kind == "two_pass":
            self._passes(example, ("cond", "uncond"), named=False)
            if hasattr(example.model, "cache_context"):
                self._passes(example, ("cond", "uncond"), named=True)
                self._passes(example, ("uncond", "cond"), named=True)
        else:
            self._passes(example, ("cond",), named=False)

    def _real_guidance(self, example: Example) -> None:
        """On the real pipeline: what the engine looks at follows the prompt and not the negative prompt."""
        stock = example.sample
        assert stock is not None
        with attach(example.pipeline, self.adapter) as reg:
            tap = reg.taps[0]

            def first_step(prompt: str, negative: str) -> torch.Tensor:
                seen: list[torch.Tensor] = []
                with reg.recording(lambda path, step, sigma, features: seen.append(features), [tap]):
                    stock(prompt, negative)
                return seen[0]

            base = first_step("a cat", "a dog")
            other_prompt, other_negative = first_step("a tree", "a dog"), first_step("a cat", "a car")
        expect(len(base) == 1, "samples regulated in a generation of one picture", expected=1, got=len(base))
        expect(not torch.equal(base, other_prompt), "what is regulated, under another prompt", expected="a change",
               got="none: it is not the conditional branch")  # fmt: skip
        expect(torch.equal(base, other_negative), "what is regulated, under another negative prompt",
               expected="no change", got="a change: it is the unconditional branch, or both")  # fmt: skip

    def _batched(self, example: Example, order: str) -> None:
        size = example.sizes[0]
        arguments = example.arguments(size, 4)
        run = _Passes(example.model, [("", arguments)], guided=True)
        everything = self._recorded(_Passes(example.model, [("", arguments)], guided=False))[0][1]
        halves = {"u": everything[:2], "c": everything[2:]} if order == "uc" else {
            "c": everything[:2], "u": everything[2:]
        }  # fmt: skip
        expect(not torch.equal(halves["u"], halves["c"]), "samples of Example.inputs", expected="drawn at random",
               got="all the same")  # fmt: skip
        found = self._recorded(run)[0][1]
        for half, name in (("u", "the unconditional half"), ("c", "the conditional half")):
            if torch.equal(found, halves[half]):
                expect(half == "c", "regulated", expected="the conditional half", got=name)
                return
        raise CheckFailed(f"samples regulated: expected the conditional 2 of 4, got {len(found)}")

    def _passes(self, example: Example, order: tuple[str, ...], *, named: bool) -> None:
        size = example.sizes[0]
        run = _Passes(
            example.model, [(name, example.arguments(size, 2)) for name in order], guided=True, named=named
        )  # fmt: skip
        found = [(name, len(features)) for name, features in self._recorded(run)]
        how = "as the pipeline names them" if named else "told apart by order"
        expect(found == [("cond", 2)], f"passes regulated of {', '.join(order)}, {how}", expected="cond, 2 samples",
               got=", ".join(f"{name}, {count} samples" for name, count in found) or "none")  # fmt: skip

    def _recorded(self, run: _Passes) -> list[tuple[str, torch.Tensor]]:
        """(pass, features) of what the engine looks at."""
        seen: list[tuple[str, torch.Tensor]] = []
        with attach(run, self.adapter) as reg:
            tap = reg.taps[0]
            with reg.recording(lambda path, step, sigma, features: seen.append((run.current, features)), [tap]):
                run()
        return seen

    # ------------------------------------------------------------------ the released size
    def published_size(self) -> None:
        skip_unless(self.published, "no configuration given")
        assert self.published is not None
        example = self.published()
        real = [name for name, tensor in example.model.state_dict().items() if not tensor.is_meta]
        expect(not real, "tensors off the meta device", expected="none", got=", ".join(real[:3]))
        arguments = example.arguments(PUBLISHED, references=(PUBLISHED,) if example.references else ())
        with attach(example.model, self.adapter) as reg, _moved_to_meta(example.model):
            example.model(**arguments)
            report, found = reg.report, self._layout(example, arguments)
        expect(report is not None and report.fired == len(reg.taps), "attention calls", expected=len(reg.taps),
               got=report and report.fired)  # fmt: skip
        expect(found.grid == PUBLISHED, "grid", expected=PUBLISHED, got=found.grid)

    # ------------------------------------------------------------------ parts
    def _cases(self) -> Iterator[tuple[Example, Size, int, tuple[Size, ...]]]:
        """(example, size, batch, references): all sizes and batches, with and without references."""
        example = self.make_example()
        for references in self._reference_sets(example):
            for size in example.sizes:
                for batch in BATCHES:
                    yield example, size, batch, references

    @staticmethod
    def _reference_sets(example: Example) -> tuple[tuple[Size, ...], ...]:
        return ((), example.reference_sizes) if example.references else ((),)

    def _layout(self, example: Example, arguments: dict[str, Any]) -> Layout:
        found = self.adapter.layout(example.bound(arguments))
        expect(isinstance(found, Layout), "what `layout` returns", expected="a Layout", got=type(found).__name__)
        expect(found.adds_up, "layout", expected="counts that add up", got=found)
        return found

    def _joint(
        self, example: Example, arguments: dict[str, Any], size: Size, layout: Layout,
        only: str | None = None,
    ) -> list[AttentionCall]:  # fmt: skip
        """The taps' joint calls, by the engine's rule."""
        taps = self.adapter.taps(example.model)
        calls = record(example, {only: taps[only]} if only else taps, arguments, size)
        joint = [
            c for c in calls
            if c.key.shape[2] >= layout.image and c.query.shape[2] >= layout.output + self.adapter.text_output
        ]  # fmt: skip
        if not joint:
            raise TapNotFired(f"no attention call holds the {layout.image} image tokens that the adapter reads")
        return joint

    def _moved(self, example: Example, size: Size, references: tuple[Size, ...], path: str) -> tuple[torch.Tensor, int]:
        """(rows, N): how far each output patch moves when one row of the block's attention output is changed; and the
        row at which the adapter says that the output begins. Sample b of a batch has its row b changed.
        """
        probe = example.arguments(size, references=references)
        layout = self._layout(example, probe)
        rows = self._joint(example, probe, size, layout, only=path)[0].query.shape[2]
        start = 0 if self.adapter.image_at == "start" else rows - layout.image
        start += 0 if self.adapter.output_first else layout.image - layout.output
        arguments = example.arguments(size, rows, references=references)
        moved = perturbed(example, self.adapter.taps(example.model)[path], arguments, size, rows)
        expect(bool(moved.max() > 0), f"output after a change at {path}", expected="a change",
               got="none: the block has no effect in this example; are its weights zero?")  # fmt: skip
        return moved, start


# ---------------------------------------------------------------------------------------------- at the seam


def record(
    example: Example, taps: Mapping[str, nn.Module], arguments: dict[str, Any], size: Size
) -> list[AttentionCall]:
    """Every attention call of these modules in one forward, in order."""
    calls: list[AttentionCall] = []
    seam = Seam(taps, calls.append, entered=lambda path: None, left=lambda path: None)
    try:
        example.run(arguments, size)
    finally:
        seam.remove()
    return calls


def watch(example: Example, taps: Mapping[str, nn.Module], size: Size) -> list[AttentionCall]:
    """`record` at one size, with the example's references."""
    return record(example, taps, example.arguments(size, references=example.reference_sizes), size)


def perturbed(
    example: Example, module: nn.Module, arguments: dict[str, Any], size: Size, rows: int, strength: float = 0.05
) -> torch.Tensor:
    """(rows, N): the largest change of each output patch in sample b when row b of the module's attention output,
    in the call with that many queries, is changed by `strength` deviations in a random direction.

    Args:
        arguments: of one forward with `rows` samples.
    """

    def edit(call: AttentionCall) -> torch.Tensor | None:
        if call.query.shape[2] != rows:
            return None
        output = call.output.clone()
        each = torch.arange(rows)
        direction = torch.randn(output.shape[1], output.shape[3])
        output[each, :, each] += strength * output.std() * direction
        return output

    stock = example.run(arguments, size)
    seam = Seam({"": module}, edit, entered=lambda path: None, left=lambda path: None)
    try:
        changed = example.run(arguments, size)
    finally:
        seam.remove()
    return (changed - stock).abs().amax(-1)


# ---------------------------------------------------------------------------------------------- helpers


class _Schedule:
    """The part of a scheduler that the engine looks at."""

    timesteps: tuple[float, ...] = (0.5,)


class _Passes:
    """A pipeline reduced to its guidance: one step of the given passes over the transformer."""

    def __init__(
        self, transformer: nn.Module, passes: list[tuple[str, dict[str, Any]]], *, guided: bool, named: bool = False
    ):
        self.transformer, self.passes, self.named = transformer, passes, named
        self.do_classifier_free_guidance = guided
        self.scheduler = _Schedule()
        self.current = ""

    def __call__(self) -> None:
        for name, arguments in self.passes:
            self.current = name
            model: Any = self.transformer
            with model.cache_context(name) if self.named else nullcontext():
                model(**arguments)


def _expect_rows(found: list[list[int]], wanted: list[list[int]], where: str, first: int = 0) -> None:
    """Each row must move the patches wanted; the message shows the first rows that do not."""
    wrong = [i for i, (got, want) in enumerate(zip(found, wanted, strict=True)) if got != want]
    if not wrong:
        return
    shown = "; ".join(f"row {i + first}: expected {wanted[i]}, got {found[i]}" for i in wrong[:3])
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    singles = {patches[0]: i + first for i, patches in enumerate(found) if len(patches) == 1}
    span = f"; patch 0 lies at row {singles[0]}" if 0 in singles else ""
    raise CheckFailed(f"{where}: output patches moved by rows of the attention output: {shown}{more}{span}")


def _expect_located(reg: Regulator) -> None:
    report = reg.report
    located = report is not None and all(finding.located for finding in report.findings)
    expect(located, "the patches given", expected="located in every sample", got=report)


def _state(model: nn.Module) -> dict[str, object]:
    """What must be the same before attach and after detach."""
    modules = dict(model.named_modules())
    return {
        "state_dict keys": tuple(model.state_dict()),
        "hooks": {p: (len(m._forward_pre_hooks), len(m._forward_hooks)) for p, m in modules.items()},
        "processors": {p: id(m.processor) for p, m in modules.items() if hasattr(m, "processor")},
        "attributes": {p: sorted(m.__dict__) for p, m in modules.items()},
        "class": type(model),
    }


@contextmanager
def _moved_to_meta(model: nn.Module) -> Iterator[None]:
    """Move arguments to the meta device after the engine has read them: its pre-hook was registered earlier."""

    def move(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}

    handle = model.register_forward_pre_hook(move, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


__all__ = ["check_adapter", "perturbed", "record", "watch"]
