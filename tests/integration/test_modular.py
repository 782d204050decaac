"""Modular pipelines of diffusers: attached to as to any pipeline; guidance parts are told by their guider."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import diffusers
import numpy as np
import pytest
import torch
from families import FAMILIES
from families.family import Drawing, Family, padded, scheduler
from PIL import Image
from rig import Rig, Second, TextOnly
from tiny import tiny_zoo
from torch.utils._pytree import tree_map_only

import uvr_core
from uvr_core.engine.lookup import find_adapter
from uvr_core.testing.example import patches
from uvr_core.testing.given import Edit, Given, regulated
from uvr_plugins.policies import Refuse

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ["a cat", "a knife on the left"]
STEPS = 3


def modular(blocks: str, zoo: str) -> Any:
    """A modular pipeline around the parts of a tiny one."""
    pipe = getattr(diffusers, blocks)().init_pipeline()
    parts = tiny_zoo(zoo).components
    pipe.update_components(**{name: part for name, part in parts.items() if name in pipe.component_names})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux() -> Any:
    return modular("FluxAutoBlocks", "flux")


def qwen(**guidance: Any) -> Any:
    pipe = modular("QwenImageAutoBlocks", "qwen-image")
    pipe.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0, **guidance))
    return pipe


def draw(pipe: Any, output: str | None = "images", **more: Any) -> Any:
    options = {"prompt": PROMPTS, "height": 64, "width": 64, "num_inference_steps": STEPS, "output_type": "np"}
    if "negative_prompt" in pipe.blocks.input_names:
        options["negative_prompt"] = ["a dog"] * len(PROMPTS)
    options["generator"] = [torch.Generator().manual_seed(7 + number) for number in range(len(PROMPTS))]
    return pipe(**options | more, output=output)


def unsafe(count: int = 9, grid: tuple[int, int] = (8, 8)) -> torch.Tensor:
    """(2, N): so many patches of the second image alone."""
    mask = torch.zeros(2, grid[0] * grid[1], dtype=torch.bool)
    mask[1, :count] = True
    return mask


@contextmanager
def watched(transformer: Any) -> Iterator[list[tuple[Any, Any]]]:
    """(arguments, output) of every forward."""
    ran: list[tuple[Any, Any]] = []

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        ran.append(((args, kwargs), tree_map_only(torch.Tensor, torch.clone, output[0])))

    handle = transformer.register_forward_hook(keep, with_kwargs=True)
    try:
        yield ran
    finally:
        handle.remove()


def moved(pipe: Any, run: Callable[[Any], Any], grid: tuple[int, int]) -> list[list[list[int]]]:
    """Per forward of a regulated run and per sample: the patches that the edit moved, the stock model on the same input
    beside it. Nine patches of the second sample are located."""
    adapter, transformer = find_adapter(pipe.transformer), pipe.transformer
    last = list(adapter.taps(transformer))[-1]
    cut = next((family.patches for family in FAMILIES if family.adapter == adapter.name), patches)
    with watched(transformer) as ran, regulated(pipe, None, Given(unsafe(9, grid)), Edit(noise=1.0, only=last)):
        run(pipe)
    moves = []
    for (args, kwargs), output in ran:
        with torch.no_grad():
            stock = transformer(*args, **kwargs)[0]
        one, other = (cut(torch.stack(o) if isinstance(o, list) else o, grid) for o in (output, stock))
        change = (one - other).abs().amax(-1)
        moves.append([row.nonzero().flatten().tolist() for row in change > 1e-3 * max(float(change.max()), 1e-9)])
    return moves


@pytest.mark.parametrize("make", [flux, qwen])
def test_a_modular_pipeline_is_regulated_and_given_back(make: Callable[[], Any]) -> None:
    pipe = make()
    kind, stock = type(pipe), draw(pipe)
    with uvr_core.attach(pipe) as reg:
        assert np.array_equal(draw(pipe), stock)
        passes = 1 if make is flux else 2
        assert (reg.report.steps, reg.report.fired) == (STEPS, STEPS * passes * len(reg.taps))
    with regulated(pipe, None, Given(unsafe(0)), Edit(noise=1.0)):
        assert np.array_equal(draw(pipe), stock)
    with regulated(pipe, None, Given(unsafe()), Edit(noise=1.0)) as reg:
        images, state = draw(pipe), draw(pipe, output=None)
        assert [finding.located for finding in reg.report.findings] == [False, True]
    assert [np.array_equal(a, b) for a, b in zip(images, stock, strict=True)] == [True, False]
    assert np.array_equal(state.images, images)
    assert type(pipe) is kind
    assert np.array_equal(draw(pipe), stock)


EDITED = [[], list(range(9))]


@pytest.mark.parametrize(
    ("guidance", "forwards"),
    [
        ({}, "cucucu"),
        ({"start": 0.5}, "ccucu"),  # from the second of three steps on
        ({"stop": 0.5}, "cucc"),
        ({"enabled": False}, "ccc"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_the_guider_says_which_forward_follows_the_prompt(guidance: dict[str, Any], forwards: str) -> None:
    """Whenever it starts and stops, and without names of `cache_context`."""
    assert moved(qwen(**guidance), draw, (8, 8)) == [EDITED if letter == "c" else [[], []] for letter in forwards]


def denoising(blocks: str, adapter: str, **config: Any) -> tuple[Any, Family]:
    """The denoising blocks alone around a tiny transformer of that family: text comes as embeddings."""
    if not hasattr(diffusers, blocks):
        pytest.skip(f"diffusers {diffusers.__version__} has no {blocks}")
    family = next(family for family in FAMILIES if family.adapter == adapter)
    stages = getattr(diffusers, blocks)()
    for name in set(stages.sub_blocks) - {"denoise"}:
        del stages.sub_blocks[name]
    pipe = stages.init_pipeline()
    parts = {"transformer": family.transformer(Drawing("", repr, dict, (), config)), "scheduler": scheduler()}
    if "unconditional_transformer" in pipe.component_names:
        parts["unconditional_transformer"] = family.transformer(seed=1)
    if "guider" in pipe.component_names:
        parts["guider"] = diffusers.ClassifierFreeGuidance(guidance_scale=3.0, start=0.5)
    pipe.update_components(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe, family


def embedded(adapter: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The prompts and negative prompts as embeddings, as the denoising blocks of that family take them."""
    widths = ("joint_attention_dim", "cap_feat_dim", "text_in_dim", "context_in_dim", "text_hidden_dim")
    width = next(config[name] for name in (*widths, "llm_features_dim") if name in config)
    layers = config.get("num_text_layers", 1)
    texts, mask = padded([*PROMPTS, *["a dog"] * len(PROMPTS)], layers * width)
    texts = texts.unflatten(2, (layers, width)) if layers > 1 else texts
    if adapter in ("z-image", "ernie-image"):
        texts = [text[: int(length)] for text, length in zip(texts, mask.sum(1), strict=True)]
    options = {}
    for name, rows in (("", slice(2)), ("negative_", slice(2, 4))):
        options[f"{name}prompt_embeds"], options[f"{name}prompt_embeds_mask"] = texts[rows], mask[rows]
        options[f"{name}image_pad_mask"] = torch.zeros_like(mask[rows])
    packed = {"text_features": texts[:2], "text_lengths": mask[:2].sum(1).tolist(), "guidance_schedule": [3.0, 3.0]}
    return options | packed  # Ideogram 4's


@pytest.mark.parametrize(
    ("blocks", "adapter", "forwards", "references"),
    [
        ("Flux2AutoBlocks", "flux2", "cc", 0),
        ("Flux2KleinBaseAutoBlocks", "flux2", "ccu", 0),
        ("ZImageAutoBlocks", "z-image", "ccu", 0),
        ("Flux3AutoBlocks", "flux3", "ccu", 0),
        ("Flux3AutoBlocks", "flux3", "ccu", 2),
        ("Flux3DistilledAutoBlocks", "flux3", "cc", 0),
        ("Krea2AutoBlocks", "krea2", "ccu", 0),
        ("Krea2TurboAutoBlocks", "krea2", "cc", 0),
        ("ErnieImageAutoBlocks", "ernie-image", "ccu", 0),
        ("QwenImage21AutoBlocks", "qwen-image-2.1", "ccu", 0),
        ("QwenImage21TurboAutoBlocks", "qwen-image-2.1", "cc", 0),
        ("Ideogram4AutoBlocks", "ideogram4", "cc", 0),
    ],
)
def test_the_other_modular_families(blocks: str, adapter: str, forwards: str, references: int) -> None:
    """FLUX.3 has no other pipeline. Guidance, where there is any, starts in the second of two steps."""
    pipe, family = denoising(blocks, adapter, **({"flow_map": True} if blocks == "Flux3DistilledAutoBlocks" else {}))
    options = {n: each for n, each in embedded(adapter, family.config).items() if n in pipe.blocks.input_names}
    if references:
        options["image_cond_latents"] = [torch.randn(2, 16, 2, 3 + number) for number in range(references)]

    def run(pipe: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(**options, height=64, width=96, num_inference_steps=2, generator=generator, output="latents")

    stock = run(pipe)
    with uvr_core.attach(pipe) as reg:
        assert torch.equal(run(pipe), stock)
        assert reg.adapter.name == adapter
        assert reg.report.fired == len(forwards) * len(reg.taps)
    assert moved(pipe, run, (4, 6)) == [EDITED if letter == "c" else [[], []] for letter in forwards]
    assert torch.equal(run(pipe), stock)


@pytest.mark.parametrize("blocks", ["AnimaAutoBlocks", "StableDiffusionXLAutoBlocks"])
def test_a_modular_pipeline_that_does_not_fit_is_refused_by_the_class_in_it(blocks: str) -> None:
    if not hasattr(diffusers, blocks):
        pytest.skip(f"diffusers {diffusers.__version__} has no {blocks}")
    pipe = getattr(diffusers, blocks)().init_pipeline()
    name = "unet" if "unet" in pipe.component_names else "transformer"
    (kind,) = {spec.type_hint for spec in pipe.blocks.expected_components if spec.name == name}
    pipe.update_components(**{name: kind.__new__(kind)})
    with pytest.raises(uvr_core.AdapterNotFound, match=rf"^{kind.__name__} cannot be regulated: .*cross-attention"):
        uvr_core.attach(pipe)


class Elsewhere(diffusers.ClassifierFreeGuidance):
    """A guider that is not diffusers' own."""


@pytest.mark.parametrize(("strength", "steps"), [(0.5, 2), (1.0, 4)])
def test_image_to_image_runs_the_steps_that_its_strength_leaves(strength: float, steps: int) -> None:
    pipe = flux()
    sources = [Image.new("RGB", (64, 64), colour) for colour in ("teal", "tomato")]
    more = {"image": sources, "strength": strength, "num_inference_steps": 4}
    stock = draw(pipe, **more)
    with uvr_core.attach(pipe, concepts=Rig("flux").bank, detector=Second(), policy=TextOnly()) as reg:
        images = draw(pipe, **more)
        assert reg.report.steps == steps
        assert [f.steps_regulated for f in reg.report.findings] == [0, steps]
    assert np.array_equal(images[0], stock[0])
    assert not np.array_equal(images[1], stock[1])
    assert np.array_equal(draw(pipe, **more), stock)


def test_of_a_guider_of_others_every_forward_is_regulated() -> None:
    pipe = qwen()
    pipe.update_components(guider=Elsewhere(guidance_scale=3.0))
    assert moved(pipe, draw, (8, 8)) == [EDITED] * (2 * STEPS)


def test_a_refused_image_is_replaced_where_images_alone_are_asked_for() -> None:
    pipe = flux()
    stock = draw(pipe)
    with regulated(pipe, None, Given(unsafe()), Refuse()):
        images = draw(pipe)
        assert np.array_equal(images[0], stock[0])
        assert images[1] is None
        assert draw(pipe, output="latents")[1] is None
        for output in (None, ["images", "latents"]):  # the latents would make the image again
            with pytest.raises(uvr_core.UnsafeContent, match='call a modular pipeline with output="images"'):
                draw(pipe, output=output)


def test_a_modular_pipeline_without_its_transformer_says_so() -> None:
    with pytest.raises(uvr_core.AdapterMismatch, match=r"not loaded \(a modular pipeline: load_components\)"):
        uvr_core.attach(diffusers.FluxAutoBlocks().init_pipeline())


def test_what_still_stands_is_drawn_again_or_withheld_whole() -> None:
    """Images alone can be told apart; a state holds them beside what they were made of, and is withheld."""
    rig, pipe = Rig("flux"), flux()
    (probe,) = rig.bank.probes
    how = uvr_core.Calibration("anchor-cosine", probe, (1.0, 0.0), -10.0, None, 1)
    bank = attrs.evolve(rig.bank, verification=how)
    with uvr_core.attach(pipe, concepts=bank, detector=Second(), escalate=(TextOnly(), "block")) as reg:
        for output in ("images", None):
            with pytest.raises(uvr_core.UnsafeContent, match="still stands"):
                draw(pipe, output=output)
            assert reg.report.draws == (1 if output is None else 2)
