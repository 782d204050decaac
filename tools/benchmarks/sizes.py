"""Attention calls and block stacks of FLUX.1's width, and sessions that regulate a given share of their patches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

import uvr_core
from uvr_adapters.flux import FLUX
from uvr_core.adapter import Layout
from uvr_core.engine.plan import ConceptPlan
from uvr_core.engine.regulation import Regulation
from uvr_core.intercept.calls import AttentionCall
from uvr_core.intercept.forwards import intervene
from uvr_core.intercept.guidance import Part
from uvr_core.intercept.ledger import Forward, Run
from uvr_core.intercept.taps import rebind
from uvr_core.ops.masks import ring_of
from uvr_core.plugins import registry
from uvr_core.protocols import PolicyTraits, RowClass
from uvr_plugins.detectors import Anchor, Oracle

SIGMA = 0.9  # inside every policy's window
NEVER = 1e9  # a threshold that no score reaches


@attrs.frozen
class Size:
    """Width of the attention and of what goes in. FLUX.1's unless given."""

    heads: int = 24
    head_dim: int = 128
    text: int = 512
    text_width: int = 4096

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def rope(self) -> tuple[int, int, int]:
        return self.head_dim // 8, self.head_dim * 7 // 16, self.head_dim * 7 // 16


def grid_of(patches: int) -> tuple[int, int]:
    """The grid (H, W) nearest to a square with so many patches."""
    height = next(h for h in range(int(patches**0.5), 0, -1) if patches % h == 0)
    return height, patches // height


def blob(grid: tuple[int, int], share: float, ring: int) -> np.ndarray:
    """(H, W) bool: a rectangle that covers, with its ring, about this share of the patches."""
    height, width = grid
    outer = min(height, max(2 * ring + 1, round((share * height * width) ** 0.5)))
    across = min(width, max(2 * ring + 1, round(share * height * width / outer)))
    mask = np.zeros(grid, bool)
    top, left = (height - outer) // 2, (width - across) // 2
    mask[top + ring : top + outer - ring, left + ring : left + across - ring] = True
    return mask


def policy(name: str) -> Any:
    return registry().make("policy", name).object


def bank(model: uvr_core.Fingerprint, probe: str, anchors: int = 4, name: str = "a", **more: torch.Tensor) -> Any:
    """A concept of random anchors that fits a model."""
    drawn = torch.randn(anchors, model.heads * model.head_dim, generator=torch.Generator().manual_seed(0))
    return uvr_core.ConceptBank(name, model, {f"anchors/{probe}": drawn, **more})


@attrs.frozen(eq=False)
class Attention:
    """One joint attention call of random numbers, as a FLUX block makes it, and sessions that take part in it."""

    size: Size
    device: torch.device
    dtype: torch.dtype
    layout: Layout
    query: torch.Tensor  # (B, heads, tokens, head_dim)
    key: torch.Tensor
    value: torch.Tensor

    @classmethod
    def make(
        cls, size: Size, patches: int, device: torch.device, dtype: torch.dtype, *, batch: int = 1, references: int = 0
    ) -> Attention:
        """`patches` output patches, as many of each reference image, and the text."""
        grid = grid_of(patches)
        layout = Layout(grid, (grid,) * references)
        tokens, generator = size.text + layout.image, torch.Generator(device).manual_seed(0)
        shape = (batch, tokens, size.heads, size.head_dim)
        q, k, v = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3))
        return cls(size, device, dtype, layout, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))

    @property
    def unit(self) -> int:
        """Bytes of one q tensor."""
        return self.query.nbytes

    def stock(self) -> torch.Tensor:
        return F.scaled_dot_product_attention(self.query, self.key, self.value)

    def call(self, path: str, output: torch.Tensor) -> AttentionCall:
        return AttentionCall(path, self.query, self.key, self.value, output, None, None)

    def regulation(
        self, policy: Any, share: float | None, *, concepts: int = 1, anchors: int = 4
    ) -> tuple[Regulation, int]:
        """A regulation that has seen its probe block and is about to see the block `next`; the rows it regulates.

        Args:
            share: of output patches, ring included; None: nothing is ever located (anchors, NEVER).
        """
        model = uvr_core.Fingerprint("FluxTransformer2DModel", 2, self.size.heads, self.size.head_dim)
        traits = PolicyTraits.of(policy)
        mask = blob(self.layout.grid, share or 0.0, traits.masks.ring)
        detector = Anchor() if share is None else Oracle(np.repeat(mask[None], len(self.query), 0))
        more = {"anchors/next": torch.randn(1, self.size.width)}
        plan = [
            ConceptPlan(
                bank(model, "probe", anchors, f"concept {number}", **more),
                detector,
                policy,
                detector.name,
                policy.name,
                "probe",
                (1.0, 0.0),
                NEVER if share is None else 0.0,
                NEVER if share is None else 0.0,
                masks=traits.masks,
                exact=share is not None,
                needs_uncond=traits.needs_uncond,
            )
            for number in range(concepts)
        ]
        run = Run(("probe", "next"))
        regulation = Regulation(run, FLUX, plan, lambda report, grid: None)
        output = self.stock()
        names: tuple[Any, ...] = ("uncond", "cond") if traits.needs_uncond else ("all",)
        for name in names:
            step, number, sigma = run.next_forward(torch.tensor([SIGMA]), self.layout)
            run.open(Forward(step, number, self.layout, sigma, len(self.query), (Part(name),)))
            for path in ("probe", "next"):
                run.enter(path)
                if path == "probe" or name == "uncond":
                    intervene(self.call(path, output.clone()), regulation, FLUX)
                    run.leave()
            if name == "uncond":
                run.close()
        finding = regulation.report().findings[0]
        wide = ring_of(finding.core, traits.masks.ring) | finding.core if finding.located else finding.core
        return regulation, int(wide.sum())

    def edit(self, regulation: Regulation, output: torch.Tensor) -> torch.Tensor:
        """What the regulation makes of a stock output, which it may write into."""
        edited = intervene(self.call("next", output), regulation, FLUX)
        return output if edited is None else edited

    def materialised(self, row_class: torch.Tensor) -> torch.Tensor:
        """The call anew as :func:`materialised` has it; row_class (N,)."""
        return materialised(self.query, self.key, self.value, row_class, self.size.text)


def materialised(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, row_class: torch.Tensor, text: int) -> torch.Tensor:
    """The released code's restriction as it computes it: the whole matrix, multiplied, times V.

    Columns of core patches are scaled by 0.2 and of ring patches by 0.4, for text and output queries, and everything
    that output queries see by 1.05. It does so when editing, with the reference tokens' columns; here, without
    references, the output patches' own columns stand in for them, which costs the same.

    Args:
        q, k, v: (B, H, L, D), text tokens first.
        row_class: (L - text,) long.
        text: number of text tokens.

    Returns:
        (B, H, L, D).
    """
    weight = (q @ k.mT).mul_(q.shape[-1] ** -0.5).softmax(-1)  # (B, H, L, L)
    factor = torch.ones(k.shape[2], device=q.device, dtype=q.dtype)
    factor[text:] = torch.where(row_class == RowClass.CORE, 0.2, torch.where(row_class == RowClass.RING, 0.4, 1.0)).to(
        q.dtype
    )
    weight *= factor
    weight[:, :, text:] *= 1.05
    return weight @ v


class Stack:
    """The first blocks of FLUX.1 with random weights: one double-stream block and `singles` single-stream blocks."""

    def __init__(
        self, size: Size, singles: int, patches: int, device: torch.device, dtype: torch.dtype, *, batch: int = 1
    ):
        self.size, self.patches, self.grid = size, patches, grid_of(patches)
        self.model = flux(size, 1, singles).to(device).eval().requires_grad_(False)
        if dtype != torch.float32:
            self.model.to(dtype)
        self.paths = ("transformer_blocks.0.attn", *(f"single_transformer_blocks.{i}.attn" for i in range(singles)))
        self.resize(patches, batch)

    def resize(self, patches: int, batch: int = 1) -> None:
        """Make the inputs of one forward for so many patches."""
        self.patches, self.grid = patches, grid_of(patches)
        parameter = next(self.model.parameters())
        options: dict[str, Any] = {"device": parameter.device, "dtype": parameter.dtype}
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in self.grid), indexing="ij")
        ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).to(**options)
        self.inputs = {
            "hidden_states": torch.randn(batch, patches, self.model.config.in_channels, **options),
            "encoder_hidden_states": torch.randn(batch, self.size.text, self.size.text_width, **options),
            "pooled_projections": torch.randn(batch, self.model.config.pooled_projection_dim, **options),
            "timestep": torch.full((batch,), SIGMA, device=parameter.device),
            "guidance": torch.full((batch,), 3.5, device=parameter.device),
            "img_ids": ids,
            "txt_ids": torch.zeros(self.size.text, 3, **options),
        }

    def forward(self) -> torch.Tensor:
        output: torch.Tensor = self.model(**self.inputs, return_dict=False)[0]
        return output

    @contextmanager
    def idle(self, concepts: int = 1) -> Iterator[None]:
        """Attached; every concept is looked for in the first block, and none is ever located."""
        model = uvr_core.Fingerprint("FluxTransformer2DModel", len(self.paths), self.size.heads, self.size.head_dim)
        banks = [bank(model, self.paths[0], name=f"concept {number}") for number in range(concepts)]
        with (
            uvr_core.attach(self.model, concepts=banks, detector="anchor", policy="uvr", threshold=NEVER) as reg,
            reg.generation(),
        ):
            yield

    @contextmanager
    def active(self, name: str, share: float) -> Iterator[None]:
        """Attached; a share of the patches is located in the first block, and regulated there and in all others."""
        model = uvr_core.Fingerprint("FluxTransformer2DModel", len(self.paths), self.size.heads, self.size.head_dim)
        rule_policy, batch = policy(name), len(self.inputs["hidden_states"])
        mask = blob(self.grid, share, getattr(rule_policy, "ring", 1))
        oracle = Oracle(np.repeat(mask[None], batch, 0))
        with uvr_core.attach(
            self.model, concepts=bank(model, self.paths[0]), detector=oracle, policy=rule_policy
        ) as regulator:
            with regulator.generation():
                yield
            report = regulator.report
            assert report is not None
            assert all(finding.located for finding in report.findings)

    @contextmanager
    def materialised(self, share: float) -> Iterator[None]:
        """The attention of every block replaced by :func:`materialised`."""
        mask = torch.from_numpy(blob(self.grid, share, 1)).flatten().to(self.inputs["hidden_states"].device)
        stock: dict[Any, Any] = {}

        def dispatch_attention_fn(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            q, k, v = (x.transpose(1, 2) for x in (query, key, value))
            return materialised(q, k, v, mask.long() * RowClass.CORE, self.size.text).transpose(1, 2)

        call = rebind(FluxAttnProcessor.__call__, {"dispatch_attention_fn": dispatch_attention_fn, "F": F})
        kind = type("Materialised", (FluxAttnProcessor,), {"__call__": call})
        for path in self.paths:
            module = self.model.get_submodule(path)
            stock[module], module.processor = module.processor, kind()
        try:
            yield
        finally:
            for module, processor in stock.items():
                module.processor = processor


def flux(size: Size, doubles: int, singles: int) -> diffusers.FluxTransformer2DModel:
    """A FLUX transformer of this width and so many blocks, with random weights."""
    return diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=doubles, num_single_layers=singles,
        attention_head_dim=size.head_dim, num_attention_heads=size.heads, joint_attention_dim=size.text_width,
        pooled_projection_dim=768, guidance_embeds=True, axes_dims_rope=size.rope,
    )  # fmt: skip
