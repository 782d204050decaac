"""An example: its output as patches, its arguments by name."""

from __future__ import annotations

import attrs
import torch
from tiny import example

from uvr_core.testing import patches


def test_patches_of_a_picture() -> None:
    picture = torch.arange(24.0).reshape(1, 1, 4, 6)
    cut = patches(picture, (2, 3))
    assert cut.shape == (1, 6, 4)
    assert cut[0, 4].tolist() == [14.0, 15.0, 20.0, 21.0]  # rows 2 and 3, columns 2 and 3
    assert torch.equal(patches(picture[:, :, None], (2, 3)), cut)
    assert torch.equal(patches(torch.arange(10.0).reshape(1, 10, 1), (2, 3))[0, :, 0], torch.arange(6.0))


def test_arguments_are_bound_by_name_and_references_only_where_they_are_taken() -> None:
    flux, sd3 = example("flux"), example("sd3")
    arguments = flux.arguments((2, 3), batch=2, sigma=0.25, references=flux.reference_sizes)
    assert arguments["hidden_states"].shape[:2] == (2, 2 * 3 + 3 * 2 + 2 * 2)
    assert sd3.reference_sizes == ()
    assert attrs.evolve(flux, reference_sizes=((2, 3),)).reference_sizes == ((2, 3),)
    bound = sd3.bound(sd3.arguments((2, 3), references=((3, 2),)))
    assert bound["self"] is sd3.model
    assert bound["hidden_states"].shape[-2:] == (4, 6)
    assert sd3.run(sd3.arguments((2, 3), batch=2), (2, 3)).shape[:2] == (2, 6)
