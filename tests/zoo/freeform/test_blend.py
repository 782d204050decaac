"""Task arithmetic over what ships: the ends, the middle, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch

from uvr_core import UVRError
from uvr_zoo import storage
from uvr_zoo.freeform import blend
from uvr_zoo.freeform.pipelines import FOLDER, pipeline
from uvr_zoo.pipelines import DATA

KIND = diffusers.FluxTransformer2DModel


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(storage.load(KIND, folder / "transformer").state_dict())


def test_a_share_of_what_the_sibling_learned_is_added() -> None:
    first, sibling, since = weights(DATA / "flux-kontext"), weights(DATA / "flux"), weights(FOLDER / "flux")
    got = blend.blend("flux-kontext", "flux", 0.25).state_dict()
    key = "single_transformer_blocks.1.attn.to_q.weight"
    torch.testing.assert_close(got[key], first[key] + 0.25 * (since[key] - sibling[key]))
    same = blend.blend("flux-kontext", "flux", 0.0).state_dict()
    assert all(torch.equal(same[name], value) for name, value in first.items())


def test_training_starts_from_what_was_written(tmp_path: Path) -> None:
    blend.export("flux-kontext", "flux", 0.4, tmp_path / "start")
    pipe = pipeline("flux-kontext", FOLDER / "text", transformer=tmp_path / "start")
    first = weights(DATA / "flux-kontext")
    assert any(not torch.equal(value, first[name]) for name, value in pipe.transformer.state_dict().items())


def test_a_sibling_of_another_shape_or_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as nothing_ships:
        nothing_ships.setattr(blend, "FOLDER", tmp_path)
        with pytest.raises(UVRError, match="no trained free-form pipeline 'sd3'"):
            blend.blend("sd3", "sd3", 0.4)
    with pytest.raises(UVRError, match="other classes"):
        blend.blend("sd3", "flux", 0.4)
    with pytest.raises(UVRError, match="no free-form pipeline"):
        blend.blend("flux-contest", "flux", 0.4)
