"""The situation matrix: what else a deployment may switch on, and what becomes of a regulated image then.

Every row of doctor/compatibility.py on tiny pipelines of real diffusers classes. A regulated image equals that of a
reference run of the same weights, and every attention call that was edited is checked against the equation, by hand,
in float64. A refusal is an UVRError that names the feature and what to do. What the stock library cannot do fails in
the same way without UVR.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import copy
import enum
import functools
import importlib.metadata
import importlib.util
import inspect
import io
import json
import pickle
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import accelerate
import attrs
import diffusers
import diffusers.hooks
import pytest
import torch
from click.testing import CliRunner
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, IPAdapterTimeImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from PIL import Image
from rig import MASK, PIPELINES, PROMPTS, STEPS, Rig, reference, seen_through

import uvr_core
from uvr_core.cli import main
from uvr_core.doctor.compatibility import SITUATIONS, Outcome, Situation, markdown
from uvr_core.seam import AttentionCall
from uvr_core.session import Session

PATCHES = 64
CPU = torch.device("cpu")


# ---------------------------------------------------------------------------------------------- the equation


@attrs.define
class Witness:
    """Checks every attention call that was edited; counts them."""

    edited: int = 0
    worst: float = 0.0

    def check(self, session: Session, call: AttentionCall, stock: torch.Tensor, edited: torch.Tensor) -> None:
        if torch.equal(edited, stock):
            return
        keys, queries, layout = call.key.shape[2], call.query.shape[2], session.layout
        assert layout is not None
        assert layout.output == PATCHES
        assert session.output_first
        text = slice(layout.image, keys) if session.image_at == "start" else slice(0, keys - layout.image)
        first = 0 if session.image_at == "start" else queries - layout.image
        rows = first + MASK[1].flatten().nonzero().flatten()
        q, k, v = call.query[-1][:, rows].double(), call.key[-1][:, text].double(), call.value[-1][:, text].double()
        logits = q @ k.mT * (q.shape[-1] ** -0.5 if call.scale is None else call.scale)
        if call.attn_mask is not None:
            assert call.attn_mask.dtype == torch.bool
            keep = call.attn_mask.expand(len(call.query), 1, queries, keys)[-1][:, rows][..., text]
            logits = logits.masked_fill(~keep, -torch.inf)
        error = (edited[-1][:, rows].double() - logits.softmax(-1) @ v).abs().max()
        others = torch.ones(edited.shape[0], queries, dtype=torch.bool)
        others[-1, rows] = False
        assert torch.equal(edited.transpose(1, 2)[others], stock.transpose(1, 2)[others])
        half = 4 * torch.finfo(edited.dtype).eps * float(v.abs().max())  # weights and sums are rounded to the dtype
        assert error < (5e-6 if edited.dtype == torch.float32 else half)
        self.edited, self.worst = self.edited + 1, max(self.worst, float(error))


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> Witness:
    """Sees what every session makes of every call."""
    found, stock = Witness(), Session.on_call

    def on_call(self: Session, call: AttentionCall) -> torch.Tensor | None:
        output = call.output.clone()
        edited = stock(self, call)
        found.check(self, call, output, call.output if edited is None else edited)
        return edited

    monkeypatch.setattr(Session, "on_call", on_call)
    return found


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """One thread; what diffusers and torch keep for the process is put back."""
    registry, threads = _AttentionBackendRegistry, torch.get_num_threads()
    active, tables = (
        registry._active_backend,
        (registry._backends, registry._constraints, registry._supported_arg_names),
    )
    torch.set_num_threads(1)
    for name in PIPELINES:
        reference(name)
    yield
    torch.set_num_threads(threads)
    registry._active_backend = active
    for table in tables:
        table.pop(Backend.SPARSE, None)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    torch._dynamo.reset()


# ---------------------------------------------------------------------------------------------- the situations

Pair = tuple[torch.Tensor, torch.Tensor]  # what came out, and what should
Attempt = Callable[[], object]  # which is refused
Case = Callable[[Rig], Iterator[Pair] | Iterator[Attempt]]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    def keep(function: Case) -> Case:
        CASES[name] = function
        return function

    return keep


def both_orders(
    name: str, feature: Callable[[Rig], object], expected: Callable[[Rig], torch.Tensor], **options: Any
) -> None:
    """Two situations: a feature switched on before attach, and after."""

    def before(rig: Rig) -> Iterator[Pair]:
        yield rig.regulated_run(before=feature, **options), expected(rig)

    def after(rig: Rig) -> Iterator[Pair]:
        yield rig.regulated_run(after=feature, **options), expected(rig)

    CASES[f"{name}, before attach"], CASES[f"{name}, after attach"] = before, after


def neither_order(name: str, feature: Callable[[Rig], object], **options: Any) -> None:
    """Two situations: as above, but nothing comes out."""

    def before(rig: Rig) -> Iterator[Attempt]:
        yield lambda: rig.regulated_run(before=feature, **options)

    def after(rig: Rig) -> Iterator[Attempt]:
        yield lambda: rig.regulated_run(after=feature, **options)

    CASES[f"{name}, before attach"], CASES[f"{name}, after attach"] = before, after


def plain(rig: Rig) -> torch.Tensor:
    return reference(rig.name)


# ---- weights


def fuse(rig: Rig) -> None:
    rig.transformer.fuse_qkv_projections()


both_orders("fused QKV", fuse, plain)


neither_order("fused QKV, dual attention", fuse)


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


both_orders("LoRA", lora, merged)


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


@case("IP-Adapter, before attach")
def ip_adapter_before(rig: Rig) -> Iterator[Pair]:
    images = rig.regulated_run(before=ip_adapter, **with_image(rig))
    assert (images - reference(rig.name)).abs().max() > 1e-3
    yield images, Rig(rig.name).regulated_run(before=ip_adapter, **with_image(rig))


@case("IP-Adapter, after attach")
def ip_adapter_after(rig: Rig) -> Iterator[Pair]:
    images = rig.regulated_run(after=ip_adapter, **with_image(rig))
    yield images, Rig(rig.name).regulated_run(before=ip_adapter, **with_image(rig))


# ---- memory


def leaf_offload(rig: Rig) -> None:
    accelerate.cpu_offload(rig.transformer, execution_device=CPU)
    assert any(p.is_meta for p in rig.transformer.parameters())


def model_offload(rig: Rig) -> None:
    accelerate.cpu_offload_with_hook(rig.transformer, execution_device=CPU)


def release(package: str) -> tuple[int, ...]:
    """(0, 42) of 0.42.1."""
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])


def group_offload(kind: str) -> Callable[[Rig], None]:
    def switch_on(rig: Rig) -> None:
        if release("diffusers") < (0, 41) and not torch.accelerator.is_available():
            pytest.skip("group offload before diffusers 0.41 asks for an accelerator, whatever the device")
        blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        rig.transformer.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=kind, **blocks)

    return switch_on


both_orders("leaf offload (accelerate)", leaf_offload, plain)
both_orders("model offload (accelerate)", model_offload, plain)
both_orders("group offload, blocks", group_offload("block_level"), plain)
both_orders("group offload, leaves", group_offload("leaf_level"), plain)


def fp8(rig: Rig) -> None:
    rig.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert any(p.dtype == torch.float8_e4m3fn for p in rig.transformer.parameters())


def rounded(rig: Rig) -> torch.Tensor:
    """The weights that fp8 storage leaves, in float32."""
    cast, other = Rig(rig.name), Rig(rig.name)
    fp8(cast)
    other.transformer.load_state_dict({k: v.float() for k, v in cast.transformer.state_dict().items()})
    images = other.regulated_run()
    assert (images - reference(rig.name)).abs().max() > 1e-3
    return images


both_orders("layerwise casting (fp8 storage)", fp8, rounded)


def int8(rig: Rig) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(rig.transformer, Int8WeightOnlyConfig())
    assert any(type(p.data).__name__.startswith("Int8") for p in rig.transformer.parameters())


def dequantized(rig: Rig) -> torch.Tensor:
    """The weights that int8 leaves, in float32."""
    other, quantized = Rig(rig.name), Rig(rig.name)
    int8(quantized)
    weights = quantized.transformer.state_dict().items()
    other.transformer.load_state_dict(
        {k: v if type(v) is torch.Tensor else v.dequantize() for k, v in weights}  # type: ignore[operator]
    )
    images = other.regulated_run()
    assert (images - reference(rig.name)).abs().max() > 1e-3
    return images


both_orders("int8 weights (torchao)", int8, dequantized)


# ---- precision and autograd modes


def unlocated_is_stock(name: str, mode: Callable[[Rig], contextlib.AbstractContextManager[object]]) -> None:
    """The image in which nothing is located is bitwise stock in the same mode; the witness sees to the other."""

    def check(rig: Rig) -> Iterator[Pair]:
        with mode(rig):
            stock, images = rig.run(), rig.regulated_run()
        assert torch.equal(images[0], stock[0])
        assert not torch.equal(images[1], stock[1])
        yield images, torch.stack([stock[0], images[1]])

    CASES[name] = check


def bfloat16(rig: Rig) -> contextlib.AbstractContextManager[object]:
    rig.pipe.to(torch.bfloat16)
    return contextlib.nullcontext()


unlocated_is_stock("bfloat16 weights", bfloat16)
unlocated_is_stock("torch.autocast, bfloat16", lambda rig: torch.autocast("cpu", torch.bfloat16))


@case("torch.inference_mode")
def inference_mode(rig: Rig) -> Iterator[Pair]:
    with torch.inference_mode():
        yield rig.regulated_run(), reference(rig.name)


# ---- ControlNet


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


@case("ControlNet")
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


# ---- attention backends


def backend(name: str) -> Callable[[Rig], None]:
    return lambda rig: rig.transformer.set_attention_backend(name)


for each in ("native", "_native_math", "_native_flash", "flex"):
    both_orders(f"attention backend {each}", backend(each), plain)
neither_order("attention backend _native_flash, masked attention", backend("_native_flash"))
neither_order("attention backend that is not installed", backend("flash"))


class Backend(enum.StrEnum):
    SPARSE = "sparse-2027"


def sparse(query: Any, key: Any, value: Any, attn_mask: Any = None, scale: float | None = None) -> Any:
    """Every query attends to its own key: one head-dim vector per token, as from any backend."""
    return value


def unknown_backend(rig: Rig) -> None:
    _AttentionBackendRegistry.register(Backend.SPARSE)(sparse)
    _AttentionBackendRegistry.set_active_backend(Backend.SPARSE)


neither_order("attention backend that UVR does not know", unknown_backend)


# ---- torch.compile


def compile_in_place(rig: Rig) -> None:
    rig.transformer.compile(backend="eager")


def compile_wrapped(rig: Rig) -> None:
    rig.pipe.transformer = torch.compile(rig.pipe.transformer, backend="eager")


def compile_forward(rig: Rig) -> None:
    rig.transformer.forward = torch.compile(rig.transformer.forward, backend="eager")


def compile_blocks(rig: Rig) -> None:
    if rig.transformer._repeated_blocks:
        rig.transformer.compile_repeated_blocks(backend="eager")
        return
    for block in rig.transformer.transformer_blocks:
        block.compile(backend="eager")


def compile_block_forwards(rig: Rig) -> None:
    for block in rig.transformer.transformer_blocks:
        block.forward = torch.compile(block.forward, backend="eager")


def compile_blocks_wrapped(rig: Rig) -> None:
    blocks = rig.transformer.transformer_blocks
    for i, block in enumerate(blocks):
        blocks[i] = torch.compile(block, backend="eager")


def compile_attention(rig: Rig) -> None:
    rig.transformer.transformer_blocks[0].attn.compile(backend="eager")


WHOLE = (compile_in_place, compile_wrapped, compile_forward)
REGIONAL = (compile_blocks, compile_blocks_wrapped, compile_block_forwards, compile_attention)


def warmed(feature: Callable[[Rig], object]) -> Callable[[Rig], object]:
    """Compiled, and run once, so that there is something compiled to go on using."""

    def switch_on(rig: Rig) -> None:
        feature(rig)
        rig.run()

    return switch_on


@functools.cache
def stock_compiles(name: str) -> bool:
    """Whether the stock transformer can be compiled at all: torch 2.6 fails in Qwen-Image's position embedding."""
    rig = Rig(name, regulated=False)
    compile_in_place(rig)
    try:
        rig.run()
    except torch._dynamo.exc.InternalTorchDynamoError:
        return False
    return True


def compiled_whole(name: str) -> None:
    if not stock_compiles(name):
        pytest.skip(f"torch {torch.__version__} cannot compile this transformer, with UVR or without")


def compiled(features: tuple[Callable[[Rig], None], ...], when: str) -> Case:
    def attempts(rig: Rig) -> Iterator[Attempt]:
        if features is WHOLE:
            compiled_whole(rig.name)
        for feature in features:
            if when == "before":
                yield lambda f=feature: Rig(rig.name).regulated_run(before=warmed(f))
            else:
                yield lambda f=feature: Rig(rig.name).regulated_run(after=f)

    return attempts


def compile_around(rig: Rig, warm: bool) -> Iterator[Attempt]:
    """A compiled function that calls the transformer; `warm`: run before attach."""
    compiled_whole(rig.name)
    inputs = called(rig)
    step = torch.compile(lambda: rig.transformer(**inputs), backend="eager")
    if warm:
        step()
    with rig.attach(to=rig.transformer):
        yield step


@case("torch.compile of a function around the pipeline, after attach")
def compile_around_pipeline(rig: Rig) -> Iterator[Attempt]:
    """A compiled function that calls the pipeline. Texts are encoded outside: to trace the encoders takes long."""
    embeds, pooled, _ = rig.pipe.encode_prompt(PROMPTS[1], PROMPTS[1])
    texts = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    options = {"height": 64, "width": 64, "num_inference_steps": 1, "output_type": "latent"}
    with rig.attach():
        yield torch.compile(lambda: rig.pipe(**texts, **options), backend="eager")


for each in ("before", "after"):
    CASES[f"torch.compile of a function around it, {each} attach"] = functools.partial(
        compile_around, warm=each == "before"
    )
    CASES[f"torch.compile of the transformer, {each} attach"] = compiled(WHOLE, each)
    CASES[f"torch.compile of its blocks, {each} attach"] = compiled(REGIONAL, each)


# ---- training


both_orders("gradient checkpointing, inference", lambda rig: rig.transformer.enable_gradient_checkpointing(), plain)


def called(rig: Rig) -> dict[str, Any]:
    """Arguments of the transformer's first forward in a run."""
    seen: list[dict[str, Any]] = []
    handle = rig.transformer.register_forward_pre_hook(lambda m, a, kw: seen.append(kw), with_kwargs=True)
    rig.run(num_inference_steps=1)
    handle.remove()
    return seen[0]


@case("gradient checkpointing, training")
def checkpointed_training(rig: Rig) -> Iterator[Attempt]:
    inputs = called(rig)
    rig.transformer.enable_gradient_checkpointing()
    rig.transformer.train().requires_grad_(True)

    def step() -> None:
        with rig.attach(to=rig.transformer):
            rig.transformer(**inputs)[0].sum().backward()

    yield step


# ---- caches and guidance that skip or add work


def timestep(rig: Rig) -> Callable[[], int]:
    scheduler = rig.pipe.scheduler
    return lambda: int(scheduler.timesteps[scheduler.step_index or 0])


ALWAYS = (-1, 999)  # but in the first step


def hook(name: str) -> Any:
    """A name of diffusers.hooks; an older release that lacks it skips the test."""
    if not hasattr(diffusers.hooks, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    return getattr(diffusers.hooks, name)


def cache(name: str, config: Callable[[Rig], Any], apply: str, **options: Any) -> None:
    neither_order(name, lambda rig: hook(apply)(rig.transformer, config(rig)), **options)


for each in ("FirstBlockCache", "FirstBlockCache or TaylorSeer without a cache context"):
    cache(each, lambda rig: diffusers.FirstBlockCacheConfig(threshold=100.0), "apply_first_block_cache")
cache(
    "PyramidAttentionBroadcast",
    lambda rig: diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=ALWAYS,
        current_timestep_callback=timestep(rig),
    ),
    "apply_pyramid_attention_broadcast",
)
cache(
    "FasterCache, attention",
    lambda rig: diffusers.FasterCacheConfig(
        is_guidance_distilled=True,
        spatial_attention_timestep_skip_range=ALWAYS,
        current_timestep_callback=timestep(rig),
    ),
    "apply_faster_cache",
)
cache(
    "FasterCache, unconditional half",
    lambda rig: diffusers.FasterCacheConfig(
        spatial_attention_block_skip_range=None,  # type: ignore[arg-type]
        unconditional_batch_skip_range=2,
        unconditional_batch_timestep_skip_range=ALWAYS,
        tensor_format="BCHW",
        current_timestep_callback=timestep(rig),
        _unconditional_conditional_input_kwargs_identifiers=[
            "hidden_states",
            "encoder_hidden_states",
            "timestep",
            "pooled_projections",
        ],
    ),
    "apply_faster_cache",
    guidance_scale=3.0,
)
cache(
    "MagCache",
    lambda rig: diffusers.MagCacheConfig(
        threshold=100.0, retention_ratio=0.1, num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS
    ),
    "apply_mag_cache",
)
cache(
    "TaylorSeer",
    lambda rig: diffusers.TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1),
    "apply_taylorseer_cache",
)


def text_kv_cache(rig: Rig) -> None:
    hook("apply_text_kv_cache")(rig.transformer, diffusers.hooks.TextKVCacheConfig())


both_orders("TextKVCache", text_kv_cache, plain)


def sea_cache(rig: Rig) -> None:
    def latents(module: Any, args: Any, options: dict[str, Any]) -> list[torch.Tensor]:
        states = options["hidden_states"][:, :PATCHES] if rig.name != "sd3" else options["hidden_states"].flatten(2).mT
        return [sample.T.reshape(sample.shape[-1], 1, 8, -1) for sample in states]

    options = {"threshold": 100.0, "residual_order": 0, "cache_end_steps": 0}
    hook("apply_sea_cache")(rig.transformer, diffusers.SeaCacheConfig(**options, raw_vision_callback=latents))


both_orders("SeaCache, which the pipeline tells no step", sea_cache, plain)


def sea_cached(rig: Rig, when: str) -> Iterator[Attempt]:
    """The transformer driven as a pipeline does that tells the cache its step."""
    inputs = called(rig)

    @torch.no_grad()
    def run() -> None:
        if when == "before":
            sea_cache(rig)
        with rig.attach(to=rig.transformer):
            if when == "after":
                sea_cache(rig)
            for step in range(STEPS):
                level = {"timestep": inputs["timestep"] * (1 - step / STEPS)}
                told = {"step_index": step, "sigma": 1 - step / STEPS, "num_inference_steps": STEPS}
                with rig.transformer.cache_context("cond", **told):
                    rig.transformer(**{**inputs, **level})

    yield run


for each in ("before", "after"):
    CASES[f"SeaCache, {each} attach"] = functools.partial(sea_cached, when=each)


def skipped(*, scores: bool) -> Callable[[Rig], None]:
    """Of the second block: its attention scores alone, or all of it."""
    only = {"skip_attention": False, "skip_ff": False, "skip_attention_scores": True} if scores else {}
    config = diffusers.LayerSkipConfig(indices=[1], fqn="transformer_blocks", **only)
    return lambda rig: diffusers.apply_layer_skip(rig.transformer, config)


neither_order("layer skipping", skipped(scores=False))


@case("layer skipping, attention scores, before attach")
def scores_skipped(rig: Rig) -> Iterator[Attempt]:
    yield lambda: rig.regulated_run(before=skipped(scores=True))


@case("skip-layer guidance")
def skip_layer_guidance(rig: Rig) -> Iterator[Attempt]:
    yield lambda: rig.regulated_run(
        guidance_scale=3.0, skip_guidance_layers=[1], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0
    )


def perturbed(rig: Rig) -> None:
    parts = {name: part for name, part in rig.pipe.components.items() if "image" not in name and "feature" not in name}
    rig.pipe = diffusers.StableDiffusion3PAGPipeline(**parts, pag_applied_layers=["blocks.1"])
    rig.pipe.set_progress_bar_config(disable=True)


@case("perturbed-attention guidance")
def perturbed_attention(rig: Rig) -> Iterator[Attempt]:
    yield lambda: rig.regulated_run(before=perturbed, guidance_scale=3.0, pag_scale=2.0)
    yield lambda: Rig(rig.name).regulated_run(before=perturbed, pag_scale=2.0)


# ---- threads


def sibling(rig: Rig) -> Any:
    """Another pipeline around the same transformer. Schedulers and tokenizers are not thread-safe: it has its own."""
    pipe = copy.copy(rig.pipe)
    for name, part in rig.pipe.components.items():
        if part is not None and name.startswith(("scheduler", "tokenizer", "processor")):
            setattr(pipe, name, copy.deepcopy(part))
    return pipe


def in_step(count: int) -> Callable[..., Any]:
    """A step callback at which so many threads wait for one another."""
    barrier = threading.Barrier(count, timeout=30)

    def wait(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        barrier.wait()
        return tensors

    return wait


@case("two threads, two models")
def two_models(rig: Rig) -> Iterator[Pair]:
    other, wait = Rig(rig.name), in_step(2)
    with rig.attach(), other.attach(), concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(r.run, callback_on_step_end=wait) for r in (rig, other)]
        images = [future.result() for future in futures]
    for image in images:
        yield image, reference(rig.name)


@case("two threads, a pipeline each, one transformer")
def one_transformer(rig: Rig) -> Iterator[Pair]:
    pipes, wait = [rig.pipe, sibling(rig)], in_step(2)
    with rig.attach(to=rig.transformer), concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(rig.run, pipe, callback_on_step_end=wait) for pipe in pipes]
        images = [future.result() for future in futures]
    for image in images:
        yield image, reference(rig.name)


@case("two threads, one pipeline")
def one_pipeline(rig: Rig) -> Iterator[Attempt]:
    expected = reference(rig.name)

    def overlap() -> torch.Tensor:
        with rig.attach(), concurrent.futures.ThreadPoolExecutor(1) as pool:
            second: list[concurrent.futures.Future[torch.Tensor]] = []

            def meanwhile(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
                if step == 0:
                    second.append(pool.submit(rig.run))
                    second[0].exception(30)
                return tensors

            assert torch.equal(rig.run(callback_on_step_end=meanwhile), expected)
            return second[0].result()

    yield overlap


@case("asyncio server with a thread pool")
def asyncio_server(rig: Rig) -> Iterator[Pair]:
    """A pipeline per request around one regulated transformer; every request's thread gets a copy of the context."""
    expected = {steps: reference(rig.name, steps) for steps in (1, STEPS)}

    async def serve(steps: int) -> list[torch.Tensor]:
        pipes, wait = [sibling(rig) for _ in range(3)], in_step(3)
        requests = [
            asyncio.to_thread(rig.run, pipe, num_inference_steps=steps, callback_on_step_end=wait) for pipe in pipes
        ]
        return await asyncio.gather(*requests)

    with rig.attach(to=rig.transformer):
        rig.run(num_inference_steps=1)  # warm up, in the context that the requests' are copies of
        got = {steps: asyncio.run(serve(steps)) for steps in (1, STEPS)}
    for steps, images in got.items():
        for image in images:
            yield image, expected[steps]


@case("asyncio server, a model per request")
def asyncio_models(rig: Rig) -> Iterator[Pair]:
    rigs, wait = [rig, Rig(rig.name)], in_step(2)

    async def serve() -> list[torch.Tensor]:
        return await asyncio.gather(*(asyncio.to_thread(r.run, callback_on_step_end=wait) for r in rigs))

    with rigs[0].attach(), rigs[1].attach():
        for r in rigs:
            r.run(num_inference_steps=1)
        images = asyncio.run(serve())
    for image in images:
        yield image, reference(rig.name)


@case("asyncio server, one pipeline for all requests")
def asyncio_one_pipeline(rig: Rig) -> Iterator[Attempt]:
    """While a request is drawn, others are refused; its own images are right."""
    expected = reference(rig.name)
    started, asked = threading.Event(), threading.Event()

    def wait(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        started.set()
        assert asked.wait(30)
        return tensors

    async def serve() -> None:
        first = asyncio.create_task(asyncio.to_thread(rig.run, callback_on_step_end=wait))
        await asyncio.to_thread(started.wait, 30)
        others = await asyncio.gather(*(asyncio.to_thread(rig.run) for _ in range(3)), return_exceptions=True)
        asked.set()
        assert torch.equal(await first, expected)
        refused = [error for error in others if isinstance(error, uvr_core.UnsupportedRuntime)]
        assert len(refused) == len(others)
        raise refused[0]

    with rig.attach():
        yield lambda: asyncio.run(serve())


@case("attach twice")
def attach_twice(rig: Rig) -> Iterator[Attempt]:
    expected = reference(rig.name)
    with rig.attach():
        yield lambda: rig.attach().detach()
        yield lambda: rig.attach(to=rig.transformer).detach()
        assert torch.equal(rig.run(), expected)


# ---- interruptions


def interrupted(error: type[BaseException]) -> Case:
    def after(rig: Rig) -> Iterator[Pair]:
        expected, stock = reference(rig.name), rig.run()
        with rig.attach():
            module = rig.transformer.transformer_blocks[1].attn.to_v

            def explode(*args: object) -> None:
                raise error("boom")

            handle = module.register_forward_hook(explode)
            with pytest.raises(error, match="boom"):
                rig.run()
            handle.remove()
            yield rig.run(), expected
            with pytest.raises(TypeError, match="no_such_option"):
                rig.run(no_such_option=1)
            yield rig.run(), expected
        yield rig.run(), stock

    return after


CASES["an exception inside attention"] = interrupted(RuntimeError)
CASES["KeyboardInterrupt inside attention"] = interrupted(KeyboardInterrupt)


@case("detach in the middle of a run")
def detached_midway(rig: Rig) -> Iterator[Attempt]:
    def leave(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            reg.detach()
        return tensors

    with rig.attach() as reg:
        yield lambda: rig.run(callback_on_step_end=leave)


# ---- parallelism


def distributed() -> None:
    """Two ranks, of which this process is the first, on torch's own process group for tests."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)


def context_parallel(rig: Rig) -> None:
    distributed()
    with mock.patch.object(torch.accelerator, "device_count", return_value=1):  # diffusers divides by it
        rig.transformer.enable_parallelism(config=diffusers.ContextParallelConfig(ulysses_degree=2))


neither_order("context parallel", context_parallel)
neither_order("context parallel without a plan", context_parallel)


# ---- processors


@case("a processor replaced after attach")
def processor_replaced(rig: Rig) -> Iterator[Pair]:
    attention = rig.transformer.transformer_blocks[0].attn
    mine = type(attention.processor)()
    yield rig.regulated_run(after=lambda r: setattr(attention, "processor", mine)), reference(rig.name)
    assert attention.processor is mine
    other = type(mine)()

    def replace(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            attention.processor = other
        return tensors

    yield rig.regulated_run(callback_on_step_end=replace), reference(rig.name)
    assert attention.processor is other


class Opaque:
    """Attention by a name that nobody knows."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, **kwargs: Any) -> Any:
        return hidden_states, encoder_hidden_states


def opaque(rig: Rig) -> None:
    rig.transformer.transformer_blocks[0].attn.processor = Opaque()


neither_order("a processor that UVR cannot see through", opaque)


# ---- copies and files


@case("save_pretrained while attached")
def saved(rig: Rig) -> Iterator[Pair]:
    expected = reference(rig.name)
    with tempfile.TemporaryDirectory() as folder:
        stock, mine = Path(folder, "stock"), Path(folder, "mine")
        rig.transformer.save_pretrained(stock)
        rig.pipe.save_config(stock)
        with rig.attach():
            rig.transformer.save_pretrained(mine)
            rig.pipe.save_config(mine)
            yield rig.run(), expected
        files = sorted(path.name for path in stock.iterdir())
        assert len(files) == 3
        assert files == sorted(path.name for path in mine.iterdir())
        assert all((stock / name).read_bytes() == (mine / name).read_bytes() for name in files)
        rig.pipe.transformer = type(rig.transformer).from_pretrained(mine)
    yield rig.regulated_run(), expected


@case("deepcopy while attached")
def deep_copied(rig: Rig) -> Iterator[Attempt]:
    with rig.attach():
        yield lambda: rig.run(copy.deepcopy(rig.pipe))
        yield lambda: copy.deepcopy(rig.transformer)(**inputs)
    inputs = called(rig)
    with rig.attach(to=rig.transformer):
        yield lambda: copy.deepcopy(rig.transformer)(**inputs)


@case("pickle while attached")
def pickled(rig: Rig) -> Iterator[Attempt]:
    with rig.attach():
        yield lambda: pickle.dumps(rig.pipe)
        yield lambda: pickle.dumps(rig.transformer)
        yield lambda: torch.save(rig.transformer, io.BytesIO())


# ---- ways around the regulator


@case("the transformer's forward called past its hooks")
def bare_forward(rig: Rig) -> Iterator[Attempt]:
    inputs = called(rig)
    with rig.attach():
        yield lambda: rig.transformer.forward(**inputs)
    with rig.attach(to=rig.transformer):
        yield lambda: rig.transformer.forward(**inputs)


@case("the pipeline attached, its transformer called from elsewhere")
def around(rig: Rig) -> Iterator[Attempt]:
    other, stock, inputs = sibling(rig), type(rig.pipe), called(rig)
    with rig.attach():
        yield lambda: rig.run(other)
        yield lambda: rig.run(lambda **options: stock.__call__(rig.pipe, **options))
        yield lambda: rig.transformer(**inputs)


@case("the transformer replaced after attach")
def transformer_replaced(rig: Rig) -> Iterator[Attempt]:
    other = Rig(rig.name)
    with rig.attach():
        rig.pipe.transformer = other.transformer
        yield lambda: rig.run()


# ---------------------------------------------------------------------------------------------- the matrix


def rows(outcome: Outcome) -> Any:
    """Every case of that outcome on every pipeline."""
    return pytest.mark.parametrize(
        ("row", "which", "name"),
        [
            pytest.param(row, which, name, id=f"{which}-{name}")
            for row in SITUATIONS
            if row.outcome == outcome
            for which in row.cases
            for name in row.pipelines
        ],
    )


@rows("regulated exactly")
def test_regulated_exactly(row: Situation, which: str, name: str, witness: Witness) -> None:
    if row.needs and importlib.util.find_spec(row.needs) is None:
        pytest.skip(f"needs {row.needs}")
    rig = Rig(name)
    stock, compared = rig.run(), 0
    for got, expected in CASES[which](rig):
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
        compared += 1
    assert compared
    assert witness.edited
    assert not seen_through(rig)
    assert stock.shape == expected.shape


@rows("refused by name")
def test_refused_by_name(row: Situation, which: str, name: str) -> None:
    rig, attempts = Rig(name), 0
    for attempt in CASES[which](rig):
        with pytest.raises(uvr_core.UVRError) as caught:
            attempt()
        assert row.says in str(caught.value)
        attempts += 1
    assert attempts
    assert not seen_through(rig)


@rows("stock cannot")
def test_stock_cannot(row: Situation, which: str, name: str) -> None:
    for regulated in (False, True):
        for attempt in CASES[which](Rig(name, regulated)):
            with pytest.raises(Exception, match=re.escape(row.says)) as caught:
                attempt()
            assert not isinstance(caught.value, uvr_core.UVRError)


def test_every_row_has_its_cases_and_every_case_its_row() -> None:
    assert {name for row in SITUATIONS for name in row.pipelines} == set(PIPELINES)
    assert sorted(CASES) == sorted(which for row in SITUATIONS for which in row.cases)
    assert all(row.says for row in SITUATIONS if row.outcome != "regulated exactly")
    assert all(row.note for row in SITUATIONS if row.outcome == "refused by name")


def test_the_page_is_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "compatibility.md"
    assert page.read_text() == markdown(), "run `python -m uvr_core.doctor.compatibility > docs/compatibility.md`"


@pytest.mark.parametrize("as_json", [False, True])
def test_doctor_prints_the_matrix(as_json: bool) -> None:
    result = CliRunner().invoke(main, ["doctor", "--matrix", *["--json"] * as_json], env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.output
    if as_json:
        assert json.loads(result.stdout)["situations"] == [json.loads(json.dumps(attrs.asdict(s))) for s in SITUATIONS]
    else:
        lines = result.stdout.splitlines()
        for s in SITUATIONS:
            assert any(line.startswith(s.name) and s.outcome in line and s.note in line for line in lines), s.name


def test_doctor_still_wants_a_model() -> None:
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 2
