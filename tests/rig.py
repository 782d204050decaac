"""A tiny pipeline of any zoo family, a detector and a policy whose result is easy to know, and a run under both."""

from __future__ import annotations

import contextlib
import copy
import functools
import weakref
from collections.abc import Callable
from typing import Any

import attrs
import torch
from PIL import Image
from tiny import tiny_zoo

import uvr_core
from uvr_core.engine.lookup import find_adapter, fingerprint
from uvr_core.intercept.hooks import Hook
from uvr_core.protocols import CallInfo, FlowEdit, KeyWeights, Located, MaskOptions, Reweight, row_classes

PIPELINES = ("flux", "flux-kontext", "qwen-image", "qwen-image-edit", "sd3")
PROMPTS = ["a cat", "a knife on the left"]
EDITING = ("flux-kontext", "qwen-image-edit")
STEPS = 3
PATCHES = 64
MASK = torch.zeros(2, 8, 8, dtype=torch.bool)
MASK[1, 2:5, 3:6] = True


class TextOnly:
    """Located rows attend to the text alone: an edit whose result is easy to compute by hand."""

    name, masks = "text-only", MaskOptions(ring=0)

    def edit(self, located: Located, call: CallInfo) -> FlowEdit:
        text = KeyWeights(safe=0.0, located=0.0, reference=0.0)
        return FlowEdit(row_classes(located), Reweight(text, text))


class Second:
    """Locates MASK in every batch: the last sample, and no other."""

    name, threshold = "second", 0.0

    def scores(self, features: torch.Tensor, sigma: float, bank: uvr_core.ConceptBank, probe: str) -> torch.Tensor:
        scores = torch.full(features.shape[:2], -1.0)
        scores[-1][MASK[1].flatten()] = 1.0
        return scores


class Rig:
    """A fresh tiny pipeline, with fixed prompts and noise. `regulated=False`: attaching does nothing."""

    def __init__(self, name: str, regulated: bool = True):
        self.name, self.regulated, self.pipe = name, regulated, tiny_zoo(name)
        adapter = find_adapter(self.transformer)
        model = fingerprint(self.transformer, adapter.taps(self.transformer))
        probe = adapter.probe_paths(self.transformer)[0]
        anchors = torch.randn(3, model.heads * model.head_dim, generator=torch.Generator().manual_seed(7))
        self.bare: Callable[[], uvr_core.Regulator | None] = lambda: None  # attached to the transformer, weakly
        self.bank = uvr_core.ConceptBank("x", model, {f"anchors/{probe}": anchors, "sigma": torch.tensor([1.0])})

    @property
    def transformer(self) -> Any:
        return self.pipe.transformer

    def run(self, pipe: Any = None, **options: Any) -> torch.Tensor:
        """Latents of both prompts."""
        options = {"num_inference_steps": STEPS, "height": 64, "width": 64, "output_type": "latent", **options}
        if self.name == "sd3":
            options.setdefault("guidance_scale", 1.0)
        if self.name in EDITING:
            options.setdefault("image", [Image.new("RGB", (64, 64), colour) for colour in ("teal", "tomato")])
        if self.name == "flux-kontext":
            options |= {"max_area": 64 * 64, "_auto_resize": False}
        noise = [torch.Generator().manual_seed(40 + i) for i in range(len(PROMPTS))]
        with self.generation():
            return (self.pipe if pipe is None else pipe)(prompt=PROMPTS, generator=noise, **options).images

    def generation(self) -> Any:
        """What a run of the transformer alone stands in while it is attached."""
        reg = self.bare()
        return reg.generation() if reg is not None and reg.attached else contextlib.nullcontext()

    def attach(self, to: Any = None, **options: Any) -> Any:
        if not self.regulated:
            return contextlib.nullcontext()
        plan = {"concepts": self.bank, "detector": Second(), "policy": TextOnly(), **options}
        reg = uvr_core.attach(self.pipe if to is None else to, **plan)
        self.bare = weakref.ref(reg) if to is self.transformer else lambda: None
        return reg

    def regulated_run(self, before: Callable[[Rig], object] | None = None, after: Callable[[Rig], object] | None = None,
                      **options: Any) -> torch.Tensor:  # fmt: skip
        """Images of a regulated run, with something done to the pipeline before or after it is attached."""
        if before is not None:
            before(self)
        with self.attach() as reg:
            if after is not None:
                after(self)
            images = self.run(**options)
            if self.regulated:
                report = reg.report
                assert report.posture == "regulate"
                assert report.fired + report.reused == report.steps * report.passes * report.taps
                assert [f.located for f in report.findings] == [False, True]
                assert report.findings[1].steps_regulated == report.steps
        return images


@functools.cache
def reference(name: str, steps: int = STEPS) -> torch.Tensor:
    """A regulated run of a fresh pipeline in which nothing else is on."""
    return Rig(name).regulated_run(num_inference_steps=steps)


def seen_through(rig: Rig) -> bool:
    """Whether anything of a regulator is left on the pipeline."""
    modules = list(getattr(rig.transformer, "_orig_mod", rig.transformer).modules())
    return (
        any(hasattr(type(getattr(module, "processor", None)), "_uvr_taps") for module in modules)
        or any(
            isinstance(hook, Hook)
            for m in modules
            for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
        )
        or type(rig.pipe).__call__.__module__.startswith("uvr_core")
    )


def called(rig: Rig) -> dict[str, Any]:
    """Arguments of the transformer's first forward in a run."""
    seen: list[dict[str, Any]] = []
    handle = rig.transformer.register_forward_pre_hook(lambda m, a, kw: seen.append(kw), with_kwargs=True)
    rig.run(num_inference_steps=1)
    handle.remove()
    return seen[0]


def sibling(rig: Rig) -> Any:
    """Another pipeline around the same transformer. Schedulers and tokenizers are not thread-safe: it has its own."""
    pipe = copy.copy(rig.pipe)
    for name, part in rig.pipe.components.items():
        if part is not None and name.startswith(("scheduler", "tokenizer", "processor")):
            setattr(pipe, name, copy.deepcopy(part))
    return pipe


def at(step: int, do: Callable[[], object]) -> Callable[..., Any]:
    """A step callback that does something after that step."""

    def callback(pipe: Any, done: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if done == step:
            do()
        return tensors

    return callback


@attrs.define
class Scores:
    """Second's scores, changed from the second step on, while `on`."""

    change: Callable[[torch.Tensor], object]
    on: bool = True
    steps: int = 0
    name: str = "scores"
    threshold: float = 0.0

    def scores(self, features: torch.Tensor, sigma: float, bank: uvr_core.ConceptBank, probe: str) -> Any:
        self.steps += 1
        found = Second().scores(features, sigma, bank, probe)
        return self.change(found) if self.on and self.steps == STEPS else found


def one(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """In one patch of the sample in which nothing is located."""

    def change(scores: torch.Tensor) -> torch.Tensor:
        scores[0, 17] = value
        return scores

    return change
