"""Which rows of a forward follow the prompt: guidance runs a conditional and an unconditional part."""

from __future__ import annotations

from typing import Literal

import attrs
import torch

from ..errors import UnsupportedRuntime


@attrs.frozen
class Part:
    """The rows of a forward that run under one condition.

    Attributes:
        name: "cond" follows the prompt; "uncond" follows the negative prompt; "all": nothing tells, so every row is
            regulated.
        rows: slice of the batch; None: all of it.
        by_order: the forward was told from others of its step by their order alone.
    """

    name: Literal["cond", "uncond", "all"]
    rows: slice | None = None
    by_order: bool = False

    @property
    def follows_prompt(self) -> bool:
        return self.name != "uncond"


def parts_of(guidance: str, name: str | None, number: int, trusted: bool, halves: int | None) -> tuple[Part, ...]:
    """The parts of one forward; those that do not follow the prompt come first.

    Args:
        guidance: see Adapter.
        name: what the pipeline calls it through `cache_context`, or None.
        number: which forward of its step it is, 0 first.
        trusted: the adapter lists the pipeline, so that order tells what has no name.
        halves: rows of each half of the batch, where the pipeline batches an unconditional and a conditional half and
            both hold the same latents; 0: it says that it batches them, but they differ; None: it does not batch them.

    Raises:
        UnsupportedRuntime: more forwards in a step than the adapter's kind of guidance has.
    """
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
    if halves is None:
        return (Part("cond", by_order=guidance == "two_pass"),)
    if halves == 0:
        return (Part("all"),)
    first, second = slice(0, halves), slice(halves, 2 * halves)
    uncond, cond = (first, second) if guidance.endswith("uc") else (second, first)
    return (Part("uncond", uncond), Part("cond", cond))


def equal_halves(latents: torch.Tensor) -> int:
    """Rows of each half of a batch, if both halves hold the same latents, else 0. One host sync."""
    half, odd = divmod(len(latents), 2)
    return half if not odd and torch.equal(latents[:half], latents[half:]) else 0
