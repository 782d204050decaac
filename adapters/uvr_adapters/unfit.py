"""Transformer classes of diffusers without an adapter, and what in each does not fit: `attach` refuses them by name."""

from __future__ import annotations

from collections.abc import Mapping

CROSS = (
    "its self-attention sees the picture alone, and text comes in by cross-attention; UVR works where text and picture "
    "attend to each other in one call"
)
FRAMES = f"it draws videos: {CROSS}"
JOINT_FRAMES = (
    "it draws videos, and a Layout holds the patches of one picture; docs/examples/uvr-example-adapter has an adapter "
    "for HunyuanVideo where it draws one frame"
)
SOUND = "it draws sound"

UNFIT: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("CosmosTransformer3DModel", "DreamLiteTransformer2DModel", "HunyuanDiT2DModel"),
            *("Kandinsky5Transformer3DModel", "LuminaNextDiT2DModel", "PixArtTransformer2DModel"),
            *("Transformer2DModel", "UNet2DConditionModel"),
        ),
        CROSS,
    ),
    "SanaTransformer2DModel": f"its self-attention is linear and makes no weights; {CROSS}",
    "DiTTransformer2DModel": "it draws classes and reads no text",
    "PriorTransformer": "it makes an embedding of a picture and draws none",
    **dict.fromkeys(
        (
            *("AllegroTransformer3DModel", "AnyFlowFARTransformer3DModel", "AnyFlowTransformer3DModel"),
            *("ChronoEditTransformer3DModel", "HeliosTransformer3DModel", "Kandinsky6Transformer3DModel"),
            *("LTX2VideoTransformer3DModel", "LTXVideoTransformer3DModel", "LatteTransformer3DModel"),
            *("SanaVideoTransformer3DModel", "SanaWMLTX2RefinerTransformer3DModel", "SanaWMTransformer3DModel"),
            *("SkyReelsV2Transformer3DModel", "WanAnimate2Transformer3DModel", "WanAnimateTransformer3DModel"),
            *("WanTransformer3DModel", "WanVACETransformer3DModel"),
        ),
        FRAMES,
    ),
    "Kandinsky6SRTransformer3DModel": "it makes videos larger and reads no text",
    "TransformerTemporalModel": "it is a part of video models and reads no text",
    **dict.fromkeys(
        (
            *("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel", "EasyAnimateTransformer3DModel"),
            *("HunyuanVideo15Transformer3DModel", "HunyuanVideoFramepackTransformer3DModel"),
            *("HunyuanVideoTransformer3DModel", "MochiTransformer3DModel", "MotifVideoTransformer3DModel"),
        ),
        JOINT_FRAMES,
    ),
    "Cosmos3OmniTransformer": "text, pictures, sound and actions of one request are packed without a batch axis, "
    "and every layer attends a second time, causally, over the text alone",
    "MiniMaxH3Transformer3DModel": "it draws videos with sound; frames, sound and text of one request are packed "
    "into one sequence, in an order of the caller's",
    **dict.fromkeys(
        (
            *("AceStepTransformer1DModel", "LongCatAudioDiTTransformer", "MiniMaxMusic3RVQDepthDecoder"),
            *("MiniMaxMusic3Transformer1DModel", "StableAudio3DiTModel", "StableAudioDiTModel", "T5FilmDecoder"),
        ),
        SOUND,
    ),
    "RFD4ProteinaTransformer": "it draws proteins",
}
