"""A draft: every built-in family is drafted anew, others are drafted so that they pass, doubts are marked."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from commands import ran
from tiny import example

from uvr_core import plugins
from uvr_core.doctor.draft import adapter_name, load_draft
from uvr_core.errors import ConformanceError, UVRError
from uvr_core.testing import Example, check_adapter

pytestmark = pytest.mark.usefixtures("one_thread")

BUILT_IN = {
    "sd3": "SD3Transformer2DModel",
    "flux": "FluxTransformer2DModel",
    "qwen-image": "QwenImageTransformer2DModel",
}


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """No adapter is installed."""
    without = plugins.discover(frozenset({"builtin-plugins"}))
    monkeypatch.setattr(plugins, "registry", lambda: without)
    assert without.names("adapter") == {}


def edited(source: str, edits: tuple[tuple[str, str], ...]) -> str:
    """The draft after at most three edits by hand, each of which must apply."""
    assert len(edits) <= 3
    for old, new in edits:
        assert source.count(old) == 1, f"{old!r} in\n{source}"
        source = source.replace(old, new)
    assert "TODO" not in source
    return source


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_hidden_built_in_is_drafted_anew(name: str, hidden: None) -> None:
    """The draft of a family whose adapter is hidden, held against the real pipeline, and against that adapter."""
    source = ran("doctor", BUILT_IN[name], code=1).stdout
    edits: tuple[tuple[str, str], ...] = ()  # none are needed
    drafted = load_draft(edited(source, edits))
    check_adapter(drafted, functools.partial(example, name))

    module = {"sd3": "sd3:SD3", "flux": "flux:FLUX", "qwen-image": "qwen_image:QWEN_IMAGE"}[name]
    path, _, attribute = f"uvr_adapters.{module}".partition(":")
    ours = getattr(__import__(path, fromlist=[attribute]), attribute)
    for field in ("name", "model", "attention", "image_at", "output_first", "text_output", "guidance"):
        assert getattr(drafted, field) == getattr(ours, field), field
    assert [route.arguments for route in drafted.routes] == [route.arguments for route in ours.routes]
    assert {pipe for pipe in ours.pipelines if "ControlNet" not in pipe} <= set(drafted.pipelines)


def aura_flow() -> Example:
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=16, num_mmdit_layers=2, num_single_dit_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pos_embed_max_size=256,
    ).eval()  # fmt: skip

    def inputs(height: int, width: int, batch: int, sigma: float) -> dict[str, Any]:
        return {
            "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),
            "encoder_hidden_states": torch.randn(batch, 7, 12),
            "timestep": torch.full((batch,), sigma),
        }

    return Example(model, inputs, guidance="batched:uc")


def lumina2() -> Example:
    model = diffusers.Lumina2Transformer2DModel(
        sample_size=16, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 4, 4), axes_lens=(32, 32, 32), cap_feat_dim=10,
    ).eval()  # fmt: skip

    def inputs(height: int, width: int, batch: int, sigma: float) -> dict[str, Any]:
        return {
            "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),
            "encoder_hidden_states": torch.randn(batch, 7, 10),
            "encoder_attention_mask": torch.ones(batch, 7, dtype=torch.bool),
            "timestep": torch.full((batch,), 1 - sigma),  # as Lumina2Pipeline has it: 1 - t / 1000
        }

    return Example(model, inputs, guidance="two_pass")


def prx() -> Example:
    model = diffusers.PRXTransformer2DModel(
        in_channels=4, context_in_dim=10, hidden_size=16, num_heads=2, depth=2, axes_dim=[4, 4]
    ).eval()

    def inputs(height: int, width: int, batch: int, sigma: float) -> dict[str, Any]:
        return {
            "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),
            "encoder_hidden_states": torch.randn(batch, 7, 10),
            "timestep": torch.full((batch,), sigma),
        }

    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter)  # gates that begin at 0 hide the blocks
    return Example(model, inputs, guidance="batched:uc")


def cog_view4() -> Example:
    model = diffusers.CogView4Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, text_embed_dim=10,
        time_embed_dim=12, condition_dim=8, sample_size=16,
    ).eval()  # fmt: skip

    def inputs(height: int, width: int, batch: int, sigma: float) -> dict[str, Any]:
        size = torch.tensor([[16.0 * height, 16.0 * width]]).expand(batch, 2)
        return {
            "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),
            "encoder_hidden_states": torch.randn(batch, 7, 10),
            "timestep": torch.full((batch,), 1000 * sigma),
            "original_size": size, "target_size": size, "crop_coords": torch.zeros(batch, 2),
        }  # fmt: skip

    return Example(model, inputs, guidance="two_pass")


# class -> an example made by hand, and the edits by hand that its draft needs
FOREIGN: dict[str, tuple[Callable[[], Example], tuple[tuple[str, str], ...]]] = {
    "AuraFlowTransformer2DModel": (aura_flow, ()),
    "CogView4Transformer2DModel": (cog_view4, ()),
    "PRXTransformer2DModel": (prx, ()),
    "Lumina2Transformer2DModel": (
        lumina2,
        (
            ("  # TODO Lumina2Pipeline seems to turn time round (1 = clean): is it 0..1?", ""),
            (
                "  # TODO prompts of unequal length move the picture elsewhere in each sample: give Layout an order",
                "",
            ),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_class_without_an_adapter_is_drafted(name: str, hidden: None) -> None:
    make, edits = FOREIGN[name]
    result = ran("doctor", name, code=1)
    assert f"no adapter recognises {name}: this is a draft" in result.stderr
    assert f"{len(edits)} TODO" in result.stderr if edits else "draft (guidance not verified)" in result.stderr
    assert max(map(len, edited(result.stdout, edits).splitlines())) <= 120
    ragged = {"ragged": "what the doubt about its layout is about"} if name == "Lumina2Transformer2DModel" else None
    check_adapter(load_draft(edited(result.stdout, edits)), make, expected_failures=ragged)


class OtherSD3Transformer2DModel(diffusers.SD3Transformer2DModel):
    """A class that no pipeline drives."""


def test_what_no_pipeline_says_is_marked_and_matters(hidden: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers, OtherSD3Transformer2DModel.__name__, OtherSD3Transformer2DModel, raising=False)
    source = ran("doctor", "OtherSD3Transformer2DModel", code=1).stdout

    def renamed() -> Example:
        sample = example("sd3")
        sample.model.__class__ = OtherSD3Transformer2DModel
        return sample

    with pytest.raises(ConformanceError) as caught:
        check_adapter(load_draft(source), renamed)
    assert [outcome.name for outcome in caught.value.report.failures] == ["guidance"]  # type: ignore[attr-defined]
    doubt = "  # TODO no pipeline of diffusers drives this class: say how guidance branches reach the model"
    edits = ((f'guidance="two_pass",{doubt}', 'guidance="batched:uc",'),)
    check_adapter(load_draft(edited(source, edits)), renamed)


def test_a_draft_as_json(tmp_path: Path, hidden: None) -> None:
    """From a checkpoint's configuration; its weights are not there."""
    config = {"_class_name": "AuraFlowTransformer2DModel", "num_mmdit_layers": 1, "num_single_dit_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    data = json.loads(ran("doctor", tmp_path, "--json", code=1).stdout)
    assert data["adapter"] is None
    assert data["findings"]["attention"] == ["joint_transformer_blocks.*.attn", "single_transformer_blocks.*.attn"]
    assert data["findings"]["unsure"] == {}
    assert load_draft(data["draft"]).model == "AuraFlowTransformer2DModel"
    assert {check["status"] for check in data["checks"]} == {"passed", "skipped"}


def test_a_source_without_an_adapter_is_refused() -> None:
    with pytest.raises(UVRError, match="holds no Adapter"):
        load_draft("x = 1")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("QwenImageTransformer2DModel", "qwen-image"),
        ("SD3Transformer2DModel", "sd3"),
        ("AuraFlowTransformer2DModel", "auraflow"),
        ("ZImageModel", "z-image"),
    ],
)
def test_a_name_for_the_adapter_of_a_class(model: str, name: str) -> None:
    assert adapter_name(model) == name
