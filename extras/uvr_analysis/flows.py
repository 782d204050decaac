"""The flows of a set of images: what is measured, and in which units.

UVR, arXiv 2606.06875, eq. flow: A^{X->Y} = 1 / (|X||Y|) sum_{i in X, j in Y} a(i, j), with a(i, j) the attention weight
of query i on key j. By that formula X reads and Y is read: information moves from Y's tokens into X's. The paper's
words go the other way ("text->output": the prompt's meaning enters the picture), and so do the names here: the flow
"text to output" is that of output queries on text keys, `share[..., OUTPUT, TEXT]`, the formula's A^{output->text}.

Attention weights say where a token looks, not what it takes from there: values and the blocks' gates are left out.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from uvr_core.errors import UVRError, did_you_mean
from uvr_core.ops.evidence import Scores
from uvr_core.ops.masks import Mask
from uvr_core.tokens import Role

Array = npt.NDArray[np.floating[Any]]
TEXT, OUTPUT, REFERENCE = Role
LOCATED, REST = len(Role), len(Role) + 1  # output patches inside and outside of the mask, behind the roles of tokens
ROLES = (*(role.name.lower() for role in Role), "located", "rest")


@attrs.frozen(eq=False)
class Flows:
    """The flows of a set of images, in their conditional pass (the one that follows the prompt).

    Attributes:
        share: (I, T, L, 5, 5) float32 in 0..1, image, step, block, query role, key role, in the order of ROLES: the
            attention that a token of the query role pays to all tokens of the key role, mean over its tokens and heads,
            1/|X| sum_{i in X} sum_{j in Y} a(i, j). Over text, output and reference keys it sums to 1. "located" and
            "rest" are the output patches inside and outside of the image's mask. NaN where the query role has no
            tokens, and for what the masks came too late to tell.
        counts: (I, 5) int64, tokens of each role. Text that the model's own mask hides is no token.
        blocks: paths of the L blocks, in order of execution.
        sigmas: T noise levels, 1 = pure noise.
        grid: (H, W) of the output patches.
        images: the I pictures, bitwise those that the pipeline draws by itself.
        masks: (I, H, W) bool, where the concept is; None if it was not asked for.
        scores: {probe: (I, T, H * W) float32}, what the detector said; empty without a bank.
        seconds: what the pipeline calls took, the measuring included.
    """

    share: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    blocks: tuple[str, ...]
    sigmas: list[float]
    grid: tuple[int, int]
    images: list[Any]
    masks: Mask | None = None
    scores: dict[str, Scores] = attrs.field(factory=dict)
    seconds: float = 0.0

    @property
    def density(self) -> npt.NDArray[np.float32]:
        """(I, T, L, 5, 5): the paper's A^{X->Y} with X the query role and Y the key role; NaN where either is empty."""
        keys = np.where(self.counts == 0, np.nan, self.counts)[:, None, None, None, :]
        return np.asarray(self.share / keys, dtype=np.float32)

    @property
    def lift(self) -> npt.NDArray[np.float32]:
        """(I, T, L, 5, 5): attention per key token in units of uniform attention over all keys; 1 = no preference."""
        everything = self.counts[:, : REFERENCE + 1].sum(1)[:, None, None, None, None]
        return np.asarray(self.density * everything, dtype=np.float32)

    def curve(self, source: str, into: str, of: str = "share") -> Array:
        """(I, T) flow from role `source` into role `into`, mean over blocks. `of`: "share", "density" or "lift".

        Raises:
            UVRError: an unknown role.
        """
        return self.by_block(source, into, of).mean(2)  # type: ignore[no-any-return]

    def by_block(self, source: str, into: str, of: str = "share") -> Array:
        """(I, T, L), as `curve`."""
        values: Array = getattr(self, of)
        return values[..., role_of(into), role_of(source)]

    def directions(self) -> list[tuple[str, str]]:
        """(source, into) of every flow that was measured in some image, in the order of ROLES."""
        told, tokens = np.isfinite(self.share[:, 0, 0]), self.counts > 0
        known = np.asarray((told & tokens[:, None]).any(0))  # (query, key)
        return [(ROLES[key], ROLES[query]) for query in range(5) for key in range(5) if known[query, key]]


def role_of(name: str) -> int:
    """Place of a role in ROLES, and in `share`."""
    if name not in ROLES:
        raise UVRError(f"unknown role {name!r}{did_you_mean(name, ROLES)}")
    return ROLES.index(name)
