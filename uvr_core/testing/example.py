"""A tiny model and how to call it: what the checks of an adapter run on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import nn

Size = tuple[int, int]


def patches(output: torch.Tensor, grid: Size) -> torch.Tensor:
    """The model's output as (B, N, C), output patches in row-major order.

    Args:
        output: (B, tokens, C) whose first N tokens are the output, or a picture (B, C, h, w) or (B, C, 1, h, w).
        grid: (H, W) with H * W = N; it divides h and w.
    """
    height, width = grid
    if output.ndim == 3:
        return output[:, : height * width]
    batch, channels, rows, columns = output.reshape(*output.shape[:2], *output.shape[-2:]).shape
    cut = output.reshape(batch, channels, height, rows // height, width, columns // width)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width, -1)


@attrs.frozen(eq=False)
class Example:
    """A small model with random weights, and the ground truth that an adapter is held against.

        def example() -> Example:
            model = MyDiT(num_layers=2, num_attention_heads=2, attention_head_dim=16).eval()

            def inputs(height, width, batch=1, sigma=0.5):
                return {
                    "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),  # patches of 2 x 2
                    "encoder_hidden_states": torch.randn(batch, 5, 32),
                    "timestep": torch.full((batch,), 1000 * sigma),
                }

            return Example(model, inputs, guidance="batched:uc")

    Attributes:
        model: the transformer in eval mode, on the CPU in float32; at least two joint blocks. No weight may be zero
            throughout: a block whose gate is 0 cannot be seen from outside.
        inputs: (height, width, batch=, sigma=) -> keyword arguments of the model's forward, as the family's pipeline
            gives them: height x width output patches, noise level sigma in 0..1 in the model's own convention,
            samples drawn at random. If `references`, it takes references= as well: (H, W) of each reference image. If
            `ragged`, it takes text= as well: the number of text tokens of each sample.
        references: whether `inputs` takes reference images.
        reference_sizes: those of the checks, where the default does not fit.
        ragged: whether `inputs` takes prompts of unequal length; if not, text that has a mask is cut with it.
        sizes: (height, width) at which the model can run, not square.
        guidance: how the family's pipelines guide, as Adapter.guidance names it; None: not known.
        pipeline, generate: a pipeline around `model`, and generate(prompt, negative_prompt), which runs it with
            guidance on, one or two steps, always from the same noise. The guidance is then checked on the real thing.
        patches: (output, grid) -> (B, N, C), where the default does not fit the model's output.
    """

    model: nn.Module
    inputs: Callable[..., dict[str, Any]]
    references: bool = False
    reference_sizes: tuple[Size, ...] = attrs.field(
        default=attrs.Factory(lambda self: ((3, 2), (2, 2)) if self.references else (), takes_self=True), kw_only=True
    )
    ragged: bool = attrs.field(default=False, kw_only=True)
    sizes: tuple[Size, ...] = ((2, 3), (4, 2), (3, 5))
    guidance: str | None = None
    pipeline: Any = None
    generate: Callable[[str, str], object] | None = None
    patches: Callable[[torch.Tensor, Size], torch.Tensor] = patches

    def arguments(
        self,
        size: Size,
        batch: int = 1,
        sigma: float = 0.5,
        references: tuple[Size, ...] = (),
        text: tuple[int, ...] = (),
    ) -> dict[str, Any]:
        """Keyword arguments of one forward; text: tokens of each sample's prompt, none: as `inputs` has them."""
        more: dict[str, Any] = {"references": references} if self.references else {}
        if text:
            more["text"] = text
        return self.inputs(size[0], size[1], batch=batch, sigma=sigma, **more)

    def bound(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name, as the engine hands them to an adapter."""
        return inspect.signature(type(self.model).forward).bind(self.model, **arguments).arguments

    @torch.no_grad()
    def run(self, arguments: dict[str, Any], size: Size) -> torch.Tensor:
        """One forward -> (B, N, C)."""
        names = inspect.signature(type(self.model).forward).parameters
        options = {"return_dict": False} if "return_dict" in names else {}
        output = self.model(**{**options, **arguments})
        while isinstance(output, tuple):
            output = output[0]
        if isinstance(output, list):
            output = torch.stack(output)
        return self.patches(output, size)
