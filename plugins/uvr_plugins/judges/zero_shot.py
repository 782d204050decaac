"""Judges that are told in words what to look for, by transformers' own classes: clipseg, grounding-dino, sam2.

Their weights come from the user's disk or from the Hub when a judge is first asked, and have their own licences. The
thresholds are common defaults, measured on no concept of ours: look at what they mark.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from PIL import Image

from ..settings import share
from .weights import device, load

COVERED = 0.25  # a patch shows what covers a quarter of it
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as SAM 2 was trained with


@attrs.frozen
class ClipSeg:
    """CLIPSeg (Lüddecke and Ecker 2022, arXiv 2112.10003): a map per label, by a text encoder's reading of it.

    Attributes:
        threshold: 0..1, of a pixel's probability.
        labels: what is looked for, in words; `locate` may name others.
        model: folder or name of the Hub.
    """

    threshold: float = attrs.field(default=0.5, validator=share)
    labels: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    model: str = "CIDAS/clipseg-rd64-refined"
    name: str = "clipseg"

    @functools.cached_property
    def _parts(self) -> tuple[Any, Any]:
        from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

        def make() -> tuple[Any, Any]:
            net = CLIPSegForImageSegmentation.from_pretrained(self.model).eval().to(device())
            return CLIPSegProcessor.from_pretrained(self.model), net

        parts: tuple[Any, Any] = load(self.name, self.model, make)
        return parts

    @torch.no_grad()
    def maps(self, image: Image.Image, labels: Sequence[str]) -> torch.Tensor:
        """(labels, h, w) probabilities on the model's own raster."""
        processor, net = self._parts
        pictures = [image.convert("RGB")] * len(labels)
        inputs = processor(text=list(labels), images=pictures, padding=True, return_tensors="pt").to(net.device)
        logits = net(**inputs).logits
        return logits.reshape(len(labels), *logits.shape[-2:]).float().sigmoid().cpu()

    def scores(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """{label: largest probability of a pixel} of every image."""
        if not self.labels:
            return [{} for _ in images]
        each = [self.maps(image, self.labels).amax((1, 2)).tolist() for image in images]
        return [dict(zip(self.labels, row, strict=True)) for row in each]

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """The labels above the threshold, one dict per image."""
        return [{k: s for k, s in row.items() if s > self.threshold} for row in self.scores(images)]

    def locate(
        self, images: Sequence[Image.Image], labels: Sequence[str] | None = None, grid: tuple[int, int] = (8, 8)
    ) -> torch.Tensor:
        """(B, H, W) bool: patches of which pixels above the threshold, for any label, cover a quarter."""
        masks = torch.zeros(len(images), *grid, dtype=torch.bool)
        asked = self.labels if labels is None else tuple(labels)
        for index, image in enumerate(images if asked else ()):
            seen = (self.maps(image, asked) > self.threshold).any(0)
            masks[index] = _covered(seen, grid)
        return masks


@attrs.frozen
class GroundingDino:
    """Grounding DINO (Liu et al. 2023, arXiv 2303.05499): boxes of what is named.

    Attributes:
        threshold: 0..1, of a box's score.
        labels, model: see ClipSeg.
    """

    threshold: float = attrs.field(default=0.35, validator=share)
    labels: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    model: str = "IDEA-Research/grounding-dino-tiny"
    name: str = "grounding-dino"

    @functools.cached_property
    def _parts(self) -> tuple[Any, Any]:
        from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

        def make() -> tuple[Any, Any]:
            net = GroundingDinoForObjectDetection.from_pretrained(self.model).eval().to(device())
            return GroundingDinoProcessor.from_pretrained(self.model), net

        parts: tuple[Any, Any] = load(self.name, self.model, make)
        return parts

    @torch.no_grad()
    def boxes(self, image: Image.Image, label: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes (n, 4), left, top, right, bottom in pixels, and scores (n,), all of them."""
        processor, net = self._parts
        picture = image.convert("RGB")
        inputs = processor(images=picture, text=f"{label.lower().rstrip('.')}.", return_tensors="pt").to(net.device)
        size = [(image.height, image.width)]
        seen = processor.post_process_grounded_object_detection(
            net(**inputs), inputs.input_ids, threshold=0.0, text_threshold=0.0, target_sizes=size
        )[0]
        return seen["boxes"].float().cpu(), seen["scores"].float().cpu()

    def scores(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """{label: score of its best box} of every image."""
        return [
            {label: max(self.boxes(image, label)[1].tolist(), default=0.0) for label in self.labels} for image in images
        ]

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """The labels above the threshold, one dict per image."""
        return [{k: s for k, s in row.items() if s > self.threshold} for row in self.scores(images)]

    def seen(self, image: Image.Image, labels: Sequence[str]) -> torch.Tensor:
        """(n, 4): the boxes above the threshold, of any label."""
        each = [self.boxes(image, label) for label in labels]
        return torch.cat([boxes[scores > self.threshold] for boxes, scores in each] or [torch.zeros(0, 4)])

    def locate(
        self, images: Sequence[Image.Image], labels: Sequence[str] | None = None, grid: tuple[int, int] = (8, 8)
    ) -> torch.Tensor:
        """(B, H, W) bool: patches of which the boxes cover a quarter."""
        masks = torch.zeros(len(images), *grid, dtype=torch.bool)
        for index, image in enumerate(images):
            inside = torch.zeros(image.height, image.width, dtype=torch.bool)
            for left, top, right, bottom in (
                self.seen(image, self.labels if labels is None else tuple(labels)).round().long().tolist()
            ):
                inside[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
            masks[index] = _covered(inside, grid)
        return masks


@attrs.frozen
class Sam2:
    """SAM 2 (Ravi et al. 2024, arXiv 2408.00714) on Grounding DINO's boxes, as the paper's anchors were cut out.

    Attributes:
        boxes: who says where to look; its threshold and labels are this judge's.
        model: folder or name of the Hub, of SAM 2.
    """

    boxes: GroundingDino = attrs.field(factory=GroundingDino)
    model: str = "facebook/sam2.1-hiera-tiny"
    name: str = "sam2"

    @property
    def labels(self) -> tuple[str, ...]:
        """What is looked for."""
        return self.boxes.labels

    @property
    def threshold(self) -> float:
        """Of a box's score."""
        return self.boxes.threshold

    @functools.cached_property
    def _net(self) -> Any:
        from transformers import Sam2Model

        return load(self.name, self.model, lambda: Sam2Model.from_pretrained(self.model).eval().to(device()))

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """As the boxes say."""
        return self.boxes(images)

    @torch.no_grad()
    def locate(
        self, images: Sequence[Image.Image], labels: Sequence[str] | None = None, grid: tuple[int, int] = (8, 8)
    ) -> torch.Tensor:
        """(B, H, W) bool: patches of which the masks cover a quarter."""
        masks, net = torch.zeros(len(images), *grid, dtype=torch.bool), self._net
        side = net.config.prompt_encoder_config.image_size
        for index, image in enumerate(images):
            boxes = self.boxes.seen(image, self.labels if labels is None else tuple(labels))
            if not len(boxes):
                continue
            scale = torch.tensor([side / image.width, side / image.height] * 2)
            cut = net(
                pixel_values=_pixels(image, side).to(net.device),
                input_boxes=(boxes * scale)[None].to(net.device),
                multimask_output=False,
            )
            masks[index] = _covered((cut.pred_masks[0, :, 0].float().cpu() > 0).any(0), grid)
        return masks


def _pixels(image: Image.Image, side: int) -> torch.Tensor:
    """(1, 3, side, side), normalised."""
    import numpy as np

    picture = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255
    return torch.from_numpy((picture - MEAN) / DEVIATION).permute(2, 0, 1)[None].float()


def _covered(pixels: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(H, W) bool of (h, w) bool."""
    return torch.nn.functional.adaptive_avg_pool2d(pixels[None].float(), grid)[0] >= COVERED
