"""The Adapter: all that is known about a model family, as data.

Text length is never declared. The image span is anchored to one end of the key axis; what is left is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import attrs
import torch

from .errors import AdapterMismatch

Arguments = Mapping[str, Any]


def _grid(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple) or len(value) != 2 or not all(isinstance(n, int) and n > 0 for n in value):
        raise AdapterMismatch(f"Layout.{attribute.name}: expected (H, W) in patches, got {value!r}")


def _whole(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int) or value < 0:
        raise AdapterMismatch(f"Layout.{attribute.name}: expected a number of tokens, got {value!r}")


@attrs.frozen
class Layout:
    """Which image tokens there are in one root forward.

    Attributes:
        grid: (H, W) of the output patches.
        references: (H, W) of each reference image's patches, in token order.
        padding: number of tokens between text and image that are neither, such as what fills a picture up to a
            multiple. They are no text token and no patch: nothing is read off them, and their rows are not edited. What
            they have read of the text they carry: a factor that a row gives to all of its text is theirs too.
        order: where samples differ in where their tokens lie, or roles are interleaved: number of tokens of an axis ->
            (B, tokens) index on the CPU, in each row a permutation that puts that axis into the order that the adapter
            declares. Calls are gathered by it before they are read or edited, and scattered after. It may be asked for
            queries and for keys.

    Raises:
        AdapterMismatch: a grid is not two positive whole numbers, or the padding is negative.
    """

    grid: tuple[int, int] = attrs.field(validator=_grid)
    references: tuple[tuple[int, int], ...] = attrs.field(default=(), validator=attrs.validators.deep_iterable(_grid))
    padding: int = attrs.field(default=0, validator=_whole)
    order: Callable[[int], torch.Tensor] | None = attrs.field(default=None, eq=False)

    @property
    def output(self) -> int:
        """Number of output patches N."""
        return self.grid[0] * self.grid[1]

    @property
    def image(self) -> int:
        """Number of image tokens I, of output and references."""
        return self.output + sum(height * width for height, width in self.references)


def _paths(instance: object, attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    if not value or not all(isinstance(path, str) and path for path in value):
        raise AdapterMismatch(f"Adapter.{attribute.name}: expected a non-empty tuple of module paths, got {value!r}")


def _guidance(instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    kind, _, parts = value.partition(":")
    letters = all(parts.count(letter) == (letter in "uci") for letter in parts)
    batched = kind == "batched" and letters and len(parts) > 1 and "c" in parts
    if not batched and value not in ("two_pass", "single"):
        raise AdapterMismatch(
            'Adapter.guidance: expected "two_pass", "single", or "batched:" and two or three of the letters u, c and '
            f"i, once each and c among them, got {value!r}"
        )


def matching(model: torch.nn.Module, pattern: str) -> dict[str, torch.nn.Module]:
    """{path: module} of the modules whose whole path a pattern matches, `*` standing for one path element."""
    regex = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
    names = {name.replace("_orig_mod.", ""): module for name, module in model.named_modules()}  # of torch.compile
    return {path: module for path, module in names.items() if regex.fullmatch(path)}


def _caller(pipeline: type) -> str:
    """The name of the class whose own a pipeline's call is."""
    return next((cls.__name__ for cls in pipeline.__mro__ if "__call__" in vars(cls)), "")


@attrs.frozen
class TextRoute:
    """A way by which text reaches the picture beside joint attention. It is not regulated; the report shows it.

    Attributes:
        name: two or three words, e.g. "pooled text".
        description: what it carries, and where it enters: one line.
        arguments: arguments of the forward that carry it.
        modules: module paths through which it goes, as in `Adapter.attention`.
    """

    name: str
    description: str
    arguments: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


@attrs.frozen
class Adapter:
    """What the engine must know of a model family.

    Attributes:
        name: registered name.
        model: class name of the transformer, e.g. "FluxTransformer2DModel".
        attention: module paths of the joint attention, `*` standing for one path element; full match. Patterns
            are tried in order and the taps are numbered in order of execution: pattern, then block number.
        layout: bound root arguments -> Layout; None: this forward draws nothing, as one that fills a cache with the
            references before the first step. Such a forward passes as it is; it is refused inside a step, and counted
            in the report.
        time: bound root arguments -> noise level sigma per sample (B,), 1 = pure noise, 0 = clean.
        image_at: end of the key axis at which the image span lies.
        output_first: whether output patches come before reference tokens within the image span.
        guidance: how guidance branches reach the model. "two_pass": one pass each, told apart by the name that the
            pipeline gives through `cache_context` ("cond", "uncond"), else by order, the conditional first.
            "batched:" and two or three letters, e.g. "batched:uc": one pass over a batch of parts in that order,
            unconditional (u), conditional (c), with the references alone (i). How many there are follows from the
            images that the pipeline was asked for; parts that do not hold the same latents are none.
            "single": no guidance branch.
        probes: patterns (a subset of `attention`) among which a probe block may be chosen.
        text_output: whether queries include the text tokens.
        tokenizers: the pipeline's attributes that hold the tokenizers whose tokens lie on the text axis, in that
            order. Through them baselines tell where a word's token lies.
        pipelines: class names of the pipelines whose order of guidance parts this is. Of a pipeline that is not listed
            every forward and row without a name is regulated.
        edits: of `pipelines`, those whose source can be looked at before it is edited: their call takes as `image` one
            source or one for each `prompt`, and the text encoder's, if it reads pictures, is made of these two alone.
        text: bound root arguments -> number of text tokens, to be found again in every tap; None: not checked.
        latents: name of the root argument that holds the latents, a tensor or a list with an entry per sample.
        routes: ways by which text reaches the picture beside the joint attention.
    """

    name: str
    model: str
    attention: tuple[str, ...] = attrs.field(validator=_paths)
    layout: Callable[[Arguments], Layout | None]
    time: Callable[[Arguments], torch.Tensor]
    image_at: Literal["start", "end"] = attrs.field(default="end", validator=attrs.validators.in_(("start", "end")))
    output_first: bool = True
    guidance: str = attrs.field(default="two_pass", validator=_guidance)
    probes: tuple[str, ...] = ()
    text_output: bool = True
    tokenizers: tuple[str, ...] = ()
    pipelines: tuple[str, ...] = ()
    edits: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    text: Callable[[Arguments], int] | None = None
    latents: str = "hidden_states"
    routes: tuple[TextRoute, ...] = attrs.field(
        default=(), validator=attrs.validators.deep_iterable(attrs.validators.instance_of(TextRoute))
    )

    def recognises(self, model: object) -> bool:
        """Whether `model` is of this adapter's class (by class name along the MRO, so subclasses count)."""
        return any(cls.__name__ == self.model for cls in type(model).__mro__)

    def drives(self, pipeline: type) -> bool:
        """Whether the call of a pipeline's class is one of the listed ones' own."""
        return _caller(pipeline) in self.pipelines

    def shows_sources(self, pipeline: type) -> bool:
        """Whether the source of a pipeline of this class can be looked at before it is edited."""
        return _caller(pipeline) in self.edits

    def taps(self, model: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """{path: module} of the joint attention modules, in order of execution.

        Raises:
            AdapterMismatch: a pattern matches no module; the message lists what matched and what was missed.
        """
        taps: dict[str, torch.nn.Module] = {}
        missed = []
        for pattern in self.attention:
            matched = matching(model, pattern)
            if not matched:
                missed.append(pattern)
            taps.update(matched)
        if missed:
            raise AdapterMismatch(
                f"adapter {self.name!r} on {type(model).__name__}: no module matches {', '.join(map(repr, missed))} "
                f"({len(taps)} modules matched the other patterns); the model's blocks are named otherwise: "
                "write an adapter for it"
            )
        return taps

    def probe_paths(self, model: torch.nn.Module) -> tuple[str, ...]:
        """The taps among which a probe block may be chosen."""
        patterns = self.probes or self.attention
        regexes = [re.compile(re.escape(p).replace(r"\*", r"[^.]+")) for p in patterns]
        return tuple(path for path in self.taps(model) if any(r.fullmatch(path) for r in regexes))
