"""Edits are written where they belong, and count where they changed something."""

from __future__ import annotations

import numpy as np
import torch
from runner import Runner

import uvr_core
from uvr_core.protocols import FlowEdit, MaskOptions, Reweight, row_classes
from uvr_plugins.detectors import Oracle
from uvr_plugins.policies import Uvr


def one_masked() -> np.ndarray:
    """Masks of three samples, the first and last empty."""
    mask = np.zeros((3, 8, 8), bool)
    mask[1, 2:5, 3:6] = True
    return mask


def test_noise_leaves_the_global_and_the_pipelines_generators_alone(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    torch.manual_seed(5)
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy=Uvr(alpha=0.5)):
        first = runner.run()
        second = runner.run()
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert np.array_equal(first, second)


def test_rows_outside_the_mask_are_bitwise_stock_inside_the_attention(
    runner: Runner, bank: uvr_core.ConceptBank
) -> None:
    """The edit as the model sees it: the first edited block's output differs at the masked rows and nowhere else."""
    seen: dict[str, torch.Tensor] = {}
    block = runner.pipe.transformer.single_transformer_blocks[0].attn
    handle = block.register_forward_hook(lambda m, a, out: seen.__setitem__("out", out.clone()))
    runner.run(num_inference_steps=1)
    stock = seen["out"]
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy="block"):
        runner.run(num_inference_steps=1)
    handle.remove()
    different = (seen["out"] != stock).any(-1)  # (B, text + patches)
    core = torch.zeros(3, 8, 8, dtype=torch.bool)
    core[1, 1:6, 2:7] = True  # with its ring
    assert torch.equal(different[:, -64:], core.reshape(3, 64))
    assert not different[:, :-64].any()


def test_steps_in_which_nothing_changed_are_not_counted(runner: Runner, bank: uvr_core.ConceptBank) -> None:
    class Late:
        """Acts below a noise level; before, its edit is neutral."""

        name, masks = "late", MaskOptions(ring=0)

        def edit(self, located, call):  # type: ignore[no-untyped-def]
            factor = 0.0 if located.sigma < 0.7 else 1.0
            rows = row_classes(located)
            return FlowEdit(rows, Reweight(text_factor=torch.full((len(rows), call.text), factor)))

    stock = runner.run()
    with uvr_core.attach(runner.pipe, concepts=bank, detector=Oracle(one_masked()), policy=Late()) as reg:
        images = runner.run()
        sigmas = [float(t) / 1000 for t in runner.pipe.scheduler.timesteps]
        assert [f.steps_regulated for f in reg.report.findings] == [0, sum(s < 0.7 for s in sigmas), 0]
        assert 0 < reg.report.findings[1].steps_regulated < 3
    assert np.array_equal(images[[0, 2]], stock[[0, 2]])
