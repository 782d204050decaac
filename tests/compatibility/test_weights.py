"""Weights that are changed or added to: fused, LoRA, image prompts, ControlNets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import torch
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, IPAdapterTimeImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from PIL import Image
from rig import PROMPTS, Rig, reference
from situations import Pair, Topic, plain

topic = Topic("weights")
test_regulated_exactly = topic.regulated_exactly()
test_stock_cannot = topic.stock_cannot()
test_every_row_has_its_cases_and_every_case_its_row = topic.complete()


def fuse(rig: Rig) -> None:
    rig.transformer.fuse_qkv_projections()


topic.both_orders("fused QKV", fuse, plain)


topic.neither_order("fused QKV, dual attention", fuse)


def lora(rig: Rig) -> None:
    from peft import LoraConfig

    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    rig.transformer.add_adapter(config)


def merged(rig: Rig) -> torch.Tensor:
    """The same weights without peft's layers."""
    other = Rig(rig.name)

    def merge(rig: Rig) -> None:
        lora(rig)
        rig.transformer.fuse_lora()
        rig.transformer.unload_lora()

    images = other.regulated_run(before=merge)
    assert not any("lora" in name for name in other.transformer.state_dict())
    assert (images - reference(rig.name)).abs().max() > 1e-2
    return images


topic.both_orders("LoRA", lora, merged)


def ip_adapter(rig: Rig) -> None:
    torch.manual_seed(5)
    t = rig.transformer
    if rig.name == "flux":
        width, inner = t.config.joint_attention_dim, t.inner_dim
        kv = FluxIPAdapterAttnProcessor(inner, width).state_dict()
        blocks = len(t.transformer_blocks)
        attention = {
            f"{i}.{name.replace('.0.', '.')}": torch.randn_like(value)
            for i in range(blocks)
            for name, value in kv.items()
        }
        image = ImageProjection(cross_attention_dim=width, image_embed_dim=8, num_image_text_embeds=4).state_dict()
        image = {name.replace("image_embeds", "proj"): value for name, value in image.items()}
        t._load_ip_adapter_weights([{"ip_adapter": attention, "image_proj": image}], low_cpu_mem_usage=False)
        return
    width = t.inner_dim
    kv = SD3IPAdapterJointAttnProcessor2_0(width, width, t.config.attention_head_dim, 64).state_dict()
    attention = {
        f"{i}.{name}": torch.randn_like(value) for i in range(len(t.attn_processors)) for name, value in kv.items()
    }
    image = IPAdapterTimeImageProjection(
        embed_dim=8, output_dim=width, hidden_dim=64, heads=1, num_queries=4, timestep_in_dim=16
    ).state_dict()
    t._load_ip_adapter_weights({"ip_adapter": attention, "image_proj": image}, low_cpu_mem_usage=False)


def with_image(rig: Rig) -> dict[str, Any]:
    """Options that pass an image prompt, as embeddings."""
    shape = (len(PROMPTS), 1, 8) if rig.name == "flux" else (1, 5, 8)
    embeds = torch.randn(shape, generator=torch.Generator().manual_seed(6))
    if rig.name == "sd3":
        return {"ip_adapter_image_embeds": embeds}
    return {"ip_adapter_image_embeds": [embeds], "negative_ip_adapter_image_embeds": [embeds]}


@topic.case("IP-Adapter, before attach")
def ip_adapter_before(rig: Rig) -> Iterator[Pair]:
    images = rig.regulated_run(before=ip_adapter, **with_image(rig))
    assert (images - reference(rig.name)).abs().max() > 1e-3
    yield images, Rig(rig.name).regulated_run(before=ip_adapter, **with_image(rig))


@topic.case("IP-Adapter, after attach")
def ip_adapter_after(rig: Rig) -> Iterator[Pair]:
    images = rig.regulated_run(after=ip_adapter, **with_image(rig))
    yield images, Rig(rig.name).regulated_run(before=ip_adapter, **with_image(rig))


CONTROLLED = {
    "flux": (diffusers.FluxControlNetModel, diffusers.FluxControlNetPipeline, {"num_single_layers": 1}),
    "sd3": (
        diffusers.SD3ControlNetModel, diffusers.StableDiffusion3ControlNetPipeline, {"extra_conditioning_channels": 0},
    ),
    "qwen-image": (diffusers.QwenImageControlNetModel, diffusers.QwenImageControlNetPipeline, {}),
}  # fmt: skip


def control(rig: Rig) -> None:
    """A ControlNet pipeline around the same transformer; the ControlNet is random."""
    kind, pipeline, options = CONTROLLED[rig.name]
    torch.manual_seed(11)
    net = kind.from_config({**rig.transformer.config, "num_layers": 1, **options}).requires_grad_(False)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    names = set(inspect.signature(pipeline).parameters) - {"controlnet"}
    parts = {name: part for name, part in rig.pipe.components.items() if name in names}
    rig.pipe = pipeline(**parts, controlnet=net.eval())
    rig.pipe.set_progress_bar_config(disable=True)


def drawn_under_control(rig: Rig, run: Callable[..., torch.Tensor]) -> torch.Tensor:
    torch.manual_seed(12)  # some encode the control image with noise of the global generator
    return run(control_image=[Image.new("RGB", (64, 64), colour) for colour in ("olive", "navy")])


@topic.case("ControlNet")
def control_net(rig: Rig) -> Iterator[Pair]:
    plain = rig.run()
    control(rig)
    stock = drawn_under_control(rig, rig.run)
    assert not torch.equal(stock, plain)
    images = drawn_under_control(rig, rig.regulated_run)
    assert not torch.equal(images[1], stock[1])
    yield images, torch.stack([stock[0], images[1]])
    with rig.attach(to=rig.transformer):
        control(rig)
        yield drawn_under_control(rig, rig.run), images
