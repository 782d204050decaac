"""Images that are withheld: at once, in every kind of result, and what the report then says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import (
    PIPELINES,
    PROMPTS,
    STEPS,
    Switch,
    Tiny,
    masks_of,
)

import uvr_core
from uvr_core.concepts import ConceptBank

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("name", PIPELINES)
def test_refuse_stops_at_once_and_leaves_the_regulator_ready(
    tiny: Callable[[str], Tiny], name: str, guided: bool
) -> None:
    model, forwards = tiny(name), []
    switch = Switch(masks_of(1, 1, 1))
    handle = model.pipe.transformer.register_forward_pre_hook(lambda m, a: forwards.append(1))
    stock = model.stock((0, 1, 2), guided)
    forwards.clear()
    try:
        with uvr_core.attach(model.pipe, concepts=model.bank(), detector=switch, policy="refuse") as reg:
            for _ in range(2):
                with pytest.raises(uvr_core.UnsafeContent, match=r"'x' .*images 0, 1, 2 .*step 0") as caught:
                    model.run(guided=guided)
                assert (caught.value.concept, caught.value.samples, caught.value.step) == ("x", (0, 1, 2), 0)
                assert reg.report.posture == "refused"
                assert reg.report.refused == (0, 1, 2)
            assert len(forwards) == 2, "one forward each, broken off inside"
            switch.masks = np.zeros((3, 8, 8), bool)
            assert np.array_equal(model.run(guided=guided), stock)
            assert reg.report.posture == "regulate"
    finally:
        handle.remove()


class Later(Switch):
    """The same, whose second image shows nothing before the third step."""

    def scores(self, features: torch.Tensor, sigma: float, bank: ConceptBank, probe: str) -> torch.Tensor:
        scores = super().scores(features, sigma, bank, probe)
        if sigma > 0.7:
            scores[1:2] = -1
        return scores


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_refused_images_are_replaced_in_every_kind_of_result(tiny: Callable[[str], Tiny], name: str) -> None:
    """Two refused by one concept, at two steps; PIL, tensor and tuple results; a picture of the user's own."""
    from uvr_plugins.policies import Refuse

    model, own = tiny(name), Image.new("RGB", (64, 64), "white")
    options: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": STEPS, "guidance_scale": 1.0}

    def run(**more: Any) -> Any:
        generator = [torch.Generator().manual_seed(40 + i) for i in range(3)]
        return model.pipe(prompt=list(PROMPTS), generator=generator, **options, **more)

    stock = run().images
    with uvr_core.attach(
        model.pipe, concepts=model.bank(), detector=Later(masks_of(1, 1, 0)), policy=Refuse(instead=own)
    ) as reg:
        images = run().images
        assert images[0] is own
        assert images[1] is own
        assert np.array_equal(np.asarray(images[2]), np.asarray(stock[2]))
        assert reg.report.refused == (0, 1)
        first, second = (f for f in reg.report.findings if f.refused)
        assert first.first_step < second.first_step
        assert "image 1 x: located" in str(reg.report)
        assert str(reg.report).count("the image was kept back") == 2
        assert [f["refused"] for f in reg.report.to_dict()["findings"]] == [True, True, False]
        (tuple_images,) = run(return_dict=False)
        assert tuple_images[:2] == [own, own]
        tensors = run(output_type="pt").images
        assert tensors[0] is own
        assert isinstance(tensors[2], torch.Tensor)


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_what_is_located_after_the_steps_of_refusal_is_regulated(tiny: Callable[[str], Tiny], name: str) -> None:
    """Image 0 is located in the first step and refused, image 1 in the second and regulated as `then` says."""
    from uvr_plugins.policies import Block, Refuse

    model, masks = tiny(name), masks_of(1, 1, 0)
    stock = model.stock((0, 1, 2), False)
    with uvr_core.attach(model.pipe, concepts=model.bank(), detector=Later(masks), policy=Block()):
        blocked = model.run()
    with uvr_core.attach(
        model.pipe, concepts=model.bank(), detector=Later(masks), policy=Refuse(steps=1, then=Block())
    ) as reg:
        images = model.run()
        assert reg.report.refused == (0,)
    assert images[0] is None
    assert np.array_equal(images[1], blocked[1])
    assert not np.array_equal(images[1], stock[1])
    assert np.array_equal(images[2], stock[2])


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", ["flux"])
def test_a_bare_transformer_cannot_keep_an_image_back(tiny: Callable[[str], Tiny], name: str) -> None:
    model = tiny(name)
    with (
        model.attach(masks_of(0, 1, 2), "refuse", to=model.pipe.transformer),
        pytest.raises(uvr_core.UnsafeContent, match="image 1 "),
    ):
        model.run()


@pytest.mark.usefixtures("still_stock")
@pytest.mark.parametrize("name", ["flux"])
def test_a_call_that_broke_off_leaves_no_report(tiny: Callable[[str], Tiny], name: str) -> None:
    model = tiny(name)
    with model.attach(masks_of(0, 1, 2), "observe") as reg:
        model.run()
        assert reg.report is not None
        with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
            model.pipe(prompt=list(PROMPTS), callback_on_step_end_tensor_inputs=["nothing"])
        assert reg.report is None
