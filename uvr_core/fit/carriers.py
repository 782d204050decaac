"""Fit and choose how it is told which tokens of a prompt carry a concept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np
import torch

from ..concepts import ConceptBank, TextCarriers
from ..engine.attach import attach
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

HELD_OUT = 3  # every third prompt chooses thresholds
GROW = -2.0  # log odds, one to seven: so far down carriers grow along the text (docs/design/measurements.md)
_MOST = 8192  # tokens of a kind that are kept
_ASKED = 512  # benign prompts that are held out, at most
_BRIEF = 2  # steps of a benign prompt: its picture is of no use, and text is read in the first


@attrs.define(eq=False)
class Tokens:
    """Text tokens of some prompts, by their values in the first step. It does not grow with prompts, but for those that
    carry the concept.

    Attributes:
        carrying: (n, C) of each prompt, those that fed the concept's patches in the later steps.
        others: at most _MOST of the rest; count: of so many.
    """

    carrying: list[torch.Tensor] = attrs.field(factory=list)
    others: Reservoir = attrs.field(factory=lambda: Reservoir(_MOST, torch.Generator().manual_seed(0)))
    count: int = 0

    def add(self, values: torch.Tensor, carry: torch.Tensor) -> None:
        """Add a prompt's tokens: values (T, C), carry (T,) bool."""
        self.carrying.append(values[carry])
        self.others.add(values[~carry])
        self.count += int((~carry).sum())

    @property
    def rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, C) and (m, C): all that carry the concept, and the others that were kept."""
        assert self.others.rows is not None
        return torch.cat(self.carrying), self.others.rows


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
    max_false_positive: float = 0.01,
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
        max_false_positive: share of benign prompts, of which every third is held out for that, that may count as
            asking for the concept, in [0, 1).

    Returns:
        The bank with `text`, its tensors, and in `text.measured` on how many tokens and prompts.

    Raises:
        UVRError: no prompts, no image that shows the concept, no token that feeds it, or blocks that differ in the
            number of text tokens.
        ConceptMismatch: a bank of another model.
    """
    if not 0 <= max_false_positive < 1:
        raise UVRError(f"max_false_positive: expected a number in [0, 1), got {max_false_positive!r}")
    unsafe, benign = nonblank("prompts", prompts), nonblank("benign_prompts", benign_prompts)
    call, first = dict(generate or {}), seed + len(unsafe)
    drawn = Sampling(unsafe, range(seed, first), {"image": sources}, call, batch_size)
    brief = {**call, "num_inference_steps": min(int(call.get("num_inference_steps", _BRIEF)), _BRIEF)}
    others = Sampling(benign, range(first, first + len(benign)), {"image": benign_sources}, brief, batch_size)
    with attach(pipe, adapter) as reg:
        bank.fingerprint.check(reg.fingerprint, f"concept {bank.name!r}")
        finder = finder_of(masks, Terms(bank.name, tuple(words), without), spread(reg.taps))
        seen = finder.find(reg, pipe, drawn, progress)
        fit, held = _fed(reg, pipe, drawn, seen, progress)
        rest, apart = _values_of(reg, pipe, others, progress)
    if not sum(map(len, fit.carrying)):
        raise UVRError(
            f"calibrate_text {bank.name!r}: no token of the {len(unsafe)} prompts feeds the concept's patches, say the "
            "masks; check prompts and masks"
        )
    held = held if sum(map(len, held.carrying)) else fit
    return _asking(_fitted(bank, reg.taps[0], fit, held, rest), held, apart, max_false_positive)


def _held_out(number: int) -> bool:
    """Whether the prompt of that number chooses thresholds, and is not fitted on."""
    return number % HELD_OUT == HELD_OUT - 1


def _fed(reg: Regulator, pipe: Any, sampling: Sampling, seen: Seen, progress: Progress | None) -> tuple[Tokens, Tokens]:
    """The tokens of the prompts whose pictures show the concept: to fit, and held out.

    Raises:
        UVRError: none does, or blocks differ in their text tokens.
    """
    fit, held = Tokens(), Tokens()
    number = 0

    @contextmanager
    def reading(batch: slice) -> Iterator[Reader]:
        nonlocal number
        late = _Late(seen.masks[batch], reg.taps[0])
        yield late.read
        for values, carry in late.tokens():
            (held if _held_out(number) else fit).add(values, carry)
            number += 1

    for drawn in read_along(reg, pipe, sampling, (reg.taps[0], *spread(reg.taps)), reading, progress):
        seen.check(drawn)
    if not number:
        raise UVRError(
            f"none of the {len(sampling.prompts)} generated images shows the concept beside other things, say the masks"
        )
    return fit, held


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

    def tokens(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of each shown prompt, values (T, C) and which carry the concept, (T,) bool: by a flow contrast above FEEDS in
        the mean over blocks and later steps."""
        if self._values is None:
            return []
        steps = sorted(self._contrasts)[len(self._contrasts) // 2 :]
        mean = torch.stack([torch.stack(self._contrasts[step]).mean(0) for step in steps]).mean(0)
        return list(zip(self._values, mean > FEEDS, strict=True))


def _values_of(
    reg: Regulator, pipe: Any, sampling: Sampling, progress: Progress | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Values of benign prompts' text tokens: (n, C), at most _MOST of them, and (T, C) of each prompt held out."""
    kept, apart = Reservoir(_MOST, torch.Generator().manual_seed(0)), list[torch.Tensor]()

    @contextmanager
    def reading(batch: slice) -> Iterator[Reader]:
        steps: set[int] = set()

        def read(call: JointCall) -> None:
            if not steps:
                for number, values in enumerate(text_values(call).cpu(), batch.start):
                    if not _held_out(number):
                        kept.add(values)
                    elif len(apart) < _ASKED:
                        apart.append(values.half())
            steps.add(call.forward.step)

        yield read

    for _ in read_along(reg, pipe, sampling, (reg.taps[0],), reading, progress):
        pass
    assert kept.rows is not None
    return kept.rows, apart


def _fitted(bank: ConceptBank, probe: str, fit: Tokens, held: Tokens, rest: torch.Tensor) -> ConceptBank:
    """The bank with what the tokens tell."""
    carrying, others = fit.rows
    vector, offset = log_odds_among_likes(carrying, (others, rest))
    carrying, others = (rows @ vector + offset for rows in held.rows)
    each = held.count / max(len(others), 1)  # so many stand behind one that was kept
    truth = np.arange(len(carrying) + len(others)) < len(carrying)
    threshold = best_threshold(
        torch.cat([carrying, others]).numpy(), truth, beta=1.0, weight=np.where(truth, 1.0, each)
    )
    prompts = [rows @ vector + offset >= threshold for rows in held.carrying]
    measured: dict[str, list[int]] = {
        "carrying": [int((carrying >= threshold).sum()), len(carrying)],
        "others": [round(int((others >= threshold).sum()) * each), held.count],
        "prompts": [sum(bool(told.all()) for told in prompts), len(prompts)],
    }
    tensors = {key: tensor for key, tensor in bank.tensors.items() if not key.startswith("text")}
    tensors |= {f"text/{probe}": vector[None], f"text_offset/{probe}": torch.tensor([offset])}
    how = TextCarriers(probe, threshold, grow=min(GROW, threshold), measured=measured)
    return attrs.evolve(bank, tensors=tensors, text=how)


def _asking(bank: ConceptBank, held: Tokens, apart: Sequence[torch.Tensor], budget: float) -> ConceptBank:
    """The bank with the score from which a prompt asks for the concept: above the benign prompts' best but for a share
    `budget` of them, and no less than what carries it. Without benign prompts held out it stays unknown."""
    how = bank.text
    assert how is not None
    vector, offset = bank.tensor("text", how.probe)[0], float(bank.tensor("text_offset", how.probe)[0])
    best = sorted((float((values.float() @ vector).max()) + offset for values in apart), reverse=True)
    if not best:
        return bank
    bar = max(how.threshold, float(np.nextafter(best[int(budget * len(best))], np.inf)))
    told = [bool((rows @ vector + offset >= bar).any()) for rows in held.carrying]
    counts = {"asking": [sum(told), len(told)], "benign": [sum(score >= bar for score in best), len(best)]}
    return attrs.evolve(bank, text=attrs.evolve(how, asks=bar, measured={**how.measured, **counts}))
