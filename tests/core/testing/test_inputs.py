"""Made-up arguments: by the names of a class, and the scale of its time."""

from __future__ import annotations

import attrs
import diffusers
import pytest
import torch

from uvr_core.testing.inputs import time_scale
from uvr_core.testing.tiny import model_class, small_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("name", "scale"),
    [("SD3Transformer2DModel", 1), ("FluxTransformer2DModel", 1000), ("QwenImageTransformer2DModel", 1000),
     ("CogView4Transformer2DModel", 1), ("AuraFlowTransformer2DModel", 1000)],
)  # fmt: skip
def test_the_scale_of_time(name: str, scale: float) -> None:
    assert time_scale(small_model(model_class(name))) == pytest.approx(scale, rel=0.01)


def test_references_lie_behind_the_output_with_numbers_of_their_own() -> None:
    inputs = small_model(model_class("FluxTransformer2DModel"))
    assert (inputs.kind, inputs.time, inputs.scale) == ("ids", "timestep", 1.0)
    arguments = inputs(2, 3, batch=2, sigma=0.25, references=((3, 2),))
    assert arguments["hidden_states"].shape == (2, 12, inputs.config["in_channels"])
    assert arguments["img_ids"][:, 0].tolist() == [0.0] * 6 + [1.0] * 6
    assert arguments["img_ids"][[0, 5, 11], 1:3].tolist() == [[0, 0], [1, 2], [2, 1]]  # rows, columns
    assert arguments["timestep"].tolist() == [0.25, 0.25]


def test_prompts_of_unequal_length_are_padded_and_told() -> None:
    inputs = small_model(model_class("QwenImageTransformer2DModel"))
    assert inputs.ragged
    assert not small_model(model_class("SD3Transformer2DModel")).ragged  # nothing would tell it
    arguments = inputs(2, 3, batch=2, text=(3, 5))
    assert arguments["encoder_hidden_states"].shape[:2] == (2, 5)
    assert arguments["encoder_hidden_states"].any(-1).sum(1).tolist() == [3, 5]
    assert arguments["encoder_hidden_states_mask"].sum(1).tolist() == [3, 5]


def test_time_turned_round_and_in_thousandths() -> None:
    inputs = small_model(model_class("SD3Transformer2DModel"))
    assert inputs.kind == "picture"
    assert inputs(2, 3, sigma=0.25)["timestep"].tolist() == [250.0]
    assert attrs.evolve(inputs, clean=True, scale=1.0)(2, 3, sigma=0.25)["timestep"].tolist() == [0.75]
    more = attrs.evolve(inputs, text=9)(2, 3)
    assert more["encoder_hidden_states"].shape[1] == 9
    assert more["hidden_states"].shape[-2:] == torch.Size([2 * inputs.patch, 3 * inputs.patch])


@pytest.mark.parametrize(
    ("name", "argument", "shape"),
    [
        ("PRXTransformer2DModel", "attention_mask", (2, 5)),  # optional, and passed by the pipeline
        ("Flux2Transformer2DModel", "img_ids", (2, 6, 4)),  # per sample
        ("FluxTransformer2DModel", "img_ids", (6, 3)),
    ],
)
def test_arguments_are_shaped_as_the_pipeline_shapes_them(name: str, argument: str, shape: tuple[int, ...]) -> None:
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    assert small_model(model_class(name))(2, 3, batch=2)[argument].shape == shape


@pytest.mark.parametrize(
    ("name", "shapes"),
    [("QwenImageTransformer2DModel", [[(1, 2, 3)]] * 2), ("NucleusMoEImageTransformer2DModel", [(1, 2, 3)] * 2)],
)
def test_sizes_come_in_a_list_per_sample_or_one_per_sample(name: str, shapes: object) -> None:
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    assert small_model(model_class(name))(2, 3, batch=2)["img_shapes"] == shapes
