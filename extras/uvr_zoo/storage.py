"""Weights stored small, in two ways: float16 packed without loss, or int8.

`pack`: float16, low and high bytes apart, compressed: the high ones (sign, exponent) vary little, which saves a sixth.
`save`: matrices as int8 with one scale a row, everything else as float16; half of float16 in all.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import load_file, save_file
from safetensors.torch import save as to_bytes
from torch import nn

_INT8, _PACKED, _SCALE = "weights.int8.safetensors", "weights.float16.xz", ".scale"


def save_state(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a state dict; its matrices (out, ...) keep 8 bits an entry, of each row's largest magnitude."""
    state: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        if value.ndim < 2:
            state[name] = value.half().contiguous()
            continue
        rows = value.float().flatten(1)  # (out, in)
        scale = (rows.abs().amax(1, keepdim=True) / 127).clamp(min=1e-8)
        state[name] = (rows / scale).round().to(torch.int8).view(value.shape).contiguous()
        state[name + _SCALE] = scale[:, 0].contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in float32 that `save_state` wrote."""
    stored = load_file(path)
    state = {}
    for name, value in stored.items():
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in stored:
            continue
        scale = stored.get(name + _SCALE)
        state[name] = value.float() if scale is None else value.float() * scale.view(-1, *[1] * (value.ndim - 1))
    return state


def save(model: Any, folder: Path) -> None:
    """Write a diffusers model's weights, int8, and its config.json under `folder`."""
    save_state(model.state_dict(), folder / _INT8)
    _save_config(model, folder)


def pack(model: Any, folder: Path) -> None:
    """Write a diffusers model's weights, float16, and its config.json under `folder`."""
    plain = to_bytes({name: value.half().contiguous() for name, value in model.state_dict().items()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _PACKED).write_bytes(lzma.compress(plain[0::2] + plain[1::2]))
    _save_config(model, folder)


def load(kind: Any, folder: Path) -> nn.Module:
    """A model of a diffusers class in float32, eval mode, from what `save`, `pack` or `save_pretrained` wrote."""
    if (folder / _INT8).exists():
        state = load_state(folder / _INT8)
    elif (folder / _PACKED).exists():
        state = _unpacked(folder / _PACKED)
    else:
        loaded: nn.Module = kind.from_pretrained(folder).float().eval()
        return loaded
    with torch.random.fork_rng(devices=[]):  # the weights that a class begins with are drawn
        model: nn.Module = kind.from_config(json.loads((folder / "config.json").read_text()))
    model.load_state_dict(state)
    return model.eval()


def _save_config(model: Any, folder: Path) -> None:
    config = {name: value for name, value in model.config.items() if name != "_name_or_path"}
    (folder / "config.json").write_text(
        json.dumps({"_class_name": type(model).__name__, **config}, indent=1, sort_keys=True)
    )


def _unpacked(path: Path) -> dict[str, torch.Tensor]:
    apart = lzma.decompress(path.read_bytes())
    plain, even = bytearray(len(apart)), -(-len(apart) // 2)
    plain[0::2], plain[1::2] = apart[:even], apart[even:]
    return {name: value.float() for name, value in from_bytes(bytes(plain)).items()}
