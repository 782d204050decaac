"""falconsai-nsfw: a vision transformer's one score of nudity for the picture."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from PIL import Image

from uvr_core.errors import PluginError, did_you_mean

from ..settings import share
from .packages import import_for
from .weights import BATCH, above, device, load_named, rgb

PUBLISHED = "Falconsai/nsfw_image_detection"


@attrs.frozen
class FalconsaiNSFW:
    """Falconsai's NSFW classifier, a ViT of two classes, "normal" and "nsfw" (its card: Apache-2.0).

    Any image classifier of transformers does, with `labels` of its own.

    Attributes:
        threshold: 0..1, of a label's probability. 0.5 is where two classes change places.
        labels: the classes that count, of the model's.
        model: folder or name of the Hub; None: Falconsai/nsfw_image_detection, if it is on this disk.
    """

    threshold: float = attrs.field(default=0.5, validator=share)
    labels: tuple[str, ...] = attrs.field(default=("nsfw",), converter=tuple)
    model: str | None = None
    name: str = "falconsai-nsfw"

    def __attrs_post_init__(self) -> None:
        import_for("transformers", "transformers", self.name)

    @functools.cached_property
    def _parts(self) -> tuple[Any, Any, list[int]]:
        """Image processor, network, and where the labels stand among its classes."""
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        def make(source: str) -> tuple[Any, Any]:
            net = AutoModelForImageClassification.from_pretrained(source).eval().to(device())
            return AutoImageProcessor.from_pretrained(source), net

        processor, net = load_named(self.name, self.model, PUBLISHED, make)
        classes = net.config.label2id
        if unknown := [label for label in self.labels if label not in classes]:
            raise PluginError(f"judge {self.name!r}: the model has no class {unknown[0]!r}"
                              f"{did_you_mean(unknown[0], classes)}")  # fmt: skip
        return processor, net, [int(classes[label]) for label in self.labels]

    @torch.no_grad()
    def scores(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """{label: probability, 0..1, softmax over the model's classes} of every image."""
        processor, net, places = self._parts
        rows: list[dict[str, float]] = []
        for first in range(0, len(images), BATCH):
            inputs = processor(images=rgb(images[first : first + BATCH]), return_tensors="pt").to(net.device)
            each = net(**inputs).logits.float().softmax(-1)[:, places].tolist()
            rows += [dict(zip(self.labels, row, strict=True)) for row in each]
        return rows

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """The labels above the threshold, one dict per image."""
        return above(self.scores(images), self.threshold)
