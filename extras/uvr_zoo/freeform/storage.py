"""Weights stored small: matrices as int8 with one scale a row, everything else as float16; half of float16 in all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

_WEIGHTS, _SCALE = "weights.int8.safetensors", ".scale"


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
    """Write a diffusers model's weights and its config.json under `folder`."""
    save_state(model.state_dict(), folder / _WEIGHTS)
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def load(kind: Any, folder: Path) -> nn.Module:
    """A model of a diffusers class in float32, eval mode, from what `save` or `save_pretrained` wrote."""
    if not (folder / _WEIGHTS).exists():
        return kind.from_pretrained(folder).float().eval()
    model = kind(**json.loads((folder / "config.json").read_text()))
    model.load_state_dict(load_state(folder / _WEIGHTS))
    return model.eval()
