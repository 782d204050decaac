"""The situation matrix: what else a deployment may switch on, and what becomes of a regulated image then.

Every row of uvr_core/situations.py on tiny pipelines of real diffusers classes. A regulated image equals that of a
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
import importlib.util
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
import pytest
import torch
from click.testing import CliRunner
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, IPAdapterTimeImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from tiny import tiny_zoo

import uvr_core
from uvr_core.cli import main
from uvr_core.protocols import CallInfo, FlowEdit, Located, row_classes
from uvr_core.regulator import find_adapter, fingerprint
from uvr_core.seam import AttentionCall, Hook
from uvr_core.session import Session
from uvr_core.situations import SITUATIONS, Outcome, Situation, markdown

PROMPTS = ["a cat", "a knife on the left"]
PATCHES = 64
STEPS = 3
MASK = torch.zeros(2, 8, 8, dtype=torch.bool)
MASK[1, 2:5, 3:6] = True
CPU = torch.device("cpu")


class TextOnly:
    """Located rows attend to the text alone: an edit whose result is easy to compute by hand."""

    name, ring = "text-only", 0

    def edit(self, located: Located, call: CallInfo) -> FlowEdit:
        return FlowEdit(row_classes(located), ((1.0,) * 4, (1.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)))


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
        self.bank = uvr_core.ConceptBank("x", model, {f"anchors/{probe}": anchors, "sigma": torch.tensor([1.0])})

    @property
    def transformer(self) -> Any:
        return self.pipe.transformer

    def run(self, pipe: Any = None, **options: Any) -> torch.Tensor:
        """Latents of both prompts."""
        options = {"num_inference_steps": STEPS, "height": 64, "width": 64, "output_type": "latent", **options}
        if self.name == "sd3":
            options.setdefault("guidance_scale", 1.0)
        noise = [torch.Generator().manual_seed(40 + i) for i in range(len(PROMPTS))]
        return (self.pipe if pipe is None else pipe)(prompt=PROMPTS, generator=noise, **options).images

    def attach(self, to: Any = None) -> Any:
        if not self.regulated:
            return contextlib.nullcontext()
        return uvr_core.attach(
            self.pipe if to is None else to, concepts=self.bank, detector=Second(), policy=TextOnly()
        )

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
                assert report.fired == report.steps * report.passes * report.taps
                assert [f.located for f in report.findings] == [False, True]
                assert report.findings[1].steps_regulated == report.steps
        return images


@functools.cache
def reference(name: str, steps: int = STEPS) -> torch.Tensor:
    """A regulated run of a fresh pipeline in which nothing else is on."""
    return Rig(name).regulated_run(num_inference_steps=steps)


# ---------------------------------------------------------------------------------------------- the equation


@attrs.define
class Witness:
    """Checks every attention call that was edited; counts them."""

    edited: int = 0
    worst: float = 0.0

    def check(self, session: Session, call: AttentionCall, edited: torch.Tensor | None) -> None:
        if edited is None:
            return
        keys, queries = call.key.shape[2], call.query.shape[2]
        text = slice(PATCHES, keys) if session.image_at == "start" else slice(0, keys - PATCHES)
        first = 0 if session.image_at == "start" else queries - PATCHES
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
        assert torch.equal(edited.transpose(1, 2)[others], call.output.transpose(1, 2)[others])
        assert (edited[-1][:, rows] != call.output[-1][:, rows]).any()
        assert error < 5e-6
        self.edited, self.worst = self.edited + 1, max(self.worst, float(error))


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> Witness:
    """Sees what every session makes of every call."""
    found, stock = Witness(), Session.on_call

    def on_call(self: Session, call: AttentionCall) -> torch.Tensor | None:
        edited = stock(self, call)
        found.check(self, call, edited)
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
    for name in ("flux", "sd3", "qwen-image"):
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


def group_offload(kind: str) -> Callable[[Rig], None]:
    def switch_on(rig: Rig) -> None:
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


def compiled(features: tuple[Callable[[Rig], None], ...], when: str) -> Case:
    def attempts(rig: Rig) -> Iterator[Attempt]:
        for feature in features:
            if when == "before":
                yield lambda f=feature: Rig(rig.name).regulated_run(before=warmed(f))
            else:
                yield lambda f=feature: Rig(rig.name).regulated_run(after=f)

    return attempts


def compile_around(rig: Rig, warm: bool) -> Iterator[Attempt]:
    """A compiled function that calls the transformer; `warm`: run before attach."""
    inputs = called(rig)
    step = torch.compile(lambda: rig.transformer(**inputs), backend="eager")
    if warm:
        step()
    with rig.attach(to=rig.transformer):
        yield step


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


def cache(name: str, config: Callable[[Rig], Any], apply: Callable[[Any, Any], None], **options: Any) -> None:
    neither_order(name, lambda rig: apply(rig.transformer, config(rig)), **options)


for each in ("FirstBlockCache", "FirstBlockCache or TaylorSeer without a cache context"):
    cache(each, lambda rig: diffusers.FirstBlockCacheConfig(threshold=100.0), diffusers.apply_first_block_cache)
cache(
    "PyramidAttentionBroadcast",
    lambda rig: diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=ALWAYS,
        current_timestep_callback=timestep(rig),
    ),
    diffusers.apply_pyramid_attention_broadcast,
)
cache(
    "FasterCache, attention",
    lambda rig: diffusers.FasterCacheConfig(
        is_guidance_distilled=True,
        spatial_attention_timestep_skip_range=ALWAYS,
        current_timestep_callback=timestep(rig),
    ),
    diffusers.apply_faster_cache,
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
    diffusers.apply_faster_cache,
    guidance_scale=3.0,
)
cache(
    "MagCache",
    lambda rig: diffusers.MagCacheConfig(
        threshold=100.0, retention_ratio=0.1, num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS
    ),
    diffusers.apply_mag_cache,
)
cache(
    "TaylorSeer",
    lambda rig: diffusers.TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1),
    diffusers.apply_taylorseer_cache,
)


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
        if part is not None and name.startswith(("scheduler", "tokenizer")):
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


def seen_through(rig: Rig) -> bool:
    """Whether anything of a regulator is left on the pipeline."""
    modules = list(getattr(rig.transformer, "_orig_mod", rig.transformer).modules())
    return (
        any(hasattr(type(getattr(module, "processor", None)), "_uvr_seam") for module in modules)
        or any(
            isinstance(hook, Hook)
            for m in modules
            for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
        )
        or type(rig.pipe).__call__.__module__.startswith("uvr_core")
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
    assert sorted(CASES) == sorted(which for row in SITUATIONS for which in row.cases)
    assert all(row.says for row in SITUATIONS if row.outcome != "regulated exactly")
    assert all(row.note for row in SITUATIONS if row.outcome == "refused by name")


def test_the_page_is_the_table() -> None:
    page = Path(__file__).parents[1] / "docs" / "situations.md"
    assert page.read_text() == markdown(), "run `python -m uvr_core.situations > docs/situations.md`"


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
