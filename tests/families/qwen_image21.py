"""Qwen-Image 2.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch

from .family import Drawing, Family, Release, Size, assembled, count, last_patches, padded, picture, scheduler

WIDTH = 12
CONFIG = {
    "in_channels": 16, "out_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "context_in_dim": WIDTH, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
# Qwen/Qwen-Image-2.1, transformer/config.json, as far as known: the class's defaults
QWEN: dict[str, Any] = {}


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As QwenImage21Pipeline: sources stand after the first two words; a slot of `img_mask` is 2 x 2 patches."""
    sizes = [*references, (height, width)]
    slots = [False] * 2 + [True] * (count(*references) // 4) + [False] * 3 + [True] * (height * width // 4)
    return {
        "hidden_states": torch.randn(batch, count(*sizes), config.get("in_channels", 64)),
        "encoder_hidden_states": torch.randn(batch, 5 + count(*references) // 4, config.get("context_in_dim", 4096)),
        "timestep": torch.full((batch,), sigma),
        "img_shapes": [[(1, *size) for size in sizes]] * batch,
        "img_mask": torch.tensor(slots).expand(batch, -1),
    }


class Processor:
    """What the pipeline asks of a Qwen3VLProcessor when it is made."""

    def apply_chat_template(self, *args: Any, **options: Any) -> list[list[int]]:
        return [[0]]

    @property
    def tokenizer(self) -> Processor:
        return self

    def encode(self, text: str) -> list[int]:
        return [1]


def build(transformer: Any) -> Any:
    """The text encoder is replaced where its features leave it: text, then a source's slots and a word, then text."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLQwenImage21(
        base_dim=4, decoder_base_dim=4, z_dim=16, dim_mult=[1] * 5, num_res_blocks=1, latents_mean=[0.0] * 16,
        latents_std=[1.0] * 16,
    ).eval()  # fmt: skip
    parts = {"vae": vae, "processor": Processor(), "scheduler": scheduler(use_dynamic_shifting=True)}
    pipe = assembled("QwenImage21Pipeline", transformer=transformer, **parts)

    def encode(
        prompt: list[str], image: list[Any] | None, device: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        text, mask = padded(prompt, WIDTH)
        slots = [False, False]
        for source in image or []:
            slots += [True] * (source.width // 32 * (source.height // 32)) + [False]
        slots += [False] * (text.shape[1] - slots.count(False))
        places = torch.tensor(slots)
        embeds, valid = torch.zeros(len(prompt), len(slots), WIDTH), torch.ones(len(prompt), len(slots))
        embeds[:, ~places], valid[:, ~places] = text, mask.float()
        return embeds, valid.bool(), places.expand(len(prompt), -1)

    pipe._get_qwen_prompt_embeds = encode
    return pipe


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """A patch is 16 x 16 pixels, and sources become 64 x 64."""
    options = {"prompt": list(prompts), "height": 32, "width": 64, "output_resolution": 64}
    if negative is not None:
        options |= {"negative_prompt": [negative] * len(prompts), "true_cfg_scale": 3.0}
    if references:
        options["image"] = [picture(number, 64, 64) for number in range(references)]
    return options


def drawing(cached: bool) -> Drawing:
    def called(*args: Any) -> dict[str, Any]:
        return call(*args) | {"use_kv_cache": cached}

    return Drawing(
        "QwenImage21Pipeline",
        build,
        called,
        ("c", "u"),
        grid=(2, 4),
        references=(0, 2),
        note="" if cached else "uncached",
    )


FAMILIES = (
    Family(
        adapter="qwen-image-2.1", model="QwenImage21Transformer2DModel", since="0.41", config=CONFIG, inputs=inputs,
        references=True, reference_sizes=((2, 4), (2, 2)),
        patches=last_patches, sizes=((2, 4), (4, 2), (2, 6)), drawings=(drawing(True), drawing(False)),
        releases=(Release("Qwen/Qwen-Image-2.1 (the defaults of the class)", QWEN, taps=32, on_cpu=("img_mask",)),),
    ),
)  # fmt: skip
