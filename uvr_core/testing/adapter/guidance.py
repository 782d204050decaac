"""Guidance: the conditional pass or half is regulated, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import attrs
import torch
from torch import nn

from ...engine.attach import attach
from ...engine.readings import features
from ..example import Example
from ..suite import CheckFailed, expect, skip_unless
from .subject import Subject


class Guidance(Subject):
    """Checks of which rows follow the prompt."""

    def guidance(self) -> None:
        """The conditional pass or half is regulated, and no other."""
        example = self.make_example()
        if example.pipeline is not None and example.generate is not None:
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
        generate, driver = example.generate, type(example.pipeline)
        assert generate is not None
        self._follows_both(example)
        listed = next(cls.__name__ for cls in driver.__mro__ if "__call__" in vars(cls))  # what the adapter would list
        with attach(example.pipeline, attrs.evolve(self.adapter, pipelines=(listed,))) as reg:
            tap = reg.taps[0]

            def first_step(prompt: str, negative: str) -> torch.Tensor:
                seen: list[torch.Tensor] = []
                with reg.recording(lambda call: seen.append(features(call)), [tap]):
                    generate(prompt, negative)
                return seen[0]

            base = first_step("a cat", "a dog")
            other_prompt, other_negative = first_step("a tree", "a dog"), first_step("a cat", "a car")
        expect(len(base) == 1, "samples regulated in a generation of one picture", expected=1, got=len(base))
        follows, what = not torch.equal(base, other_prompt), "what is regulated, under another prompt"
        expect(follows, what, expected="a change", got="none: it is not the conditional branch")
        stays, what = torch.equal(base, other_negative), "what is regulated, under another negative prompt"
        expect(stays, what, expected="no change", got="a change: it is the unconditional branch, or both")

    def _follows_both(self, example: Example) -> None:
        """That the example's stock pipeline follows either prompt: else the check would prove nothing. One pass alone
        has no negative prompt."""
        generate = example.generate
        assert generate is not None

        def predicted(prompt: str, negative: str) -> list[torch.Tensor]:
            seen: list[torch.Tensor] = []
            handle = example.model.register_forward_hook(lambda module, args, output: seen.extend(_tensors(output)))
            try:
                generate(prompt, negative)
            finally:
                handle.remove()
            return seen

        base = predicted("a cat", "a dog")
        others = {"prompt": ("a tree", "a dog"), "negative prompt": ("a cat", "a car")}
        if self.adapter.guidance == "single":
            del others["negative prompt"]
        for what, prompts in others.items():
            other = predicted(*prompts)
            same = len(other) == len(base) and all(map(torch.equal, base, other))
            hint = "none: pass it on to the pipeline, and turn guidance on"
            expect(not same, f"what Example.generate draws under another {what}", expected="a change", got=hint)

    def guidance_parts(self) -> None:
        """Guidance in one batch that goes off in the middle of a run, and two images of one seed without guidance: each
        row that follows the prompt is regulated, and no other."""
        example = self.make_example()
        kind, _, letters = (example.guidance or self.adapter.guidance).partition(":")
        skip_unless(kind == "batched", "guidance does not come in one batch")
        size = example.sizes[0]
        twins = self._sharing_latents(example.arguments(size, 2), 2)
        for count in (number for number in range(2, len(letters) + 1) if "c" in letters[:number]):
            on = self._sharing_latents(example.arguments(size, 2 * count), count)
            steps = [[("", arguments)] for arguments in (on, example.arguments(size, 2), twins)]
            regulated = [rows for _, rows in self._recorded(_Passes(example.model, steps, images=2))]
            guided, *others = (self._every_row(example, arguments) for ((_, arguments),) in steps)
            expected = [guided.split(2)[letters.index("c")], *others]
            for what, rows, right in zip(("on", "off", "off, one seed"), regulated, expected, strict=True):
                same = rows.shape == right.shape and torch.equal(rows, right)
                got = f"{len(rows)} rows" + ("" if len(rows) != len(right) else ", others")
                expect(
                    same, f"rows regulated, guidance of {count} parts {what}", expected=f"{len(right)} rows", got=got
                )

    def _every_row(self, example: Example, arguments: dict[str, Any]) -> torch.Tensor:
        """Features of all rows of a forward: as many images as rows."""
        count = len(arguments[self.adapter.latents])
        rows = self._recorded(_Passes(example.model, [[("", arguments)]], images=count))[0][1]
        expect(len(rows) == count, f"rows regulated of {count} images", expected=count, got=len(rows))
        return rows

    def _batched(self, example: Example, order: str) -> None:
        size = example.sizes[0]
        arguments = self._sharing_latents(example.arguments(size, 2 * len(order)), len(order))
        parts = dict(zip(order, self._every_row(example, arguments).split(2), strict=True))
        differ = not torch.equal(parts["u"], parts["c"])
        expect(differ, "samples of Example.inputs", expected="drawn at random", got="all the same")
        regulated = self._recorded(_Passes(example.model, [[("", arguments)]], images=2))[0][1]
        if not torch.equal(regulated, parts["c"]):
            wrong = torch.equal(regulated, parts["u"])
            expect(not wrong, "regulated", expected="the conditional half", got="the unconditional half")
            count = 2 * len(order)
            raise CheckFailed(f"samples regulated: expected the conditional 2 of {count}, got {len(regulated)}")

    def _passes(self, example: Example, order: tuple[str, ...], *, named: bool) -> None:
        size = example.sizes[0]
        step = [(name, self._sharing_latents(example.arguments(size, 2), 2)) for name in order]
        seen = self._recorded(_Passes(example.model, [step], images=2, named=named))
        regulated = [f"{name}, {len(features)} samples" for name, features in seen]
        how, expected = "as the pipeline names them" if named else "told apart by order", "cond, 2 samples"
        what, got = f"passes regulated of {', '.join(order)}, {how}", ", ".join(regulated) or "none"
        expect(regulated == [expected], what, expected=expected, got=got)

    def _recorded(self, run: _Passes) -> list[tuple[str, torch.Tensor]]:
        """(pass, features) of what the engine looks at."""
        seen: list[tuple[str, torch.Tensor]] = []
        with attach(run, attrs.evolve(self.adapter, pipelines=(_Passes.__name__,))) as reg:
            tap = reg.taps[0]
            with reg.recording(lambda call: seen.append((run.current, features(call))), [tap]):
                run(run.prompts)
        return seen

    def _sharing_latents(self, arguments: dict[str, Any], parts: int) -> dict[str, Any]:
        """Arguments whose latents are the same in each part of the batch, as those of the parts of guidance are."""
        name = self.adapter.latents
        latents = arguments[name]
        first = latents[: len(latents) // parts]
        return {**arguments, name: torch.cat([first] * parts) if isinstance(latents, torch.Tensor) else first * parts}


def _tensors(output: Any) -> list[torch.Tensor]:
    """The tensors of a forward's output."""
    parts = output.values() if isinstance(output, Mapping) else output
    if isinstance(output, torch.Tensor):
        return [output]
    return [tensor for part in parts for tensor in _tensors(part)] if isinstance(output, (Mapping, tuple, list)) else []


class _Schedule:
    """The part of a scheduler that the engine looks at."""

    def step(self) -> None:
        """Ends a step."""


class _Passes:
    """A pipeline reduced to its guidance: steps of given passes over the transformer.

    Args:
        transformer: the model.
        steps: (name, arguments) of each pass of each step.
        images: how many its call is asked for.
        named: whether it names its passes.
    """

    def __init__(
        self,
        transformer: nn.Module,
        steps: list[list[tuple[str, dict[str, Any]]]],
        *,
        images: int,
        named: bool = False,
    ):
        self.transformer, self.steps, self.named = transformer, steps, named
        self.prompts = [""] * images
        self.scheduler = _Schedule()
        self.current = ""

    def __call__(self, prompt: list[str]) -> None:
        for step in self.steps:
            for name, arguments in step:
                self.current = name
                model: Any = self.transformer
                with model.cache_context(name) if self.named else nullcontext():
                    model(**arguments)
            self.scheduler.step()
