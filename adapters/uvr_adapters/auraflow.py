"""AuraFlow: all that UVR knows about it.

Joint order: register tokens, text, output. The registers are the model's own and count as text: they carry what they
have read of it. Double-stream blocks first, then single-stream blocks. The model takes latents (B, C, H, W), which it
cuts into patches itself, and sigma = t / 1000. Guidance runs in one batch, [unconditional, conditional].
"""

from __future__ import annotations

from uvr_core.adapter import Adapter, Arguments

from .arguments import of_latents, sigma


def text(arguments: Arguments) -> int:
    return arguments["encoder_hidden_states"].shape[1] + arguments["self"].register_tokens.shape[1]


AURAFLOW = Adapter(
    name="auraflow",
    model="AuraFlowTransformer2DModel",
    attention=("joint_transformer_blocks.*.attn", "single_transformer_blocks.*.attn"),
    layout=of_latents,
    time=sigma,
    text=text,
    image_at="end",
    guidance="batched:uc",
    pipelines=("AuraFlowPipeline",),
)
