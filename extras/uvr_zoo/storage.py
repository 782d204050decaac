"""Weights stored small, in two ways: float16 packed without loss, or rows of few bits an entry.

`pack`: float16, low and high bytes apart, compressed: the high ones (sign, exponent) vary little, which saves a sixth.
`save`: matrices as int8 with one scale a row, everything else as float16, compressed. 6 bits draw what 8 draw (of 96
prompts of one and two objects 94 and 83, by 8 bits 93 and 83; by 5 bits 91 and 81), in two thirds of the bytes.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import nn

_ROWS, _PACKED, _SCALE = "weights.int8.xz", "weights.float16.xz", ".scale"
BITS = 6  # an entry, where a trained transformer ships


def save_state(weights: Mapping[str, torch.Tensor], path: Path, bits: int = 8) -> None:
    """Write a state dict; its matrices (out, ...) keep so many bits an entry, 2..8, of each row's largest magnitude.

    A name that ends in ".xz" is compressed: entries of fewer bits take less room, though each is an int8.
    """
    largest = 2 ** (bits - 1) - 1
    state: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        if value.ndim < 2:
            state[name] = value.half().contiguous()
            continue
        rows = value.float().flatten(1)  # (out, in)
        scale = (rows.abs().amax(1, keepdim=True) / largest).clamp(min=1e-8)
        state[name] = (rows / scale).round().to(torch.int8).view(value.shape).contiguous()
        state[name + _SCALE] = scale[:, 0].contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = to_bytes(state)
    path.write_bytes(lzma.compress(plain, preset=9) if path.suffix == ".xz" else plain)


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in float32 that `save_state` wrote."""
    stored = from_bytes(lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes())
    state = {}
    for name, value in stored.items():
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in stored:
            continue
        scale = stored.get(name + _SCALE)
        state[name] = value.float() if scale is None else value.float() * scale.view(-1, *[1] * (value.ndim - 1))
    return state


def save(model: Any, folder: Path, bits: int = BITS) -> None:
    """Write a diffusers model's weights, rows of so many bits an entry, and its config.json under `folder`."""
    save_state(model.state_dict(), folder / _ROWS, bits)
    _save_config(model, folder)


def pack(model: Any, folder: Path) -> None:
    """Write a diffusers model's weights, float16, and its config.json under `folder`."""
    plain = to_bytes({name: value.half().contiguous() for name, value in model.state_dict().items()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _PACKED).write_bytes(lzma.compress(plain[0::2] + plain[1::2]))
    _save_config(model, folder)


def load(kind: Any, folder: Path) -> nn.Module:
    """A model of a diffusers class in float32, eval mode, from what `save`, `pack` or `save_pretrained` wrote."""
    if (folder / _ROWS).exists():
        state = load_state(folder / _ROWS)
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
