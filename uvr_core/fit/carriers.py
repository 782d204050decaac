"""Fit and choose how it is told which tokens of a prompt carry a concept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np
import torch

from ..concepts import ConceptBank, TextCarriers
from ..engine.attach import attach
from ..engine.carriers import chosen_by
from ..engine.readings import Compared, Reader, contrast, text_values
from ..engine.regulator import Regulator
from ..errors import UVRError
from ..intercept.calls import JointCall
from ..ops.masks import Mask, ring_of
from ..sampling import Progress, Sampling, nonblank
from .gather import FEEDS, Reservoir
from .logistic import log_odds_among_likes
from .masks import Seen, Terms, finder_of
from .record import read_along, spread
from .regions import MaskSource
from .scores import best_threshold

HELD_OUT = 3  # every third prompt that shows the concept chooses the threshold
_MOST = 8192  # tokens of a kind that are kept
_BRIEF = 2  # steps of a benign prompt: its picture is of no use, and text is read in the first


@attrs.frozen(eq=False)
class Tokens:
    """Text tokens of some prompts.

    Attributes:
        values: (prompts, T, C) float32, in the first step.
        carry: (prompts, T) bool, whether they fed the concept's patches in the later steps.
    """

    values: torch.Tensor
    carry: torch.Tensor


def calibrate_text(
    pipe: Any,
    bank: ConceptBank,
    prompts: Sequence[str],
    benign_prompts: Sequence[str],
    *,
    masks: MaskSource | Any,
    words: Sequence[str] = (),
    without: Sequence[str] | None = None,
    sources: Sequence[Any] | None = None,
    benign_sources: Sequence[Any] | None = None,
    adapter: Any = None,
    seed: int = 30_000,
    batch_size: int = 8,
    generate: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> ConceptBank:
    """Learn which tokens of a prompt carry the concept, so that these alone are withheld, and from the first step on.

    At the start nothing has a place yet, and a word feeds the concept's patches hardly more than the rest: there the
    flow contrast cannot tell it. Later it can. So the prompts are drawn, and the tokens whose flow contrast is large
    in the later half of the steps are told, by logistic regression, from all others of these prompts and of benign
    ones, by their values in the first joint attention block: before image and text have mixed.

    Args: as of `collect`, and
        bank: of the model; it is returned with what was learned.
        prompts: that show the concept, in the forms in which users ask for it. Every third chooses the threshold, with
            the best F1 over its tokens.

    Returns:
        The bank with `text`, its tensors, and in `text.measured` on how many tokens and prompts.

    Raises:
        UVRError: no prompts, no image that shows the concept, no token that feeds it, or blocks that differ in the
            number of text tokens.
        ConceptMismatch: a bank of another model.
    """
    unsafe, benign = nonblank("prompts", prompts), nonblank("benign_prompts", benign_prompts)
    call, first = dict(generate or {}), seed + len(unsafe)
    drawn = Sampling(unsafe, range(seed, first), {"image": sources}, call, batch_size)
    brief = {**call, "num_inference_steps": min(int(call.get("num_inference_steps", _BRIEF)), _BRIEF)}
    others = Sampling(benign, range(first, first + len(benign)), {"image": benign_sources}, brief, batch_size)
    with attach(pipe, adapter) as reg:
        bank.fingerprint.check(reg.fingerprint, f"concept {bank.name!r}")
        finder = finder_of(masks, Terms(bank.name, tuple(words), without), spread(reg.taps))
        seen = finder.find(reg, pipe, drawn, progress)
        tokens = _fed(reg, pipe, drawn, seen, progress)
        rest = _values_of(reg, pipe, others, progress)
    if not tokens.carry.any():
        raise UVRError(
            f"calibrate_text {bank.name!r}: no token of the {len(unsafe)} prompts feeds the concept's patches, say the "
            "masks; check prompts and masks"
        )
    return _fitted(bank, reg.taps[0], tokens, rest)


def _fed(reg: Regulator, pipe: Any, sampling: Sampling, seen: Seen, progress: Progress | None) -> Tokens:
    """The tokens of the prompts whose pictures show the concept.

    Raises:
        UVRError: none does, or blocks differ in their text tokens.
    """
    parts: list[Tokens] = []

    @contextmanager
    def reading(batch: slice) -> Iterator[Reader]:
        late = _Late(seen.masks[batch], reg.taps[0])
        yield late.read
        if late.shown:
            parts.append(late.tokens())

    for drawn in read_along(reg, pipe, sampling, (reg.taps[0], *spread(reg.taps)), reading, progress):
        seen.check(drawn)
    if not parts:
        raise UVRError(
            f"none of the {len(sampling.prompts)} generated images shows the concept beside other things, say the masks"
        )
    return Tokens(torch.cat([part.values for part in parts]), torch.cat([part.carry for part in parts]))


class _Late:
    """Reads one batch: the text's values in the first step, and its flow contrast in every step."""

    def __init__(self, masks: Mask, first: str):
        rings = np.stack([ring_of(mask) for mask in masks])
        self.shown = [i for i, mask in enumerate(masks) if mask.any() and not (mask | rings[i]).all()]
        self._masks, self._rings, self._first = masks, rings, first
        self._compared: Compared | None = None
        self._values: torch.Tensor | None = None
        self._contrasts: dict[int, list[torch.Tensor]] = {}

    def read(self, call: JointCall) -> None:
        if not self.shown:
            return
        if self._values is None and call.tap == self._first:
            self._values = text_values(call)[self.shown].cpu()
        if self._compared is None:
            self._compared = Compared.of(self._masks, self._rings, call.query.device)
        told = contrast(call, self._compared, references=False)[0][self.shown]
        if self._values is None or told.shape[1] != self._values.shape[1]:
            raise UVRError(f"{call.tap} has other text tokens than {self._first}: nothing tells which carry a concept")
        self._contrasts.setdefault(call.forward.step, []).append(told.float().cpu())

    def tokens(self) -> Tokens:
        """A token carries the concept if its flow contrast is above FEEDS in the mean over blocks and later steps."""
        assert self._values is not None
        steps = sorted(self._contrasts)[len(self._contrasts) // 2 :]
        mean = torch.stack([torch.stack(self._contrasts[step]).mean(0) for step in steps]).mean(0)
        return Tokens(self._values, mean > FEEDS)


def _values_of(reg: Regulator, pipe: Any, sampling: Sampling, progress: Progress | None) -> torch.Tensor:
    """(n, C): values of the text tokens of benign prompts, at most _MOST of them."""
    kept = Reservoir(_MOST, torch.Generator().manual_seed(0))

    @contextmanager
    def reading(batch: slice) -> Iterator[Reader]:
        steps: set[int] = set()

        def read(call: JointCall) -> None:
            if not steps:
                kept.add(text_values(call).flatten(0, 1).cpu())
            steps.add(call.forward.step)

        yield read

    for _ in read_along(reg, pipe, sampling, (reg.taps[0],), reading, progress):
        pass
    assert kept.rows is not None
    return kept.rows


def _fitted(bank: ConceptBank, probe: str, tokens: Tokens, rest: torch.Tensor) -> ConceptBank:
    """The bank with what the tokens tell."""
    held = torch.arange(len(tokens.carry)) % HELD_OUT == HELD_OUT - 1
    held = held if held.any() and tokens.carry[~held].any() and tokens.carry[held].any() else torch.ones_like(held)
    fit = ~held if not held.all() else held
    kept = Reservoir(_MOST, torch.Generator().manual_seed(0))
    kept.add(tokens.values[fit][~tokens.carry[fit]])
    assert kept.rows is not None
    vector, offset = log_odds_among_likes(tokens.values[fit][tokens.carry[fit]], (kept.rows, rest))
    scores, carry = tokens.values[held] @ vector + offset, tokens.carry[held]
    threshold = best_threshold(scores.flatten().numpy(), carry.flatten().numpy(), beta=1.0)
    how = TextCarriers(probe, threshold)
    told = chosen_by(scores, how)
    measured: Mapping[str, list[int]] = {
        "carrying": [int((told & carry).sum()), int(carry.sum())],
        "others": [int((told & ~carry).sum()), int((~carry).sum())],
        "prompts": [int(((told & carry) == carry).all(1).sum()), len(carry)],
    }
    tensors = {key: tensor for key, tensor in bank.tensors.items() if not key.startswith("text")}
    tensors |= {f"text/{probe}": vector[None], f"text_offset/{probe}": torch.tensor([offset])}
    return attrs.evolve(bank, tensors=tensors, text=attrs.evolve(how, measured=dict(measured)))
