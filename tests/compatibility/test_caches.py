"""Step caches, and guidance that skips or adds work."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import diffusers.hooks
import pytest
import torch
from rig import PATCHES, STEPS, Rig, called
from situations import Attempt, Pair, Topic, plain

topic = Topic("caches")
test_regulated_exactly = topic.regulated_exactly()
test_refused_by_name = topic.refused_by_name()
test_stock_cannot = topic.stock_cannot()
test_every_row_has_its_cases_and_every_case_its_row = topic.complete()


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
    topic.neither_order(name, lambda rig: hook(apply)(rig.transformer, config(rig)), **options)


def first_block_cache(rig: Rig) -> None:
    """It reuses in every step but the first, if it may."""
    hook("apply_first_block_cache")(rig.transformer, diffusers.FirstBlockCacheConfig(threshold=100.0))


@topic.case("FirstBlockCache, before attach")
def first_block_cache_before(rig: Rig) -> Iterator[Pair]:
    """Of a fresh pipeline: diffusers does not tell a cache its context that is switched on after a first run."""
    yield Rig(rig.name).regulated_run(before=first_block_cache), plain(rig)


@topic.case("FirstBlockCache, after attach")
def first_block_cache_after(rig: Rig) -> Iterator[Pair]:
    yield Rig(rig.name).regulated_run(after=first_block_cache), plain(rig)


topic.neither_order("FirstBlockCache or TaylorSeer without a cache context", first_block_cache)
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


def mag_cache(rig: Rig) -> None:
    """It reuses in every step but the first, if it may."""
    options = {"threshold": 100.0, "retention_ratio": 0.1, "mag_ratios": [1.0] * STEPS}
    hook("apply_mag_cache")(rig.transformer, diffusers.MagCacheConfig(num_inference_steps=STEPS, **options))


topic.both_orders("MagCache", mag_cache, plain)
cache(
    "TaylorSeer",
    lambda rig: diffusers.TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1),
    "apply_taylorseer_cache",
)


def db_cache(rig: Rig) -> None:
    """Of the transformer: of a pipeline it would mark the class."""
    import cache_dit

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=1, residual_diff_threshold=100.0
    )
    cache_dit.enable_cache(rig.transformer, cache_config=config)


topic.neither_order("DBCache of cache-dit", db_cache)


def text_kv_cache(rig: Rig) -> None:
    hook("apply_text_kv_cache")(rig.transformer, diffusers.hooks.TextKVCacheConfig())


topic.both_orders("TextKVCache", text_kv_cache, plain)


def sea_cache(rig: Rig) -> None:
    def latents(module: Any, args: Any, options: dict[str, Any]) -> list[torch.Tensor]:
        states = options["hidden_states"][:, :PATCHES] if rig.name != "sd3" else options["hidden_states"].flatten(2).mT
        return [sample.T.reshape(sample.shape[-1], 1, 8, -1) for sample in states]

    options = {"threshold": 100.0, "residual_order": 0, "cache_end_steps": 0}
    hook("apply_sea_cache")(rig.transformer, diffusers.SeaCacheConfig(**options, raw_vision_callback=latents))


topic.both_orders("SeaCache, which the pipeline tells no step", sea_cache, plain)


def sea_cached(rig: Rig, when: str) -> Iterator[Attempt]:
    """The transformer driven as a pipeline does that tells the cache its step."""
    inputs = called(rig)

    @torch.no_grad()
    def run() -> None:
        if when == "before":
            sea_cache(rig)
        with rig.attach(to=rig.transformer), rig.generation():
            if when == "after":
                sea_cache(rig)
            for step in range(STEPS):
                level = {"timestep": inputs["timestep"] * (1 - step / STEPS)}
                told = {"step_index": step, "sigma": 1 - step / STEPS, "num_inference_steps": STEPS}
                with rig.transformer.cache_context("cond", **told):
                    rig.transformer(**{**inputs, **level})

    yield run


for each in ("before", "after"):
    topic.cases[f"SeaCache, {each} attach"] = functools.partial(sea_cached, when=each)


def skipped(*, scores: bool) -> Callable[[Rig], None]:
    """Of the second block: its attention scores alone, or all of it."""
    only = {"skip_attention": False, "skip_ff": False, "skip_attention_scores": True} if scores else {}
    config = diffusers.LayerSkipConfig(indices=[1], fqn="transformer_blocks", **only)
    return lambda rig: diffusers.apply_layer_skip(rig.transformer, config)


topic.neither_order("layer skipping", skipped(scores=False))


@topic.case("layer skipping, attention scores, before attach")
def scores_skipped(rig: Rig) -> Iterator[Attempt]:
    yield lambda: rig.regulated_run(before=skipped(scores=True))


@topic.case("skip-layer guidance")
def skip_layer_guidance(rig: Rig) -> Iterator[Attempt]:
    yield lambda: rig.regulated_run(
        guidance_scale=3.0, skip_guidance_layers=[1], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0
    )


def perturbed(rig: Rig) -> None:
    parts = {name: part for name, part in rig.pipe.components.items() if "image" not in name and "feature" not in name}
    rig.pipe = diffusers.StableDiffusion3PAGPipeline(**parts, pag_applied_layers=["blocks.1"])
    rig.pipe.set_progress_bar_config(disable=True)


@topic.case("perturbed-attention guidance")
def perturbed_attention(rig: Rig) -> Iterator[Attempt]:
    yield lambda: rig.regulated_run(before=perturbed, guidance_scale=3.0, pag_scale=2.0)
    yield lambda: Rig(rig.name).regulated_run(before=perturbed, pag_scale=2.0)
