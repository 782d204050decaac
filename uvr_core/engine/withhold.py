"""Which images stay back, and what stands in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import torch

from ..errors import UnsafeContent, UVRError


@attrs.frozen
class Refusal:
    """Why an image is withheld: the concept, the scheduler step, and what to put in its place."""

    concept: str
    step: int
    placeholder: Any = None


def images_of(result: Any) -> Any:
    """The images of a pipeline's result: the first entry of a tuple, a list or array itself, else its `images`; None if
    it has none, or, as the state of a modular pipeline, holds them beside what they were made of."""
    if isinstance(result, (list, np.ndarray, torch.Tensor)):
        return result
    if isinstance(getattr(result, "values", None), dict):
        return None
    return result[0] if isinstance(result, tuple) else getattr(result, "images", None)


def check_count(result: Any, batch: int) -> None:
    """Raise UVRError unless the rows that followed the prompt, `batch` of them, are the images of a pipeline's result:
    else some image was no regulated row."""
    images = images_of(result)
    if images is not None and batch and (not len(images) or batch % len(images)):
        raise UVRError(
            f"the pipeline returned {len(images)} images, where {batch} rows of the batch followed the prompt: its "
            "guidance is laid out in a way that UVR does not know; the images are withheld"
        )


def with_images(result: Any, images: Any) -> Any:
    """A pipeline's result with other images, of which `images_of` gave some."""
    if images_of(result) is result:
        return images
    if isinstance(result, tuple):
        return (images, *result[1:])
    result.images = images
    return result


def without_refused(result: Any, refusals: Mapping[int, Refusal], batch: int, step: int) -> Any:
    """A pipeline's result with the refused images replaced; arrays and tensors become lists, to hold None.

    Args:
        result: a tuple whose first entry are the images, an object with `images`, or the images.
        refusals: by image.
        batch: images of the run.
        step: its last step.

    Raises:
        UnsafeContent: the result does not say which image is which.
    """
    if not refusals:
        return result
    images = images_of(result)
    if images is None or len(images) != batch:
        raise UnsafeContent(
            f"{len(refusals)} of {batch} images are refused and the pipeline's result "
            f"({type(result).__name__}) does not say which is which; none is returned"
            + ('; call a modular pipeline with output="images"' if images is None else ""),
            concept=next(iter(refusals.values())).concept,
            samples=tuple(sorted(refusals)),
            step=step,
        )
    return with_images(result, [refusals[i].placeholder if i in refusals else image for i, image in enumerate(images)])
