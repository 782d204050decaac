"""Baselines on the prompt alone: refuse what names the concept; ask for the opposite."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import attrs

from uvr_core.errors import UnsupportedRuntime
from uvr_core.protocols import Request
from uvr_core.signatures import takes

from .extra_forward import adapter_of, generate, guidance_of, scale_name
from .words import joined, words_of


@attrs.frozen
class Blocklist:
    """Refuse the prompts that contain one of the subjects' words; generate the others.

    A word matches whole, whatever its case, also with a plural ending ("s", "es", "ies" for "y", "ves" for "f" and
    "fe"): `knife` is found in "Two KNIVES." and not in "knifelike". A description that names nothing passes, and so
    does what a source image shows.

    The kept prompts run in one call with their own generators. Their pictures are those of the stock pipeline on that
    smaller batch, bitwise; in another batch kernels may round differently.

    Attributes:
        plurals: whether plural endings count.
    """

    plurals: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    name: str = "blocklist"

    def blocks(self, prompt: str, words: Sequence[str]) -> bool:
        """Whether the prompt contains one of the words."""
        return any(re.search(rf"(?<!\w){self._form(word)}(?!\w)", prompt, re.I) for word in words)

    def _form(self, word: str) -> str:
        plain = r"\s+".join(re.escape(part) for part in word.split())
        if not self.plurals:
            return plain
        forms = [plain + "(?:e?s)?"]
        for singular, plural in (("fe", "ves"), ("f", "ves"), ("y", "ies")):
            if word.endswith(singular):
                forms.append(plain[: -len(singular)] + plural)
                break
        return f"(?:{'|'.join(forms)})"

    def generate(self, request: Request) -> Sequence[Any]:
        words = words_of(request.subjects)
        kept = [i for i, prompt in enumerate(request.call["prompt"]) if not self.blocks(prompt, words)]
        images: list[Any] = [None] * request.batch
        if kept:
            size = request.batch
            call = {
                name: [value[i] for i in kept] if isinstance(value, list) and len(value) == size else value
                for name, value in request.call.items()
            }
            for index, image in zip(kept, request.pipe(**call).images, strict=True):
                images[index] = image
        return images


@attrs.frozen
class NegativePrompt:
    """Add the subjects' words to the negative prompt.

    Where the call runs without classifier-free guidance (a guidance-distilled FLUX.1 or Kontext, true_cfg_scale <= 1),
    guidance is turned on at `scale`, since a negative prompt acts through it alone: that costs a second pass per step
    and changes every picture.

    Attributes:
        scale: guidance scale > 1 where the call has none.
    """

    scale: float = attrs.field(default=3.0, validator=attrs.validators.gt(1.0))
    name: str = "negative-prompt"

    def generate(self, request: Request) -> Sequence[Any]:
        pipe, adapter = request.pipe, adapter_of(request.pipe)
        if not takes(pipe, "negative_prompt") or not takes(pipe, scale_name(adapter)):
            raise UnsupportedRuntime(
                f"{type(pipe).__name__} takes no negative prompt: its call has no negative_prompt and "
                f"{scale_name(adapter)}"
            )
        words = joined(words_of(request.subjects))
        negatives = request.call.get("negative_prompt") or [""] * request.batch
        changed: dict[str, Any] = {"negative_prompt": [joined((text, words)) if text else words for text in negatives]}
        if guidance_of(pipe, {**request.call, **changed}, adapter).kind == "none":
            changed[scale_name(adapter)] = self.scale
        return generate(request, **changed)
