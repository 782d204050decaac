"""The one loop that draws pictures: seeds, batches, a generator per image, a negative prompt for each.

What an image shows depends on its seed and, by rounding, on its neighbours in the batch: two runs compare image by
image only if they share both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from .errors import UnsafeContent, UVRError
from .validators import count

if TYPE_CHECKING:
    from .engine.report import Report


class Attached(Protocol):
    """What is read of an attached Regulator."""

    @property
    def report(self) -> Report | None: ...

    last_grid: tuple[int, int] | None


Progress = Callable[[int], None]  # told how many images more are done with
Around = Callable[[slice], AbstractContextManager[Attached]]


@attrs.frozen(eq=False)
class Drawn:
    """One batch of images.

    Attributes:
        first: place of the first image in the whole set.
        images: as the pipeline returns them; None where the regulator withheld one and put nothing in its place.
        report: the regulator's account of the batch; None without one.
        grid: (H, W) of the output patches; None without a regulator.
        seconds: what the pipeline's call took.
    """

    first: int
    images: list[Any]
    report: Report | None
    grid: tuple[int, int] | None
    seconds: float


def _kept(per_image: Mapping[str, Sequence[Any] | None]) -> dict[str, Sequence[Any]]:
    return {name: values for name, values in per_image.items() if values is not None}


@attrs.frozen(eq=False)
class Sampling:
    """What is drawn: image i from prompts[i], with a generator of its own that is seeded with seeds[i].

    Attributes:
        prompts: one per image.
        seeds: one per image.
        per_image: other arguments of the pipeline's call that have a value for each image, such as `image` (the source
            pictures of an editing pipeline) or `prompt_2`. One that is None is left out.
        call: arguments that hold for all: steps, size, guidance... A negative prompt that is text is given once for
            every image, since some pipelines refuse one for all.
        batch_size: images at a time, >= 1.

    Raises:
        UVRError: numbers that do not match, or a batch size below 1.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    per_image: Mapping[str, Sequence[Any]] = attrs.field(factory=dict, converter=_kept)
    call: Mapping[str, Any] = attrs.field(factory=dict)
    batch_size: int = attrs.field(default=8, validator=count())

    def __attrs_post_init__(self) -> None:
        for name, values in {"seeds": self.seeds, **self.per_image}.items():
            if len(values) != len(self.prompts):
                name = "source images" if name == "image" else name
                raise UVRError(f"{name}: expected one per prompt, got {len(values)} for {len(self.prompts)} prompts")

    def batches(self) -> list[slice]:
        """Which images are drawn together."""
        total = len(self.prompts)
        return [slice(start, min(start + self.batch_size, total)) for start in range(0, total, self.batch_size)]

    def arguments(self, batch: slice) -> dict[str, Any]:
        """Keyword arguments of the pipeline's call that draws one batch, with fresh generators."""
        import torch

        arguments = {**self.call, "prompt": list(self.prompts[batch])}
        arguments |= {name: list(values[batch]) for name, values in self.per_image.items()}
        if isinstance(negative := arguments.get("negative_prompt"), str):
            arguments["negative_prompt"] = [negative] * len(arguments["prompt"])
        arguments["generator"] = [torch.Generator().manual_seed(int(seed)) for seed in self.seeds[batch]]
        return arguments

    def draw(
        self, pipe: Any, around: Attached | Around | None = None, progress: Progress | None = None
    ) -> Iterator[Drawn]:
        """Draw batch by batch; nothing is drawn before it is asked for.

        Args:
            pipe: a diffusers pipeline.
            around: None: stock. An attached Regulator: in force for all, and stays attached. A function of the batch
                (a slice of the images) that gives a context with a Regulator, such as an attach: left after the batch.
            progress: called with the number of images, when the taker of a batch has done with it.

        Raises:
            UVRError: the pipeline gives another number of images than there are prompts. What the pipeline and the
                regulator raise, except UnsafeContent of a regulated call: then every image of the batch is None.
        """
        for batch in self.batches():
            size = batch.stop - batch.start
            with around(batch) if callable(around) else nullcontext(around) as regulator:
                began = time.perf_counter()
                try:
                    images = list(pipe(**self.arguments(batch)).images)
                except UnsafeContent:
                    if regulator is None:
                        raise
                    images = [None] * size
                seconds = time.perf_counter() - began
                report, grid = (None, None) if regulator is None else (regulator.report, regulator.last_grid)
            if len(images) != size:
                raise UVRError(f"expected one image per prompt, got {len(images)} for {size} prompts")
            yield Drawn(batch.start, images, report, grid, seconds)
            if progress is not None:
                progress(size)


def nonblank(name: str, prompts: Sequence[str]) -> list[str]:
    """The prompts that are not blank. Raises UVRError: there is none."""
    prompts = [prompt for prompt in prompts if prompt.strip()]
    if not prompts:
        raise UVRError(f"{name}: no prompts given; expected at least one")
    return prompts
