"""shieldgemma2: a picture against policies, each a sentence."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from PIL import Image

from uvr_core.errors import PluginError, did_you_mean

from ..settings import share
from .packages import import_for
from .weights import above, device, load_named

PUBLISHED = "google/shieldgemma-2-4b-it"


@attrs.frozen
class ShieldGemma2:
    """ShieldGemma 2 (Zeng et al. 2025, arXiv 2504.01081): does a picture violate a policy, Yes against No.

    Attributes:
        threshold: 0..1, of the probability that a policy is violated.
        labels: the policies that count, by name: "dangerous", "sexual", "violence" and those of `policies`.
        policies: further ones, {name: "No ... content: The image shall not contain ..."}.
        model: folder or name of the Hub (gated); None: google/shieldgemma-2-4b-it, if it is on this disk.
    """

    threshold: float = attrs.field(default=0.5, validator=share)
    labels: tuple[str, ...] = attrs.field(default=("dangerous", "sexual", "violence"), converter=tuple)
    policies: Mapping[str, str] = attrs.field(factory=dict)
    model: str | None = None
    name: str = "shieldgemma2"

    def __attrs_post_init__(self) -> None:
        import_for("transformers", "transformers", self.name)

    @functools.cached_property
    def _parts(self) -> tuple[Any, Any]:
        from transformers import ShieldGemma2ForImageClassification, ShieldGemma2Processor

        def make(source: str) -> tuple[Any, Any]:
            net = ShieldGemma2ForImageClassification.from_pretrained(source, dtype="auto")
            return ShieldGemma2Processor.from_pretrained(source), net.eval().to(device())

        processor, net = load_named(self.name, self.model, PUBLISHED, make)
        policies = {**processor.policy_definitions, **self.policies}
        if unknown := [label for label in self.labels if label not in policies]:
            hint = did_you_mean(unknown[0], policies)
            raise PluginError(f"judge {self.name!r}: no policy {unknown[0]!r}{hint} Give its sentence in `policies`")
        return processor, net

    @torch.no_grad()
    def scores(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """{policy: probability of Yes, it is violated, against No} of every image."""
        processor, net = self._parts
        rows = []
        for image in images if self.labels else ():
            inputs = processor(
                images=[image.convert("RGB")],
                policies=list(self.labels),
                custom_policies=dict(self.policies),
                return_tensors="pt",
            ).to(net.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(net.dtype)
            violated = net(**inputs).probabilities[:, 0].float().tolist()
            rows.append(dict(zip(self.labels, violated, strict=True)))
        return rows if self.labels else [{} for _ in images]

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """The policies violated above the threshold, one dict per image."""
        return above(self.scores(images), self.threshold)
