"""Five tiny pipelines of diffusers' own classes with random weights, whole: text encoders, VAE, transformer."""

from __future__ import annotations

import inspect
import re
from typing import Any

import diffusers
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    T5Config,
    T5EncoderModel,
)
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

PIPELINES = {
    "flux": "FluxPipeline", "flux-kontext": "FluxKontextPipeline", "sd3": "StableDiffusion3Pipeline",
    "qwen-image": "QwenImagePipeline", "qwen-image-edit": "QwenImageEditPipeline",
}  # fmt: skip
WORDS = (
    "a",
    "and",
    "cat",
    "dog",
    "tree",
    "knife",
    "large",
    "small",
    "on",
    "the",
    "left",
    "right",
    "no",
    "picture",
    "red",
)
CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
SIDE = 64  # pixels
SHARPNESS = 8.0  # factor on normalised queries: random attention as peaked as a trained one


def tiny_pipeline(name: str) -> Any:
    """A pipeline that draws 64 x 64 pixels in 8 x 8 patches."""
    torch.manual_seed(0)
    kind = getattr(diffusers, PIPELINES[name])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0, use_dynamic_shifting=False)
    parts = (sd3 if name == "sd3" else qwen if name.startswith("qwen") else flux)(kind)
    transformer = parts["transformer"]
    for path, module in transformer.named_modules():
        if path.endswith((".norm_q", ".norm_added_q")):
            module.weight.data.mul_(SHARPNESS)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe = kind(scheduler=scheduler, **parts)
    pipe.default_sample_size = SIDE // pipe.vae_scale_factor
    if "qwen" in name:  # so many tokens of the chat template are dropped
        head = pipe.prompt_template_encode.partition("user\n")[0] + "user\n"
        pipe.prompt_template_encode_start_idx = len(pipe.tokenizer(head).input_ids)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux(kind: type) -> dict[str, Any]:
    config = {
        "patch_size": 1, "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32, "guidance_embeds": True,
        "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip
    words = tokenizer()
    return {
        "transformer": diffusers.FluxTransformer2DModel(**config), "vae": vae(), "text_encoder": clip(CLIPTextModel),
        "text_encoder_2": t5(32), "tokenizer": words, "tokenizer_2": words,
    }  # fmt: skip


def sd3(kind: type) -> dict[str, Any]:
    config = {
        "sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 64, "caption_projection_dim": 32,
        "pooled_projection_dim": 64, "pos_embed_max_size": 16, "dual_attention_layers": (0,), "qk_norm": "rms_norm",
    }  # fmt: skip
    words = tokenizer()
    return {
        "transformer": diffusers.SD3Transformer2DModel(**config), "vae": vae(), "text_encoder_3": t5(64),
        "text_encoder": clip(CLIPTextModelWithProjection), "text_encoder_2": clip(CLIPTextModelWithProjection),
        "tokenizer": words, "tokenizer_2": words, "tokenizer_3": words,
    }  # fmt: skip


def qwen(kind: type) -> dict[str, Any]:
    config = {
        "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip
    latents = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    words = chat_tokenizer(kind)
    parts = {
        "transformer": diffusers.QwenImageTransformer2DModel(**config), "tokenizer": words,
        "text_encoder": vision_text(words), "vae": diffusers.AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[False, False], **latents
        ),
    }  # fmt: skip
    if kind is diffusers.QwenImageEditPipeline:
        dimensions = pipeline_qwenimage_edit.calculate_dimensions
        if not hasattr(dimensions, "tiny"):  # a source picture is brought to 1024 x 1024 otherwise
            small = lambda area, ratio: dimensions(SIDE * SIDE, ratio)  # noqa: E731
            small.tiny = True  # type: ignore[attr-defined]
            pipeline_qwenimage_edit.calculate_dimensions = small
        pictures = Qwen2VLImageProcessorPil(
            patch_size=8, merge_size=2, temporal_patch_size=2,
            size={"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE},
        )  # fmt: skip
        parts["processor"] = PictureProcessor(pictures, words)
    return parts


class PictureProcessor(Qwen2VLProcessor):
    """Qwen2VLProcessor without its video half, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def __init__(self, image_processor: Any, tokenizer: Any):
        super().__init__(image_processor, tokenizer)


def vae() -> Any:
    return diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 8), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4,
        mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.0,
        shift_factor=0.0, sample_size=SIDE,
    )  # fmt: skip


def t5(width: int) -> Any:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(WORDS) + 4, d_model=width, d_kv=16, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
            feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False, tie_word_embeddings=False,
            pad_token_id=0, eos_token_id=2,
        )
    )  # fmt: skip


def clip(kind: Any) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=len(WORDS) + 4, hidden_size=32, intermediate_size=32, num_hidden_layers=2, projection_dim=32,
            num_attention_heads=2, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def vision_text(words: Any) -> Any:
    ids = {f"{part}_token_id": words.convert_tokens_to_ids(f"<|{part}|>") for part in ("vision_start", "vision_end")}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 160,
                "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            },
            vision_config={
                "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "patch_size": 8,
                "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": SIDE, "out_hidden_size": 32,
                "fullatt_block_indexes": [0],
            },
            image_token_id=words.convert_tokens_to_ids("<|image_pad|>"), video_token_id=len(words) - 1, **ids,
            bos_token_id=None, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
        )
    )  # fmt: skip


def tokenizer() -> Any:
    """Word by word, <s> words </s>, padded to at most 32."""
    model = by_words(["<pad>", "<s>", "</s>", "<unk>", *WORDS])
    model.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        model_max_length=32, padding_side="right",
    )  # fmt: skip


def chat_tokenizer(kind: Any) -> Any:
    """The same over the words of the pipeline's own chat template."""
    constants = [value for value in kind.__init__.__code__.co_consts if isinstance(value, str)]
    template = next(value for value in constants if value.startswith("<|im_start|>"))
    spoken = re.sub(r"<\|\w+\|>|\{\}", " ", inspect.cleandoc(template)).lower()
    listed = sorted({*re.findall(r"\w+|[^\w\s]+", spoken), *WORDS})
    model = by_words([*CHAT, "<|video_pad|>", "<unk>", *listed])
    model.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*CHAT, "<|video_pad|>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token="<unk>",
        model_max_length=160, padding_side="right",
    )  # fmt: skip


def by_words(words: list[str]) -> Tokenizer:
    model = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return model
