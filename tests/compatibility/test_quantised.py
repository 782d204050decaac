"""Quantised weights: located patches by the equation, benign images bitwise the stock quantised model's.

Packages that are missing are skipped by name; `make test-int8` brings them.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import pytest
import torch
from rig import Rig, reference
from situations import Pair, Topic
from torch import nn

topic = Topic("quantised")
test_regulated_exactly = topic.regulated_exactly()
test_every_row_has_its_cases_and_every_case_its_row = topic.complete()


def quantised(
    name: str,
    quantise: Callable[[Rig], None],
    weights: Callable[[Rig], dict[str, torch.Tensor]] | None,
    orders: tuple[str, ...] = ("before", "after"),
) -> None:
    """A row. `weights`: what a quantised model's weights are, in float32; None: its activations are rounded too."""

    def check(rig: Rig, order: str) -> Iterator[Pair]:
        quantise(rig)
        stock, images = rig.run(), Rig(rig.name).regulated_run(**{order: quantise})
        assert torch.equal(images[0], stock[0])
        assert not torch.equal(images[1], stock[1])
        assert (images - reference(rig.name)).abs().max() > 1e-3
        if weights is None:
            yield images, torch.stack([stock[0], images[1]])
            return
        other = Rig(rig.name)
        other.transformer.load_state_dict(weights(rig))
        yield images, other.regulated_run()

    for order in orders:
        which = f"{name}, {order} attach" if len(orders) > 1 else name
        topic.cases[which] = functools.partial(check, order=order)


def int8(rig: Rig) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(rig.transformer, Int8WeightOnlyConfig())
    assert any(type(p.data).__name__.startswith("Int8") for p in rig.transformer.parameters())


def dequantized(rig: Rig) -> dict[str, torch.Tensor]:
    state = rig.transformer.state_dict().items()
    return {name: value if type(value) is torch.Tensor else value.dequantize() for name, value in state}


quantised("int8 weights (torchao)", int8, dequantized)


def replace(rig: Rig, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Every linear layer, by one that stores its weights otherwise."""
    for path, linear in list(rig.transformer.named_modules()):
        if type(linear) is nn.Linear:
            parent, _, name = path.rpartition(".")
            layer = make(linear)
            layer.load_state_dict(linear.state_dict())
            setattr(rig.transformer.get_submodule(parent), name, layer.to("cpu").requires_grad_(False))


def nf4(rig: Rig) -> None:
    import bitsandbytes

    options = {"compute_dtype": torch.float32, "quant_type": "nf4"}
    replace(rig, lambda old: bitsandbytes.nn.Linear4bit(old.in_features, old.out_features, _biased(old), **options))
    assert any(p.dtype == torch.uint8 for p in rig.transformer.parameters())


def eight_bits(rig: Rig) -> None:
    import bitsandbytes

    options = {"has_fp16_weights": False, "threshold": 0.0}
    replace(rig, lambda old: bitsandbytes.nn.Linear8bitLt(old.in_features, old.out_features, _biased(old), **options))
    assert any(p.dtype == torch.int8 for p in rig.transformer.parameters())


def _biased(linear: nn.Linear) -> bool:
    return linear.bias is not None


def unpacked(rig: Rig) -> dict[str, torch.Tensor]:
    from bitsandbytes.functional import dequantize_4bit

    parameters = dict(rig.transformer.named_parameters())
    buffers = {n: b for n, b in rig.transformer.named_buffers() if n in Rig(rig.name).transformer.state_dict()}
    return buffers | {
        name: dequantize_4bit(p.data, p.quant_state) if getattr(p, "quant_state", None) is not None else p.data
        for name, p in parameters.items()
    }


quantised("nf4 weights (bitsandbytes)", nf4, unpacked)
quantised("int8 weights (bitsandbytes)", eight_bits, None)


def gguf(rig: Rig, kind: str) -> None:
    """Written to a small file, read back by diffusers."""
    package = pytest.importorskip("gguf")
    numbers = package.GGMLQuantizationType[kind]
    with TemporaryDirectory() as folder:
        rig.transformer.save_config(folder)
        file = Path(folder) / "model.gguf"
        writer = package.GGUFWriter(str(file), "flux")
        for name, value in rig.transformer.state_dict().items():
            blocks = value.ndim == 2 and value.shape[1] % 32 == 0  # 32 numbers share a scale
            array = package.quants.quantize(value.numpy(), numbers) if blocks else value.numpy()
            writer.add_tensor(name, array, raw_dtype=numbers if blocks else None)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        config = diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32)
        rig.pipe.transformer = type(rig.transformer).from_single_file(
            str(file), config=folder, quantization_config=config, torch_dtype=torch.float32
        )
    assert any(type(module).__name__ == "GGUFLinear" for module in rig.transformer.modules())


def read_back(rig: Rig) -> dict[str, torch.Tensor]:
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    parameters = rig.transformer.named_parameters()
    return {n: dequantize_gguf_tensor(p).float() if hasattr(p, "quant_type") else p.data for n, p in parameters}


for each in ("Q8_0", "Q4_0"):
    quantised(f"GGUF weights, {each}", functools.partial(gguf, kind=each), read_back, orders=("before",))


def quanto(rig: Rig, kind: str) -> None:
    package: Any = importlib.import_module("optimum.quanto")
    package.quantize(rig.transformer, weights=getattr(package, kind))
    package.freeze(rig.transformer)
    assert any(type(module).__name__ == "QLinear" for module in rig.transformer.modules())


def unscaled(rig: Rig) -> dict[str, torch.Tensor]:
    parameters = {n: p.dequantize() if hasattr(p, "qtype") else p.data for n, p in rig.transformer.named_parameters()}
    wanted = Rig(rig.name).transformer.state_dict()
    return parameters | {n: b for n, b in rig.transformer.named_buffers() if n in wanted}


for row, kind in (("int8", "qint8"), ("fp8", "qfloat8")):
    quantised(f"{row} weights (optimum-quanto)", functools.partial(quanto, kind=kind), unscaled)
