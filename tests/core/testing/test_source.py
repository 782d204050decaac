"""What the source text of pipelines says."""

from __future__ import annotations

import diffusers
import pytest

from uvr_core.testing.source import by_hand, pipelines_of, reads_text_aside


@pytest.mark.parametrize(
    ("name", "guidance", "clean"),
    [("SD3Transformer2DModel", "batched:uc", False), ("FluxTransformer2DModel", "two_pass", False),
     ("QwenImageTransformer2DModel", "two_pass", False), ("ErnieImageTransformer2DModel", "batched:uc", False),
     ("ChromaTransformer2DModel", "two_pass", False), ("Lumina2Transformer2DModel", "two_pass", True),
     ("ZImageTransformer2DModel", "two_pass", True), ("NoSuchModel", "", False)],
)  # fmt: skip
def test_what_pipelines_say(name: str, guidance: str, clean: bool) -> None:
    if name != "NoSuchModel" and not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    pipelines = pipelines_of(name)
    assert pipelines.clean == clean
    if name != "ZImageTransformer2DModel":  # its halves are lists: not read
        assert pipelines.guidance == guidance


def test_the_plain_pipeline_comes_first() -> None:
    names = pipelines_of("FluxTransformer2DModel").names
    assert names[0] == "FluxPipeline"
    assert "FluxKontextPipeline" in names
    assert not any("ControlNet" in name for name in names)


@pytest.mark.parametrize(
    ("name", "aside"),
    [("PixArtTransformer2DModel", True), ("SanaTransformer2DModel", True), ("HunyuanDiT2DModel", True),
     ("SD3Transformer2DModel", False), ("FluxTransformer2DModel", False), ("QwenImageTransformer2DModel", False),
     ("PRXTransformer2DModel", False), ("Lumina2Transformer2DModel", False), ("ZImageTransformer2DModel", False),
     ("OmniGenTransformer2DModel", False), ("BriaFibo2Transformer2DModel", False)],
)  # fmt: skip
def test_a_class_that_reads_its_text_in_a_cross_attention_is_told(name: str, aside: bool) -> None:
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    assert reads_text_aside(getattr(diffusers, name)) is aside
    assert ("an adapter would not help" in by_hand(getattr(diffusers, name))) is aside
