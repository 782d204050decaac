"""Tiny pipelines of every class with fixed prompts, seeds and sources; masks in which the second image is unsafe."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import attrs
import numpy as np
import torch
from PIL import Image
from tiny import tiny_zoo

import uvr_core
from uvr_core.adapter import Layout
from uvr_core.concepts import ConceptBank
from uvr_core.engine.lookup import find_adapter, fingerprint
from uvr_plugins.detectors import Oracle
from uvr_zoo.architectures import pack

PIPELINES = ["flux", "flux-kontext", "sd3", "qwen-image", "qwen-image-edit"]
EDITING = ("flux-kontext", "qwen-image-edit")
POLICIES = sorted(uvr_core.plugins.registry().names("policy"))
PROMPTS = ["a cat", "a knife on the left", "a dog in the middle"]
STEPS = 2  # at noise levels 1 and 2/3
PATCHES = 64
# Policies that change images, with and without guidance; "redirect" needs the unconditional pass.
ACTING = [
    (policy, guided)
    for policy in POLICIES
    for guided in (False, True)
    if policy not in ("observe", "refuse") and (guided or policy != "redirect")
]


def stopped(policy: str, guided: bool, batch: int) -> tuple[type[uvr_core.UVRError], str] | None:
    """What a concept located in one image of the batch raises under that policy: the error and its message."""
    if policy == "refuse" and batch == 1:
        return uvr_core.UnsafeContent, "concept 'x' was located in image"
    if policy == "redirect" and not guided:
        return uvr_core.UVRError, "turn guidance on"
    return None


@attrs.define
class Switch:
    """An oracle whose mask can be changed between generations."""

    masks: np.ndarray
    name: str = "switch"
    threshold: float = 0.0

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        return 2 * torch.from_numpy(self.masks).float().flatten(1) - 1


class Tiny:
    """A tiny pipeline with fixed prompts, seeds and source images."""

    def __init__(self, name: str):
        self.name, self.pipe = name, tiny_zoo(name)
        self.kind = type(self.pipe)
        self.adapter = find_adapter(self.pipe.transformer)
        self.bare: uvr_core.Regulator | None = None
        self.stock = functools.cache(self.run)  # (samples, guided) -> images, before anything is attached
        self.called = functools.cache(self._called)
        self.taps = list(self.adapter.taps(self.pipe.transformer))
        rng = np.random.default_rng(0)
        self.sources = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in PROMPTS]

    def run(self, samples: tuple[int, ...] = (0, 1, 2), guided: bool = False, steps: int = STEPS) -> np.ndarray:
        """Images (B, 64, 64, 3) float32 of the chosen prompts."""
        options: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": steps, "output_type": "np"}
        if self.name == "sd3":
            options["guidance_scale"] = 3.0 if guided else 1.0
        else:
            options["true_cfg_scale"] = 3.0 if guided else 1.0
        if guided:
            options["negative_prompt"] = [""] * len(samples)
        if self.name in EDITING:
            options["image"] = [self.sources[i] for i in samples]
        if self.name == "flux-kontext":
            options |= {"max_area": 64 * 64, "_auto_resize": False}
        options["generator"] = [torch.Generator().manual_seed(40 + i) for i in samples]
        with self.generation():
            return self.pipe(prompt=[PROMPTS[i] for i in samples], **options).images

    def generation(self) -> Any:
        """What a run of the transformer alone stands in while it is attached."""
        return self.bare.generation() if self.bare is not None and self.bare.attached else nullcontext()

    def _called(self) -> dict[str, Any]:
        """Keyword arguments of the transformer's first forward in a run of all prompts without guidance."""
        seen: list[dict[str, Any]] = []

        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            assert not args
            seen.append(kwargs)

        handle = self.pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
        self.run(steps=1)
        handle.remove()
        return seen[0]

    def forward(self) -> torch.Tensor:
        """The transformer's prediction for `called()`, as tokens (B, I, C)."""
        with torch.no_grad(), self.generation():
            prediction = self.pipe.transformer(**self.called())[0]
        return pack(prediction) if prediction.dim() == 4 else prediction

    def layout(self) -> Layout:
        return self.adapter.layout({"self": self.pipe.transformer, **self.called()})

    def bank(self) -> uvr_core.ConceptBank:
        """A concept that fits; what it holds does not matter to the oracle."""
        model = fingerprint(self.pipe.transformer, self.adapter.taps(self.pipe.transformer))
        probe = self.adapter.probe_paths(self.pipe.transformer)[0]
        anchors = torch.randn(3, model.heads * model.head_dim, generator=torch.Generator().manual_seed(7))
        return uvr_core.ConceptBank("x", model, {f"anchors/{probe}": anchors, "sigma": torch.tensor([1.0])})

    def attach(self, masks: np.ndarray, policy: object, to: Any = None) -> uvr_core.Regulator:
        target = self.pipe if to is None else to
        reg = uvr_core.attach(target, concepts=self.bank(), detector=Oracle(masks), policy=policy)
        self.bare = reg if to is self.pipe.transformer else None
        return reg


BUILT: dict[str, Tiny] = {}


def masks_of(*samples: int) -> np.ndarray:
    """(B, 8, 8): of the three prompts, the second alone is unsafe (9 patches)."""
    masks = np.zeros((3, 8, 8), bool)
    masks[1, 2:5, 3:6] = True
    return masks[list(samples)]


def furthest(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Per sample, the largest absolute difference."""
    return [float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True)]


def identical(a: np.ndarray, b: np.ndarray) -> list[bool]:
    return [np.array_equal(x, y) for x, y in zip(a, b, strict=True)]
