"""Where a concept is in pictures that are about to be read: the kinds of `masks=`, each with what it must draw."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import attrs
import numpy as np
import numpy.typing as npt
import torch

from ..engine.readings import Reader, word_mass
from ..engine.regulator import Regulator
from ..errors import UVRError, did_you_mean
from ..intercept.calls import JointCall
from ..ops.masks import Mask
from ..sampling import Drawn, Progress, Sampling
from ..tokens import Role
from .record import read_along
from .regions import MaskSource, mask_of, shown_by
from .words import columns_of, spans_of

SAME = 16.0  # mean difference, of 255, up to which a picture drawn twice counts as the same
KINDS = ("pairs", "words")
LEVEL = 0.25  # of the largest value, less outliers, from which a patch is the concept's

Floats = npt.NDArray[np.floating[Any]]


@attrs.frozen
class Terms:
    """What is known of a concept in words.

    Attributes:
        name: its name.
        words: what prompts call it; empty: its name.
        without: each prompt without it; None: the prompts less the words.
    """

    name: str
    words: tuple[str, ...] = ()
    without: Sequence[str] | None = None

    @property
    def called(self) -> tuple[str, ...]:
        """The words, or the name."""
        return self.words or (self.name,)


@attrs.frozen(eq=False)
class Seen:
    """What the pictures of a set show.

    Attributes:
        masks: (images, H, W) bool.
        by_source: (images,) bool, whether the source image shows the concept; None: not known.
        pictures: (images, 16, 16, 3) thumbnails, to know each again; None: they were not drawn.
    """

    masks: Mask
    by_source: Mask | None = None
    pictures: Floats | None = None

    def check(self, drawn: Drawn) -> None:
        """Raise UVRError where a batch, drawn again, shows other pictures."""
        rows = slice(drawn.first, drawn.first + len(drawn.images))
        if self.pictures is None:
            return
        apart = np.abs(self.pictures[rows] - thumbnails(drawn.images)).mean((1, 2, 3))
        if apart.max() > SAME:
            raise UVRError(
                f"image {drawn.first + int(apart.argmax())} is another picture when it is drawn again from the same "
                f"seed (mean difference {apart.max():.0f} of 255): a pipeline whose pictures hang on more than its "
                "generators cannot be collected from; draw them yourself and pass `masks` as an array"
            )


class Finder(Protocol):
    """One kind of `masks=`. `name` goes into the provenance; `passes` is how often each prompt is drawn."""

    @property
    def name(self) -> str: ...

    @property
    def passes(self) -> int: ...

    def find(self, reg: Regulator, pipe: Any, sampling: Sampling, progress: Progress | None) -> Seen:
        """Draw what it takes to say where the concept is."""
        ...


def finder_of(masks: MaskSource | Any, terms: Terms, probes: Sequence[str] = ()) -> Finder:
    """The finder that a `masks=` names. Raises UVRError: another word than "pairs" or "words"."""
    if isinstance(masks, str):
        if masks not in KINDS:
            raise UVRError(
                f"masks: expected a callable, an array, 'pairs' or 'words', got {masks!r}{did_you_mean(masks, KINDS)}"
            )
        return Pairs(terms) if masks == "pairs" else Words(terms, tuple(probes))
    return Asked(masks) if callable(masks) else Given(masks)


@attrs.frozen(eq=False)
class Given:
    """An array of a user's masks: nothing is drawn."""

    array: Any
    name: str = "array"
    passes: int = 1

    def find(self, reg: Regulator, pipe: Any, sampling: Sampling, progress: Progress | None) -> Seen:
        masks = np.asarray(self.array, dtype=bool)
        if masks.ndim != 3 or len(masks) != len(sampling.prompts):
            raise UVRError(
                f"masks: expected {len(sampling.prompts)} of them (images, rows, columns of patches), one per prompt, "
                f"got an array of shape {masks.shape}"
            )
        return Seen(masks)


@attrs.frozen(eq=False)
class Asked:
    """A detector or segmenter that is shown the pictures."""

    ask: MaskSource
    passes: int = 2

    @property
    def name(self) -> str:
        return getattr(self.ask, "__qualname__", type(self.ask).__name__)

    def find(self, reg: Regulator, pipe: Any, sampling: Sampling, progress: Progress | None) -> Seen:
        sources = sampling.per_image.get("image")
        parts = []
        for drawn in sampling.draw(pipe, reg, progress):
            assert drawn.grid is not None
            masks = mask_of(self.ask, drawn.images, drawn.grid, drawn.first)
            by_source = shown_by(self.ask, sources, drawn.first, len(masks), drawn.grid)
            parts.append(Seen(masks, by_source, thumbnails(drawn.images)))
        return _joined(parts)


@attrs.frozen(eq=False)
class Words:
    """Patches that attend to the concept's own words more than the rest of their picture does.

    A patch's attention mass on the words' tokens over the mean of its picture, the mean over probes and steps; see
    `peaks` for the patches that count. Where a picture lies in the attention of FLUX was shown by ConceptAttention
    (Helbling et al. 2025, arXiv 2502.04320), with tokens of its own; here the prompt's are read.
    """

    terms: Terms
    probes: tuple[str, ...]
    name: str = "words"
    passes: int = 2

    def find(self, reg: Regulator, pipe: Any, sampling: Sampling, progress: Progress | None) -> Seen:
        unnamed = [prompt for prompt in sampling.prompts if not spans_of(prompt, self.terms.called)]
        if len(unnamed) == len(sampling.prompts):
            raise UVRError(
                f"masks 'words': no prompt says {' or '.join(map(repr, self.terms.called))}; pass `words`, what the "
                f"prompts call the concept (the first prompt: {sampling.prompts[0]!r})"
            )
        parts: list[Seen] = []
        flow: list[torch.Tensor] = []

        @contextmanager
        def reading(batch: slice) -> Iterator[Reader]:
            prompts, told = sampling.prompts[batch], torch.zeros(0)
            flow.clear()

            def read(call: JointCall) -> None:
                nonlocal told
                if not len(told):
                    tokens = call.keys.count(Role.TEXT)
                    told = torch.zeros(len(prompts), tokens, dtype=torch.bool)
                    for row, columns in zip(
                        told, columns_of(pipe, reg.adapter, prompts, self.terms.called, tokens), strict=True
                    ):
                        row[columns] = True
                mass = word_mass(call, told.to(call.query.device))
                flow[:] = [sum(flow, mass / mass.mean(1, keepdim=True).clamp_min(1e-12))]

            yield read

        for drawn in read_along(reg, pipe, sampling, self.probes, reading, progress):
            assert drawn.grid is not None
            mass = flow[0].cpu().numpy().reshape(-1, *drawn.grid)
            parts.append(Seen(peaks(mass), None, thumbnails(drawn.images)))
        return _joined(parts)


@attrs.frozen(eq=False)
class Pairs:
    """Patches in which a picture differs from that of the prompt without the concept, from the same seed.

    The difference is that of a patch's pixels; see `peaks`. A mask from what two texts make of one noise is the
    idea of DiffEdit (Couairon et al. 2022, arXiv 2210.11427), which compares predictions; here the pictures are.
    """

    terms: Terms
    name: str = "pairs"
    passes: int = 3

    def find(self, reg: Regulator, pipe: Any, sampling: Sampling, progress: Progress | None) -> Seen:
        others = self.terms.without
        if others is None:
            others = [_less(prompt, self.terms.called) for prompt in sampling.prompts]
        if len(others) != len(sampling.prompts):
            raise UVRError(f"without: expected one per prompt, got {len(others)} for {len(sampling.prompts)} prompts")
        for place, (prompt, other) in enumerate(zip(sampling.prompts, others, strict=True)):
            if prompt == other:
                raise UVRError(
                    f"masks 'pairs': prompt {place} has no counterpart without the concept: {prompt!r}; pass "
                    f"`without`, or `words` that it says (told: {', '.join(self.terms.called)})"
                )
        parts = []
        pair = zip(
            sampling.draw(pipe, reg, progress), attrs.evolve(sampling, prompts=others).draw(pipe, reg, progress),
            strict=True,
        )  # fmt: skip
        for drawn, plain in pair:
            assert drawn.grid is not None
            masks = peaks(difference(drawn.images, plain.images, drawn.grid))
            parts.append(Seen(masks, None, thumbnails(drawn.images)))
        return _joined(parts)


def peaks(values: Floats) -> Mask:
    """(B, H, W) bool: where values >= 0 reach a quarter of their picture's 98% quantile; none where all are alike.

    The quantile stands for the largest, less its outliers, so that the rule hangs on neither the size of the grid nor
    that of the concept. Measured in docs/design/measurements.md.
    """
    flat = values.reshape(len(values), -1)
    high = np.quantile(flat, 0.98, axis=1)
    level = np.where(high > np.median(flat, axis=1) * 1.5, LEVEL * high, np.inf)
    return np.asarray(values >= level[:, None, None], dtype=bool)


def difference(images: Sequence[Any], others: Sequence[Any], grid: tuple[int, int]) -> Floats:
    """(B, H, W): root of the mean squared difference of each patch's pixels, 0..255."""
    rows, columns = grid
    apart = []
    for image, other in zip(images, others, strict=True):
        first, second = (np.asarray(picture.convert("RGB"), dtype=np.float32) for picture in (image, other))
        pixels = torch.from_numpy(np.square(first - second).mean(-1))
        apart.append(torch.nn.functional.adaptive_avg_pool2d(pixels[None], (rows, columns))[0].sqrt().numpy())
    return np.stack(apart)


def thumbnails(images: Sequence[Any]) -> Floats:
    """(B, 16, 16, 3) float32, 0..255."""
    return np.stack([np.asarray(image.convert("RGB").resize((16, 16)), dtype=np.float32) for image in images])


def _less(prompt: str, words: Sequence[str]) -> str:
    """The prompt with the words taken out, and what is left of their places mended."""
    for first, end in reversed(spans_of(prompt, words)):
        prompt = prompt[:first] + prompt[end:]
    return re.sub(r"\s+", " ", re.sub(r"(?i)\b(an?|the)\s+(?=(in|on|at|and|,|\.)\W|$|[,.])", "", prompt)).strip()


def _joined(parts: Sequence[Seen]) -> Seen:
    sources = [part.by_source for part in parts if part.by_source is not None]
    pictures = [part.pictures for part in parts if part.pictures is not None]
    return Seen(
        np.concatenate([part.masks for part in parts]),
        np.concatenate(sources) if sources else None,
        np.concatenate(pictures) if pictures else None,
    )
