"""Weights stored as int8 rows come back in their class, near what they were, in a quarter of float32's bytes."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

from uvr_zoo.freeform import storage
from uvr_zoo.pipelines import DATA


@pytest.mark.parametrize(
    ("kind", "source"), [(FluxTransformer2DModel, "flux/transformer"), (AutoencoderKL, "shared/vae")]
)
def test_stored_weights_come_back(kind: type, source: str, tmp_path: Path) -> None:
    model = storage.load(kind, DATA / source)
    storage.save(model, tmp_path)
    loaded = storage.load(kind, tmp_path)
    for name, value in model.config.items():
        if not name.startswith("_"):
            assert loaded.config[name] == value or list(loaded.config[name]) == list(value)
    bytes_of = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert bytes_of < 1.2 * sum(value.numel() for value in model.state_dict().values())
    for name, value in model.state_dict().items():
        step = value.abs().max() / 127 if value.ndim > 1 else value.abs().max() / 1024
        assert torch.allclose(loaded.state_dict()[name], value, atol=float(step) * 0.51 + 1e-7), name
