"""collect: what a bank holds, by hand from the calls as the model makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from driven import spied
from fitting import BENIGN, OPTIONS, UNSAFE, drawn_masks
from PIL import Image
from runner import PROBE, Runner
from tiny import tiny_zoo

import uvr_core
from uvr_core import UVRError, collect, load_concepts
from uvr_core.engine.readings import features
from uvr_core.intercept.calls import JointCall
from uvr_core.ops.masks import ring_of
from uvr_plugins.detectors import Contrast


def test_a_collected_bank_fits_the_model_and_says_where_it_came_from(bank: uvr_core.ConceptBank, tmp_path: Any) -> None:
    assert bank.name == "weapon"
    assert bank.fingerprint == uvr_core.Fingerprint("FluxTransformer2DModel", 4, 2, 16)
    assert bank.probes == ("single_transformer_blocks.0.attn", "single_transformer_blocks.1.attn")
    assert len(bank.tensors["sigma"]) == 2
    assert bank.tensors["sigma"][0] == 1
    for probe in bank.probes:
        assert bank.tensor("direction", probe).shape == (2, 32)
        assert bank.tensor("offset", probe).shape == (2,)
        assert bank.tensor("anchors", probe).shape == (int(drawn_masks(4).sum()), 32)
        assert bank.tensor("token", probe).shape == (2, 32)
    assert bank.calibration is None
    assert bank.provenance["images_with_concept"] == 4
    assert bank.provenance["benign_prompts"] == 3
    assert bank.provenance["generate"] == OPTIONS
    back = load_concepts(bank.save(tmp_path / "x.safetensors"))
    assert all(torch.equal(back.tensors[k], v) for k, v in bank.tensors.items())
    assert back.provenance == bank.provenance


def test_masks_from_a_callable_equal_masks_from_an_array(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    done = [0]

    def masks(images: Any, grid: tuple[int, int]) -> np.ndarray:
        assert grid == (8, 8)
        start, done[0] = done[0], done[0] + len(images)
        return drawn_masks(4)[start : done[0]]

    other = collect(
        pipe, "weapon", prompts=UNSAFE, masks=masks, benign_prompts=BENIGN[:3], batch_size=3, generate=OPTIONS
    )
    assert other.tensors.keys() == bank.tensors.keys()
    assert all(torch.equal(other.tensors[k], v) for k, v in bank.tensors.items())


def test_benign_prompts_change_the_direction_and_not_the_anchors(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    without = collect(pipe, "weapon", prompts=UNSAFE, masks=drawn_masks(4), batch_size=3, generate=OPTIONS)
    probe = bank.probes[0]
    assert torch.equal(without.tensor("anchors", probe), bank.tensor("anchors", probe))
    assert not torch.allclose(without.tensor("direction", probe), bank.tensor("direction", probe), rtol=1e-3)


def test_anchors_are_the_attention_outputs_under_the_mask(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    seen: list[torch.Tensor] = []
    probe = bank.probes[1]
    with uvr_core.attach(pipe) as reg, reg.recording(lambda call: seen.append(features(call)), [probe]):
        for start, prompts in ((0, UNSAFE[:3]), (3, UNSAFE[3:])):
            generators = [torch.Generator().manual_seed(start + i) for i in range(len(prompts))]
            pipe(prompts, generator=generators, **OPTIONS)
    last = torch.cat([seen[1], seen[3]])  # the last of two steps, both batches
    expected = last[torch.from_numpy(drawn_masks(4).reshape(4, 64))]
    np.testing.assert_allclose(bank.tensor("anchors", probe), expected, atol=2e-3)  # they pass through float16


def test_tokens_are_the_attention_outputs_at_the_text_that_feeds_the_region(
    pipe: Any, bank: uvr_core.ConceptBank
) -> None:
    """By hand, with the attention matrix, from the calls as the model makes them."""
    with uvr_core.attach(pipe) as reg:
        calls = spied(reg)
        for start, prompts in ((0, UNSAFE[:3]), (3, UNSAFE[3:])):
            generators = [torch.Generator().manual_seed(start + i) for i in range(len(prompts))]
            pipe(prompts, generator=generators, **OPTIONS)
    for probe in bank.probes:
        own = [call for call, _ in calls if call.path == probe]  # 2 batches x 2 steps
        for step in range(2):
            means = []
            for batch, start in ((0, 0), (1, 3)):
                call = own[2 * batch + step]
                weight = (call.query.double() @ call.key.double().mT * 16**-0.5).softmax(-1).mean(1)
                for sample in range(len(call.query)):
                    mask = drawn_masks(4)[start + sample]
                    outside = ~(mask | ring_of(mask))
                    text = weight[sample, -64:, :-64]
                    contrast = text[mask.reshape(-1)].mean(0) / text[outside.reshape(-1)].mean(0)
                    chosen = contrast > 2.5
                    chosen[contrast.argmax()] = True
                    means.append(call.output[sample, :, :-64].transpose(0, 1).flatten(1)[chosen].mean(0))
            assert len(means) == 4
            np.testing.assert_allclose(bank.tensor("token", probe)[step], torch.stack(means).mean(0), atol=1e-5)


def test_an_image_without_the_concept_is_left_out(pipe: Any, bank: uvr_core.ConceptBank) -> None:
    masks = drawn_masks(4)
    masks[1:] = False
    one = collect(pipe, "weapon", prompts=UNSAFE, masks=masks, batch_size=3, generate=OPTIONS, max_anchors=4)
    probe = bank.probes[0]
    assert one.provenance["images_with_concept"] == 1
    anchors = one.tensor("anchors", probe)
    assert anchors.shape == (4, 32)  # thinned out from six
    assert all((bank.tensor("anchors", probe)[:6] == row).all(1).any() for row in anchors)


def test_what_cannot_be_collected_is_refused(pipe: Any) -> None:
    empty = np.zeros((1, 8, 8), bool)
    with pytest.raises(UVRError, match="collect 'weapon': none of the 1 generated images shows the concept"):
        collect(pipe, "weapon", prompts=UNSAFE[:1], masks=empty, generate=OPTIONS)
    with pytest.raises(UVRError, match="prompts: no prompts given"):
        collect(pipe, "weapon", prompts=["", " "], masks=empty, generate=OPTIONS)
    assert not hasattr(type(pipe.transformer.transformer_blocks[0].attn.processor), "_uvr_taps"), "still attached"


def test_collecting_leaves_the_pipeline_as_it_was() -> None:
    runner = Runner()
    stock = runner.run()
    collect(runner.pipe, "x", prompts=UNSAFE[:1], masks=drawn_masks(1), generate=OPTIONS)
    assert np.array_equal(runner.run(), stock)


EDITING: dict[str, Any] = {
    "height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 1.0, "max_area": 64 * 64,
    "_auto_resize": False,
}  # fmt: skip


def test_collect_on_an_editing_pipeline_learns_the_origin(tmp_path: Path) -> None:
    """The mask source is asked about the sources as well: here red sources show the concept."""
    pipe = tiny_zoo("flux-kontext")
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    sources, marked = [red, blue] * 8, np.zeros((8, 8), bool)
    marked[2:4, 2:4] = True

    def masks(images: Any, grid: tuple[int, int]) -> np.ndarray:
        shows = [image not in (red, blue) or image == red for image in images]
        return np.stack([marked & show for show in shows])

    bank = uvr_core.collect(
        pipe, "x", prompts=["add a cat on the left"] * 16, sources=sources, masks=masks, batch_size=8, generate=EDITING,
        probes=(PROBE,),
    )  # fmt: skip
    assert bank.tensor("direction", PROBE).shape == (2, 2 * bank.width)
    assert bank.tensor("anchors", PROBE).shape[1] == bank.width
    assert bank.tensor("origin", PROBE).shape == (2, 2 * bank.width)
    loaded = load_concepts(bank.save(tmp_path / "x.safetensors"))
    found: list[torch.Tensor] = []

    def read(call: JointCall) -> None:
        if call.forward.step == 0:
            tokens = features(call)
            core = torch.from_numpy(marked.reshape(1, -1)).expand(len(tokens), -1)
            told = Contrast().origin(tokens, core, call.forward.sigma, loaded, PROBE)
            assert told is not None
            found.append(told)

    with uvr_core.attach(pipe) as reg, reg.recording(read, (PROBE,)):
        pipe(
            prompt=["add a cat on the left"] * 2, image=[red, blue], **EDITING,
            generator=[torch.Generator().manual_seed(seed) for seed in (70, 71)],
        )  # fmt: skip
    assert found[0][0] > 0 > found[0][1]
