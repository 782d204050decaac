"""Options that commands share. What can be told to be wrong early is."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
import click

from .. import plugins
from ..errors import PluginError, UVRError, did_you_mean
from ..signatures import call_of
from .prompts import Prompt

F = TypeVar("F", bound=Callable[..., Any])


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """WxH in pixels -> (width, height)."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", value)
    if not match or not int(match[1]) * int(match[2]):
        raise click.BadParameter(f"expected WIDTHxHEIGHT in pixels, like 512x512, got {value!r}", ctx, param)
    return int(match[1]), int(match[2])


@attrs.frozen(kw_only=True)
class Settings:
    """How to run the pipeline; what is None is left to it."""

    adapter: str | None
    steps: int | None
    guidance: float | None
    true_cfg: float | None
    negative: str | None
    size: tuple[int, int] | None
    max_tokens: int | None
    seed: int
    batch: int
    device: str
    dtype: str

    def seeds(self, prompts: Sequence[Prompt]) -> list[int]:
        """One per prompt: its own, else --seed + its place."""
        return [self.seed + i if prompt.seed is None else prompt.seed for i, prompt in enumerate(prompts)]

    def call(self, pipe: Any) -> dict[str, Any]:
        """Keyword arguments of the pipeline's call.

        Raises:
            UVRError: an option was given that this pipeline does not take.
        """
        width, height = self.size or (None, None)
        # True guidance needs a negative prompt to run its second pass; the empty one is the unconditional branch.
        negative = "" if self.negative is None and self.true_cfg is not None else self.negative
        wanted = (
            ("--steps", "num_inference_steps", self.steps),
            ("--guidance", "guidance_scale", self.guidance),
            ("--true-cfg", "true_cfg_scale", self.true_cfg),
            ("--negative" if self.negative is not None else "--true-cfg", "negative_prompt", negative),
            ("--size", "width", width),
            ("--size", "height", height),
            ("--max-tokens", "max_sequence_length", self.max_tokens),
        )
        arguments = call_of(pipe)
        for option, name, value in wanted:
            if value is not None and name not in arguments:
                raise UVRError(f"{option}: {type(pipe).__name__} takes no {name}; leave the option out")
        call = {name: value for _, name, value in wanted if value is not None}
        if width and height and "max_area" in arguments:
            # Kontext scales any size to an area, and the source to its own.
            call |= {"max_area": width * height, "_auto_resize": False}
        return call


_OPTIONS = (
    click.option("--adapter", metavar="NAME", help="Adapter; else recognised by the transformer's class."),
    click.option("--steps", type=click.IntRange(1), help="Denoising steps; else the pipeline's default."),
    click.option("--guidance", type=click.FloatRange(0), help="Guidance scale; else the pipeline's default."),
    click.option("--true-cfg", type=click.FloatRange(0), help="True guidance scale: a second pass with --negative."),
    click.option("--negative", metavar="TEXT", help="Negative prompt.  [default: empty, with --true-cfg]"),
    click.option(
        "--size", metavar="WxH", callback=_size, help="Size in pixels, like 512x512; else the pipeline's default."
    ),
    click.option("--max-tokens", type=click.IntRange(1), help="Length to which prompts are padded or cut."),
    click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Image i is drawn with seed + i."
    ),
    click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Images at a time."),
    click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps; auto: cuda if there is one."),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="auto: float32 on the CPU, else bfloat16.",
    ),
)


def generation_options(command: F) -> F:
    """Add the options of everything that runs a pipeline; the command gets them as `settings`."""

    @functools.wraps(command)
    def inner(**options: Any) -> Any:
        settings = Settings(**{field.name: options.pop(field.name) for field in attrs.fields(Settings)})
        return command(settings=settings, **options)

    wrapped: Any = inner
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output on stdout.")


def check_registered(kind: str, name: str | None) -> None:
    """Raise PluginError, with a hint, unless the name is registered (None passes). Imports nothing."""
    if name is not None and name not in (names := plugins.registry().names(kind)):
        raise PluginError(f"unknown {kind} {name!r}{did_you_mean(name, names)}")
