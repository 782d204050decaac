"""Random combinations of what people do: the image is the reference's, or the run is refused, or stock cannot either.

`UVR_COMBINATIONS=2000 pytest tests/attack/test_property.py` runs so many; a failure names its seed, and
`UVR_SEED=n` begins there.
"""

from __future__ import annotations

import collections
import importlib.util
import os
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from PIL import Image
from rig import EDITING, PIPELINES, TextOnly
from tiny import tiny_zoo

import uvr_core
from uvr_core.engine.lookup import find_adapter, fingerprint

COUNT, FIRST = int(os.environ.get("UVR_COMBINATIONS", 12)), int(os.environ.get("UVR_SEED", 0))
PROMPTS = ["a cat", "a dog in the snow at night", "a knife on the left"]


def sibling(name: str) -> ModuleType:
    """A module beside this one."""
    spec = importlib.util.spec_from_file_location(f"attack_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = sibling("reference")


@attrs.frozen
class Last:
    """Locates the same patches in the last sample."""

    rows: torch.Tensor
    name: str = "last"
    threshold: float = 0.0

    def scores(self, features: torch.Tensor, sigma: float, bank: Any, probe: str) -> torch.Tensor:
        scores = torch.full(features.shape[:2], -1.0)
        scores[-1, self.rows] = 1.0
        return scores


@attrs.frozen
class Combination:
    """One combination, of a seed."""

    name: str
    steps: int
    batch: int
    guided: bool
    half: bool
    height: int
    width: int
    scheduler: str
    stop: int | None
    window: tuple[float, float]
    early: bool  # attach before the scheduler and dtype are changed

    @classmethod
    def of(cls, seed: int) -> Combination:
        draw = random.Random(seed)
        return cls(
            name=draw.choice(PIPELINES),
            steps=draw.randint(1, 6),
            batch=draw.randint(1, 3),
            guided=draw.random() < 0.5,
            half=draw.random() < 0.3,
            height=draw.choice((64, 64, 96)),
            width=draw.choice((64, 64, 96)),
            scheduler=draw.choice(("euler", "euler", "shifted", "heun", "stochastic")),
            stop=draw.choice((None, None, 0, 1, 3)),
            window=draw.choice(((1.0, 0.0), (1.0, 0.0), (1.0, 0.9), (0.7, 0.2))),
            early=draw.random() < 0.5,
        )

    def change(self, pipe: Any) -> None:
        """Put scheduler and dtype in."""
        config = pipe.scheduler.config
        if self.scheduler == "heun":
            pipe.scheduler = FlowMatchHeunDiscreteScheduler.from_config(config)
        elif self.scheduler != "euler":
            more = {"shift": 5.0} if self.scheduler == "shifted" else {"stochastic_sampling": True}
            pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(config, **more)
        if self.half:
            pipe.to(torch.bfloat16)

    def draw(self, pipe: Any) -> torch.Tensor:
        """Latents."""
        torch.manual_seed(0)  # for schedulers that draw noise of the global generator
        options: dict[str, Any] = {"height": self.height, "width": self.width, "output_type": "latent"}
        options["guidance_scale" if self.name == "sd3" else "true_cfg_scale"] = 3.0 if self.guided else 1.0
        if self.guided:
            options["negative_prompt"] = ["a tree"] * self.batch
        if self.name in EDITING:
            options["image"] = [Image.new("RGB", (64, 64), "teal")] * self.batch
        if self.name == "flux-kontext":
            options |= {"max_area": self.height * self.width, "_auto_resize": False}

        def stop(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe._interrupt = step == self.stop
            return tensors

        noise = [torch.Generator().manual_seed(i) for i in range(self.batch)]
        images: torch.Tensor = pipe(
            prompt=PROMPTS[: self.batch],
            generator=noise,
            num_inference_steps=self.steps,
            callback_on_step_end=stop,
            **options,
        ).images
        return images

    def grid(self) -> tuple[int, int]:
        return self.height // 8, self.width // 8


def outcome(combination: Combination) -> str:
    """What becomes of it: "exact", "refused: why" or "stock cannot"."""
    height, width = combination.grid()
    rows = torch.tensor([y * width + x for y in range(2, 5) for x in range(3, 6)])
    stock = tiny_zoo(combination.name)
    combination.change(stock)
    try:
        plain = combination.draw(stock)
    except Exception:
        return "stock cannot"
    sources = 64 if combination.name in EDITING else 0
    witness = reference.Reference(
        combination.name, rows, height * width, sources, combination.guided, combination.window
    )
    with reference.applied(witness, stock.transformer):
        wanted = combination.draw(stock)
    pipe = tiny_zoo(combination.name)
    adapter = find_adapter(pipe.transformer)
    taps = adapter.taps(pipe.transformer)
    probe = next(iter(taps))
    calibration = uvr_core.Calibration("last", probe, combination.window, 0.0)
    bank = uvr_core.ConceptBank("x", fingerprint(pipe.transformer, taps), {}, calibration)
    if not combination.early:
        combination.change(pipe)
    with uvr_core.attach(pipe, concepts=bank, detector=Last(rows), policy=TextOnly()) as reg:
        if combination.early:
            combination.change(pipe)
        try:
            images = combination.draw(pipe)
        except uvr_core.UVRError as error:
            return f"refused: {type(error).__name__}: {str(error)[:60]}"
        report = reg.report
    assert [f.located for f in report.findings] == [False] * (combination.batch - 1) + [True]
    assert torch.equal(images[:-1], plain[:-1]), "a picture in which nothing was located is not stock's"
    assert witness.edits == len(taps) * report.findings[-1].steps_regulated, (witness.edits, report)
    tolerance = 0.25 if combination.half else 2e-3
    error = float((images[-1] - wanted[-1]).abs().max() / wanted[-1].abs().max())
    assert error < tolerance, f"differs from the reference by {error:.2g}"
    assert not torch.equal(images[-1], plain[-1])
    return "exact"


@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, 6))
def test_regulated_exactly_or_refused_or_stock_cannot(first: int) -> None:
    outcomes: collections.Counter[str] = collections.Counter()
    for seed in range(first, min(first + 6, FIRST + COUNT)):
        combination = Combination.of(seed)
        try:
            outcomes[outcome(combination)] += 1
        except Exception as error:
            pytest.fail(f"UVR_SEED={seed}: {combination}: {type(error).__name__}: {error}")
    print(dict(outcomes))
