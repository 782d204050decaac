"""Which rows of a forward follow the prompt: guidance runs a conditional and an unconditional part."""

from __future__ import annotations

from typing import Literal

import attrs

from ..errors import UVRError


@attrs.frozen
class Part:
    """The rows of a forward that run under one condition.

    Attributes:
        name: "cond" follows the prompt; "uncond" follows the negative prompt; "all": nothing tells, so every row is
            regulated; "aside": a further forward of a step, neither regulated nor remembered.
        rows: slice of the batch; None: all of it.
    """

    name: Literal["cond", "uncond", "all", "aside"]
    rows: slice | None = None

    @property
    def follows_prompt(self) -> bool:
        return self.name in ("cond", "all")


def parts_of(
    guidance: str, batch: int | None, name: str | None, number: int, bare: bool, batched: bool
) -> tuple[Part, ...]:
    """The parts of one forward; those that do not follow the prompt come first.

    Args:
        guidance: see Adapter.
        batch: rows of the forward, None if its arguments do not say.
        name: what the pipeline calls it through `cache_context`, or None.
        number: which forward of its step it is, 0 first.
        bare: no pipeline is there to say which forward follows the prompt.
        batched: the pipeline batches the two parts in this forward.

    Raises:
        UVRError: the batch does not hold two parts of one size.
    """
    if name in ("cond", "uncond"):
        follows = name == "cond"
    elif bare:
        return (Part("all"),)
    else:
        follows = number == 0
        if not follows and not (guidance == "two_pass" and number == 1):
            return (Part("aside"),)
    if not follows:
        return (Part("uncond"),)
    if not batched:
        return (Part("cond"),)
    if batch is None or batch % 2:
        raise UVRError(
            f"a batch of {batch} does not hold an unconditional and a conditional half; another kind of guidance "
            "is on (perturbed attention?): disable it, or detach UVR"
        )
    halves = (slice(0, batch // 2), slice(batch // 2, batch))
    uncond, cond = halves if guidance.endswith("uc") else halves[::-1]
    return (Part("uncond", uncond), Part("cond", cond))
