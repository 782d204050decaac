"""Which rows of a forward follow the prompt: guidance runs a conditional and an unconditional part."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import torch
from torch.utils._pytree import tree_flatten

from ..errors import UnsupportedRuntime


@attrs.frozen
class Part:
    """The rows of a forward that run under one condition.

    Attributes:
        name: "cond" follows the prompt; "uncond" follows the negative prompt, "image" the references alone; "all":
            nothing tells, so every row is regulated.
        rows: slice of the batch; None: all of it.
        by_order: the forward was told from others of its step by their order alone.
    """

    name: Literal["cond", "uncond", "image", "all"]
    rows: slice | None = None
    by_order: bool = False

    @property
    def follows_prompt(self) -> bool:
        return self.name in ("cond", "all")


_LETTERS: dict[str, Literal["cond", "uncond", "image"]] = {"c": "cond", "u": "uncond", "i": "image"}


def parts_of(
    guidance: str, name: str | None, number: int, trusted: bool, latents: Any = None, images: int | None = None
) -> tuple[Part, ...]:
    """The parts of one forward; those that do not follow the prompt come first.

    Args:
        guidance: see Adapter.
        name: what the pipeline calls it through `cache_context`, or None.
        number: which forward of its step it is, 0 first.
        trusted: the adapter lists the pipeline, so that order tells what has no name.
        latents: its latents, a tensor or a list with an entry per row.
        images: how many images the pipeline was asked for; None: not known.

    Raises:
        UnsupportedRuntime: more forwards in a step than the adapter's kind of guidance has.
    """
    name = None if name is None else name.removeprefix("pred_")  # as diffusers' guiders have it
    if name in ("cond", "uncond"):
        return (Part("cond" if name == "cond" else "uncond"),)
    if not trusted:
        return (Part("all"),)
    most = 2 if guidance == "two_pass" else 1
    if number >= most:
        raise UnsupportedRuntime(
            f"forward {number + 1} of one step, where guidance of this kind ({guidance}) has {most}; something runs "
            "the transformer once more (skip-layer or semantic guidance, a callback): disable it, name the forwards "
            'with transformer.cache_context("cond") and ("uncond"), or detach UVR'
        )
    if number == 1:
        return (Part("uncond", by_order=True),)
    kind, _, letters = guidance.partition(":")
    return _batched(letters, latents, images) if kind == "batched" else (Part("cond", by_order=kind == "two_pass"),)


def _batched(letters: str, latents: Any, images: int | None) -> tuple[Part, ...]:
    """The parts of a batch: as often as it holds the images that were asked for, if they hold the same latents.

    Equal latents alone do not tell: two images of one seed, without guidance, have them too.
    """
    if latents is None or not images:
        return (Part("all"),)
    count, rest = divmod(len(latents), images)
    if (count, rest) == (1, 0):
        return (Part("cond"),)
    letters = letters[:count]
    if rest or len(letters) < count or "c" not in letters:
        return (Part("all"),)
    first, *others = (latents[start : start + images] for start in range(0, len(latents), images))
    if not alike(first, *others):
        return (Part("all"),)
    parts = [Part(_LETTERS[letter], slice(n * images, (n + 1) * images)) for n, letter in enumerate(letters)]
    return tuple(sorted(parts, key=lambda part: part.follows_prompt))


def alike(first: Any, *others: Any) -> bool:
    """Whether tensors, or lists of them however nested, are all the same. One host sync."""
    tensors, structure = tree_flatten(first)
    same = []
    for other in others:
        leaves, its_structure = tree_flatten(other)
        if its_structure != structure or any(a.shape != b.shape for a, b in zip(tensors, leaves, strict=True)):
            return False
        same += [(a == b).all() for a, b in zip(tensors, leaves, strict=True)]
    return not same or bool(torch.stack(same).all())
