"""An independent witness: stock pipelines whose attention is computed anew, by hand in float64, where it must differ.

Nothing of the engine is used: the attention names in diffusers' own modules are replaced for a while, forwards are
counted by a hook on the transformer, and where the rows lie is written down here once more. The edit is the simplest
one: in the last sample, the patches of MASK attend to the text alone, in every forward that follows the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models import attention_processor
from diffusers.models.transformers import transformer_flux, transformer_qwenimage

STOCK = torch.nn.functional.scaled_dot_product_attention


class Reference:
    """The edit, put into a stock pipeline.

    Args:
        name: of the pipeline.
        rows: numbers of the output patches that are cut off, row-major.
        patches: N, output patches.
        references: tokens of source pictures.
        guided: guidance is on.
        window: (high, low) noise levels; the edit begins with the first forward in it.
    """

    def __init__(
        self,
        name: str,
        rows: torch.Tensor,
        patches: int,
        references: int,
        guided: bool,
        window: tuple[float, float] = (1.0, 0.0),
    ):
        self.window, self.begun = window, False
        self.name, self.rows, self.patches, self.references, self.guided = name, rows, patches, references, guided
        self.forwards, self.inside, self.edits = 0, False, 0

    @property
    def follows(self) -> bool:
        """Whether this forward follows the prompt: the first of two, or the one that holds both halves."""
        return self.name == "sd3" or not self.guided or self.forwards % 2 == 1

    def begin(self, timestep: torch.Tensor) -> None:
        """A forward at this time of the model."""
        sigma = float(timestep[0]) / (1000 if self.name == "sd3" else 1)
        self.forwards, self.inside = self.forwards + 1, True
        self.begun = self.begun or (self.follows and self.window[1] <= sigma <= self.window[0])

    def cut(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, out: torch.Tensor) -> torch.Tensor:
        """(B, heads, tokens, size) in and out, as the stock call gave it but for the rows that are cut off."""
        image = self.patches + self.references
        if not (self.inside and self.begun and self.follows) or k.shape[2] <= image or q.shape[2] <= image:
            return out
        text = slice(image, None) if self.name == "sd3" else slice(0, k.shape[2] - image)
        first = 0 if self.name == "sd3" else q.shape[2] - image
        rows = first + self.rows
        keys, values = k[-1, :, text].double(), v[-1, :, text].double()
        logits = q[-1, :, rows].double() @ keys.mT * q.shape[-1] ** -0.5
        if mask is not None:
            seen = mask if mask.dim() == 4 else mask[:, None, None, :]
            logits = logits.masked_fill(~seen.expand(len(q), 1, -1, k.shape[2])[-1][..., text], -torch.inf)
        out = out.clone()
        out[-1, :, rows] = (logits.softmax(-1) @ values).to(out.dtype)
        self.edits += 1
        return out

    def sdpa(self, query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **kw: Any) -> torch.Tensor:
        return self.cut(query, key, value, attn_mask, STOCK(query, key, value, attn_mask, *args, **kw))

    def dispatch(self, stock: Any) -> Any:
        def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **kw: Any) -> torch.Tensor:
            out = stock(query, key, value, attn_mask, *args, **kw)
            q, k, v, turned = (tensor.transpose(1, 2) for tensor in (query, key, value, out))
            return self.cut(q, k, v, attn_mask, turned).transpose(1, 2)

        return attention


class _Functional:
    def __init__(self, sdpa: Any):
        self.scaled_dot_product_attention = sdpa

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.nn.functional, name)


@contextmanager
def applied(reference: Reference, transformer: torch.nn.Module) -> Iterator[None]:
    """The stock pipelines of this process draw as the reference says."""

    def begin(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        reference.begin(kwargs["timestep"])

    def end(module: Any, args: Any, output: Any) -> None:
        reference.inside = False

    handles = [transformer.register_forward_pre_hook(begin, with_kwargs=True), transformer.register_forward_hook(end)]
    names = [(transformer_flux, "dispatch_attention_fn"), (transformer_qwenimage, "dispatch_attention_fn")]
    kept = [getattr(module, name) for module, name in names]
    try:
        for (module, name), stock in zip(names, kept, strict=True):
            setattr(module, name, reference.dispatch(stock))
        attention_processor.F = _Functional(reference.sdpa)
        yield
    finally:
        attention_processor.F = torch.nn.functional
        for (module, name), stock in zip(names, kept, strict=True):
            setattr(module, name, stock)
        for handle in handles:
            handle.remove()
