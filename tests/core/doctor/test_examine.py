"""What is found out of a class: roles of tokens and the scale of time are tried, not assumed."""

from __future__ import annotations

import functools
from typing import Any

import attrs
import diffusers
import pytest
import torch

from uvr_core.doctor.draft import draft, load_draft
from uvr_core.doctor.examine import examine
from uvr_core.errors import ConformanceError
from uvr_core.testing import check_adapter
from uvr_core.testing.tiny import example_of, small_model

pytestmark = pytest.mark.usefixtures("one_thread")


class SourceFirst(diffusers.FluxTransformer2DModel):
    """FLUX whose blocks see the references before the output, and whose time is 0..1000."""

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor = None,
        pooled_projections: torch.Tensor = None, timestep: torch.Tensor = None, img_ids: torch.Tensor = None,
        txt_ids: torch.Tensor = None, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        output = int((img_ids[:, 0] == 0).sum())
        turned = torch.cat([hidden_states[:, output:], hidden_states[:, :output]], 1)
        result = super().forward(
            turned, encoder_hidden_states, pooled_projections, timestep / 1000,
            torch.cat([img_ids[output:], img_ids[:output]]), txt_ids, return_dict=False,
        )[0]  # fmt: skip
        return (torch.cat([result[:, -output:], result[:, :-output]], 1),)


def test_roles_and_time_are_found_out_and_not_assumed() -> None:
    small = small_model(SourceFirst)
    findings = examine(small)
    assert (findings.image_at, findings.output_first, findings.references) == ("end", False, True)
    assert findings.scale == 1000
    source = draft(attrs.evolve(findings, routes=("pooled_projections",)), small)
    assert "output_first=False," in source
    assert 'return arguments["timestep"] / 1000' in source
    check_adapter(load_draft(source), functools.partial(example_of, small))
    right = load_draft(source)
    for wrong in (attrs.evolve(right, output_first=True), attrs.evolve(right, time=lambda a: a["timestep"])):
        with pytest.raises(ConformanceError):
            check_adapter(wrong, functools.partial(example_of, small))
