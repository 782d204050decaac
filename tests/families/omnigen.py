"""OmniGen, text to image and edits."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from uvr_zoo.text import tokenizer

from .family import Drawing, Family, Release, Size, assembled, picture, scheduler, vae

WORDS = 512
CONFIG = {
    "in_channels": 4, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32,
    "num_layers": 2, "pad_token_id": 0, "vocab_size": WORDS, "pos_embed_max_size": 16, "time_step_dim": 16,
    "rope_scaling": {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
}  # fmt: skip
# Shitao/OmniGen-v1-diffusers: the defaults of the class, but for the rotary factors of long texts, here all 1
OMNIGEN_V1 = {"rope_scaling": {"short_factor": [1.0] * 48, "long_factor": [1.0] * 48}}


def inputs(
    config: dict[str, Any], height: int, width: int, batch: int, sigma: float, references: tuple[Size, ...] = ()
) -> dict[str, Any]:
    """As OmniGenPipeline without references: a causal text, a time token, and the output, which sees all."""
    text, output = 5, height * width
    mask = torch.ones(text + 1 + output, text + 1 + output).tril()
    mask[text + 1 :] = 1
    return {
        "hidden_states": torch.randn(batch, config.get("in_channels", 4), 2 * height, 2 * width),
        "timestep": torch.full((batch,), 1 - sigma),
        "input_ids": torch.randint(4, 100, (batch, text)),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": mask.expand(batch, -1, -1),
        "position_ids": torch.arange(text + 1 + output).expand(batch, -1),
    }


def _transforms() -> Any:
    """The four transforms that the pipeline takes of torchvision, where that is not installed."""

    def compose(steps: Any) -> Any:
        def run(value: Any) -> Any:
            for step in steps:
                value = step(value)
            return value

        return run

    return SimpleNamespace(
        Compose=compose,
        Lambda=lambda step: step,
        ToTensor=lambda: lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255,
        Normalize=lambda mean, std, inplace: lambda value: (value - 0.5) / 0.5,
    )


def build(transformer: Any) -> Any:
    from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen

    if not hasattr(processor_omnigen, "transforms"):
        processor_omnigen.transforms = _transforms()
        pipeline_omnigen.OmniGenMultiModalProcessor = processor_omnigen.OmniGenMultiModalProcessor
    steps = scheduler(invert_sigmas=True, num_train_timesteps=1)
    pipe = assembled("OmniGenPipeline", transformer=transformer, vae=vae(4), scheduler=steps, tokenizer=tokenizer())

    class Negative(processor_omnigen.OmniGenMultiModalProcessor):  # type: ignore[misc]
        """The pipeline's call takes no negative prompt: it is an argument of its processor."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, negative_prompt=self.negative, **kwargs)

    pipe.multimodal_processor.__class__ = Negative
    return pipe


def call(pipe: Any, prompts: Sequence[str], negative: str | None, references: int) -> dict[str, Any]:
    """32 x 48 pixels, 16 of them a patch; the references stand between the words."""
    pipe.multimodal_processor.negative = negative
    torch.manual_seed(0)  # the pipeline draws the references' latents without a generator
    options: dict[str, Any] = {"prompt": list(prompts), "height": 32, "width": 48}
    if references:
        tags = [f"<img><|image_{number + 1}|></img>" for number in range(references)]
        options["prompt"] = [f"{tags[0]} {prompt} {' '.join(tags[1:])}" for prompt in prompts]
        sources = [picture(0, 32, 32), picture(1, 16, 48)][:references]
        options["input_images"] = [sources] * len(prompts)
    return options


def without_angles(transformer: Any) -> None:
    """Rotary angles depend on whether the text is long, a value, which meta tensors have not."""
    transformer.rope.forward = lambda states, ids: (torch.empty(states.shape[1], 96, device="meta"),) * 2


FAMILIES = (
    Family(
        adapter="omnigen", model="OmniGenTransformer2DModel", config=CONFIG, inputs=inputs,
        drawings=(
            Drawing("OmniGenPipeline", build, call, ("cu",), unguided=False),
            Drawing("OmniGenPipeline", build, call, ("cui",), references=(1, 2), unguided=False),
        ),
        releases=(
            Release(
                "Shitao/OmniGen-v1-diffusers (the defaults of the class)", OMNIGEN_V1, taps=32, prepare=without_angles
            ),
        ),
    ),
)  # fmt: skip
