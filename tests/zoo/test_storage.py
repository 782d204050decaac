"""Stored weights come back in their class: packed ones bit for bit, rows of few bits near what they were."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

from uvr_zoo import storage
from uvr_zoo.pipelines import DATA


@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize(
    ("kind", "source"), [(FluxTransformer2DModel, "flux/transformer"), (AutoencoderKL, "shared/vae")]
)
def test_rows_of_few_bits_come_back(kind: type, source: str, bits: int, tmp_path: Path) -> None:
    model = storage.load(kind, DATA / source)
    storage.save(model, tmp_path, bits)
    loaded = storage.load(kind, tmp_path)
    for name, value in model.config.items():
        if not name.startswith("_"):
            assert loaded.config[name] == value or list(loaded.config[name]) == list(value)
    bytes_of = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert bytes_of < 1.2 * bits / 8 * sum(value.numel() for value in model.state_dict().values())
    for name, value in model.state_dict().items():
        step = value.abs().max() / (2 ** (bits - 1) - 1) if value.ndim > 1 else value.abs().max() / 1024
        assert torch.allclose(loaded.state_dict()[name], value, atol=float(step) * 0.51 + 1e-7), name


def test_packed_weights_are_the_float16_ones_in_less(tmp_path: Path) -> None:
    model = storage.load(FluxTransformer2DModel, DATA / "flux/transformer").half()
    model.save_pretrained(tmp_path / "plain")
    storage.pack(model, tmp_path / "packed")
    state = torch.random.get_rng_state()
    packed = storage.load(FluxTransformer2DModel, tmp_path / "packed")
    assert torch.equal(torch.random.get_rng_state(), state)
    plain = storage.load(FluxTransformer2DModel, tmp_path / "plain")
    for one, other in zip(packed.state_dict().items(), plain.state_dict().items(), strict=True):
        assert one[0] == other[0]
        assert one[1].dtype == torch.float32
        assert torch.equal(one[1], other[1])
    sizes = [sum(path.stat().st_size for path in (tmp_path / kind).iterdir()) for kind in ("packed", "plain")]
    assert sizes[0] < 0.9 * sizes[1]
