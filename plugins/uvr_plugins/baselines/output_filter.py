"""The output filter: generate as usual, then drop what a judge objects to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from uvr_core.errors import UVRError
from uvr_core.protocols import Request

from .extra_forward import generate


@attrs.frozen
class OutputFilter:
    """Drop (None) the images in which any of the request's judges reports a label of a subject.

    Judged by the same judges it erases everything, by construction: it is the ceiling of erasing, at the price of the
    whole picture. Time includes the judging.

    Attributes:
        judges: names of the judges to ask; empty: all of the request.
    """

    judges: tuple[str, ...] = ()
    name: str = "output-filter"

    def generate(self, request: Request) -> Sequence[Any]:
        judges = {name: judge for name, judge in request.judges.items() if not self.judges or name in self.judges}
        if not judges:
            asked = ", ".join(self.judges) or "any"
            raise UVRError(
                f"output-filter: the request brings no judge (asked for: {asked}; there are: "
                f"{', '.join(request.judges) or 'none'}); give the evaluation a judge"
            )
        labels = {label for subject in request.subjects for label in subject.labels}
        images = generate(request)
        unsafe = [False] * len(images)
        for judge in judges.values():
            for index, seen in enumerate(judge(images)):
                unsafe[index] = unsafe[index] or bool(labels & set(seen))
        return [None if bad else image for bad, image in zip(unsafe, images, strict=True)]
