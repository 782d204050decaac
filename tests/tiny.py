"""Toys from real classes: pipelines with the library's own parts, random weights, and next to no size."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from uvr_core.testing import Example
from uvr_zoo.architectures import ARCHITECTURES, image_ids
from uvr_zoo.pipelines import assemble, parts
from uvr_zoo.recipes import RECIPES
from uvr_zoo.text import tokenizer

WIDTH = 32  # of the joint attention: heads * head_dim
MAX_TOKENS = 32


def tiny_flux(seed: int = 0, heads: int = 2, head_dim: int = 16) -> FluxPipeline:
    """A FluxPipeline: 2 + 2 blocks, VAE factor 4 (64x64 pixels are 8x8 patches, its default size), 32 text tokens."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    words = tokenizer(MAX_TOKENS)
    text = {"vocab_size": len(words), "pad_token_id": 0, "eos_token_id": 2}
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
        sample_size=64,
    )
    t5 = T5EncoderModel(
        T5Config(
            d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu", dropout_rate=0.0,
            is_encoder_decoder=False, use_cache=False, tie_word_embeddings=False, **text,
        )
    )  # fmt: skip
    clip = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, bos_token_id=1,
            max_position_embeddings=MAX_TOKENS, **text,
        )
    )  # fmt: skip
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=head_dim,
        num_attention_heads=heads, joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True,
        axes_dims_rope=(head_dim // 4, head_dim * 3 // 8, head_dim * 3 // 8),
    )  # fmt: skip
    torch.random.set_rng_state(state)
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0, use_dynamic_shifting=False),
        vae=vae.eval(),
        text_encoder=clip.eval(),
        tokenizer=words,
        text_encoder_2=t5.eval(),
        tokenizer_2=words,
        transformer=transformer.eval(),
    )
    pipe.default_sample_size = 16
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_zoo(name: str, seed: int = 0, sharpness: float = 8.0) -> Any:
    """A zoo pipeline's real class and text encoder, VAE and size (8x8 patches), its transformer tiny and random."""
    return assemble(RECIPES[name], tiny_transformer(name, seed, sharpness), parts(name))


def tiny_transformer(name: str, seed: int = 0, sharpness: float = 8.0) -> torch.nn.Module:
    """A zoo pipeline's transformer, tiny and random.

    2 blocks (FLUX: 2 + 2) of 2 heads x 16. Attention that random weights leave nearly uniform is made as peaked as a
    trained model's: normalised queries are scaled by `sharpness`.
    """
    config = {**RECIPES[name].transformer, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
    small = {"num_single_layers": 2, "axes_dims_rope": (4, 6, 6), "caption_projection_dim": WIDTH}
    config |= {key: value for key, value in small.items() if key in config}
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    transformer = getattr(diffusers, ARCHITECTURES[name].transformer)(**config).requires_grad_(False)
    torch.random.set_rng_state(state)
    for path, module in transformer.named_modules():
        if path.endswith((".norm_q", ".norm_added_q")):
            module.weight.mul_(sharpness)
    return transformer.eval()


def example(name: str) -> Example:
    """A zoo pipeline's transformer, tiny and random, and its pipeline, as the conformance kit takes them."""
    pipe = assemble(RECIPES[name], tiny_transformer(name), _parts(name))
    family = ARCHITECTURES[name].transformer
    options: dict[str, Any] = {"guidance_scale": 3.0} if name == "sd3" else {"true_cfg_scale": 3.0}
    if name in ("flux-kontext", "qwen-image-edit"):
        options["image"] = Image.new("RGB", (64, 64), "teal")
    if name == "flux-kontext":
        options |= {"max_area": 64 * 64, "_auto_resize": False}

    def generate(prompt: str, negative: str) -> object:
        noise = torch.Generator().manual_seed(0)
        return pipe(
            prompt=prompt, negative_prompt=negative, height=64, width=64, num_inference_steps=1, generator=noise,
            output_type="latent", **options,
        )  # fmt: skip

    inputs = functools.partial(_INPUTS[family], pipe.transformer.config)
    return Example(
        pipe.transformer, inputs, references=family != "SD3Transformer2DModel", pipeline=pipe, generate=generate
    )


_parts = functools.cache(parts)


def _flux(config: Any, height: int, width: int, batch: int, sigma: float, references: Any) -> dict[str, Any]:
    ids = [image_ids(*size, image=number) for number, size in enumerate([(height, width), *references])]
    return {
        "hidden_states": torch.randn(batch, sum(map(len, ids)), config.in_channels),
        "encoder_hidden_states": torch.randn(batch, 5, config.joint_attention_dim),
        "pooled_projections": torch.randn(batch, config.pooled_projection_dim),
        "timestep": torch.full((batch,), sigma),
        "guidance": torch.full((batch,), 3.0),
        "img_ids": torch.cat(ids),
        "txt_ids": torch.zeros(5, 3),
    }


def _sd3(config: Any, height: int, width: int, batch: int, sigma: float) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, config.in_channels, 2 * height, 2 * width),
        "encoder_hidden_states": torch.randn(batch, 5, config.joint_attention_dim),
        "pooled_projections": torch.randn(batch, config.pooled_projection_dim),
        "timestep": torch.full((batch,), 1000 * sigma),
    }


def _qwen(config: Any, height: int, width: int, batch: int, sigma: float, references: Any) -> dict[str, Any]:
    grids = [(height, width), *references]
    return {
        "hidden_states": torch.randn(batch, sum(h * w for h, w in grids), config.in_channels),
        "encoder_hidden_states": torch.randn(batch, 5, config.joint_attention_dim),
        "encoder_hidden_states_mask": torch.ones(batch, 5, dtype=torch.long),
        "timestep": torch.full((batch,), sigma),
        "img_shapes": [[(1, h, w) for h, w in grids]] * batch,
    }


_INPUTS = {"FluxTransformer2DModel": _flux, "SD3Transformer2DModel": _sd3, "QwenImageTransformer2DModel": _qwen}
