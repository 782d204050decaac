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
from ..suite import CheckFailed, expect
from .subject import Subject


class Guidance(Subject):
    """The check of which rows follow the prompt."""

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

    def _batched(self, example: Example, order: str) -> None:
        size = example.sizes[0]
        arguments = _sharing_latents(example.arguments(size, 4))
        everything = self._recorded(_Passes(example.model, [("", arguments)], guided=False))[0][1]
        halves = dict(zip(order, everything.split(2), strict=True))
        differ = not torch.equal(halves["u"], halves["c"])
        expect(differ, "samples of Example.inputs", expected="drawn at random", got="all the same")
        regulated = self._recorded(_Passes(example.model, [("", arguments)], guided=True))[0][1]
        if not torch.equal(regulated, halves["c"]):
            wrong = torch.equal(regulated, halves["u"])
            expect(not wrong, "regulated", expected="the conditional half", got="the unconditional half")
            raise CheckFailed(f"samples regulated: expected the conditional 2 of 4, got {len(regulated)}")

    def _passes(self, example: Example, order: tuple[str, ...], *, named: bool) -> None:
        size = example.sizes[0]
        passes = [(name, _sharing_latents(example.arguments(size, 2))) for name in order]
        seen = self._recorded(_Passes(example.model, passes, guided=True, named=named))
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
                run()
        return seen


def _tensors(output: Any) -> list[torch.Tensor]:
    """The tensors of a forward's output."""
    parts = output.values() if isinstance(output, Mapping) else output
    if isinstance(output, torch.Tensor):
        return [output]
    return [tensor for part in parts for tensor in _tensors(part)] if isinstance(output, (Mapping, tuple, list)) else []


def _sharing_latents(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments whose latents are the same in both halves of the batch, as those of the parts of guidance are."""
    latents = arguments.get("hidden_states")
    if not isinstance(latents, torch.Tensor):
        return arguments
    return {**arguments, "hidden_states": torch.cat([latents[: len(latents) // 2]] * 2)}


class _Schedule:
    """The part of a scheduler that the engine looks at."""

    def step(self) -> None:
        """Ends the one step."""


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
        self.scheduler.step()
