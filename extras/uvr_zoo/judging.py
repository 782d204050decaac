"""The judge: a small convolutional network, apart from every generator, that says which objects a picture shows.

Trained on rendered scenes with blur, noise, autoencoder artefacts, and scrambled sprites that count as nothing.
Two heads on one trunk: image-level scores (is the object there?) and a 16x16 map of what each cell shows.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from . import scenes
from .vae import to_tensor
from .vocabulary import BACKGROUNDS, OBJECTS

CELLS = 16  # the location map's side


class JudgeNet(nn.Module):
    """(B, 3, 64, 64) in [-1, 1] -> object logits (B, n), cell logits (B, n + 1, 16, 16) with 0 = background."""

    def __init__(self, n: int = len(OBJECTS)):
        super().__init__()

        def conv(i: int, o: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.SiLU())

        self.fine = nn.Sequential(conv(3, 32, 2), conv(32, 64, 2), conv(64, 64), conv(64, 64))
        self.coarse = nn.Sequential(conv(64, 96, 2), conv(96, 96), conv(96, 96))
        self.objects = nn.Conv2d(96, n, 1)
        self.cells = nn.Sequential(conv(160, 96), nn.Conv2d(96, n + 1, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        both = torch.cat([fine, F.interpolate(coarse, scale_factor=2.0, mode="bilinear")], 1)
        return self.objects(coarse).flatten(2).logsumexp(-1) - np.log(64.0), self.cells(both)


class Judge:
    """Callable on a list of PIL images; see `uvr_zoo.judge`.

    Attributes:
        labels: what it can report.
        side: pixels that pictures are brought to, both ways; None: it sees them as large as they are.
    """

    labels = OBJECTS

    def __init__(
        self, net: nn.Module, threshold: float, card: dict[str, Any] | None = None, side: int | None = scenes.SIZE
    ):
        self.net, self.threshold, self.card, self.side = net.eval(), threshold, card or {}, side

    @classmethod
    def load(cls, folder: Path) -> Judge:
        net = JudgeNet()
        net.load_state_dict({name: value.float() for name, value in load_file(folder / "judge.safetensors").items()})
        card = cls.read_card(folder)
        return cls(net, float(card["threshold"]), card)

    @staticmethod
    def read_card(folder: Path) -> dict[str, Any]:
        return dict(json.loads((folder / "judge.json").read_text()))

    def write_card(self, folder: Path) -> None:
        (folder / "judge.json").write_text(json.dumps({**self.card, "threshold": self.threshold}, indent=1))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.contiguous() for name, value in self.net.state_dict().items()}, folder / "judge.safetensors"
        )
        self.write_card(folder)

    @torch.no_grad()
    def _seen(self, images: Sequence[Image.Image]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The network's logits of every run of up to 64 pictures of one size, in order."""
        side = None if self.side is None else (self.side, self.side)
        pictures = [im.convert("RGB") if side in (None, im.size) else im.convert("RGB").resize(side) for im in images]
        for _, alike in itertools.groupby(pictures, key=lambda picture: picture.size):
            pixels = [np.asarray(picture) for picture in alike]
            for start in range(0, len(pixels), 64):
                yield self.net(to_tensor(np.stack(pixels[start : start + 64])))

    def scores(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """(B, n_objects) probabilities in 0..1, in the order of OBJECTS."""
        return torch.cat([objects.sigmoid() for objects, _ in self._seen(images)])

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """What each image shows: {object: score} for the objects whose score reaches the threshold."""
        if not len(images):
            return []
        return [
            {name: round(float(s), 4) for name, s in zip(OBJECTS, row, strict=True) if s >= self.threshold}
            for row in self.scores(images)
        ]

    def locate(
        self, images: Sequence[Image.Image], names: Sequence[str], grid: tuple[int, int] = (8, 8)
    ) -> torch.Tensor:
        """(B, h, w) bool: patches of `grid` where the cell map sees any of the named objects.

        A patch counts when at least a quarter of its cells do. `grid` sides must divide 16 or be a multiple.
        """
        index = [OBJECTS.index(name) + 1 for name in names]
        seen = [(cells.softmax(1)[:, index].sum(1) > 0.5).float() for _, cells in self._seen(images)]
        return torch.cat([F.adaptive_avg_pool2d(part[:, None], grid)[:, 0] >= 0.25 for part in seen])


class BackgroundJudge:
    """Says which background a picture has, so that an edit of the background can be checked by its label.

    Attributes:
        labels: "background:night" and so on.
    """

    labels = tuple(f"background:{name}" for name in BACKGROUNDS)

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """[{"background:...": 1.0}], the nearest by `scenes.background_of`; other sizes are brought to 64 x 64."""
        side = (scenes.SIZE, scenes.SIZE)
        return [
            {f"background:{scenes.background_of(np.asarray(image.convert('RGB').resize(side)))}": 1.0}
            for image in images
        ]


def scrambled(image: np.ndarray, masks: dict[int, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The picture with every object's bounding box cut into tiles and shuffled: it shows nothing nameable."""
    image = image.copy()
    for mask in masks.values():
        ys, xs = np.nonzero(mask)
        if len(ys) < 16:
            continue
        y, x, side = ys.min(), xs.min(), int(max(np.ptp(ys), np.ptp(xs)) + 1) // 4
        if side < 3 or y + 4 * side > scenes.SIZE or x + 4 * side > scenes.SIZE:
            image[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = image[0, 0]
            continue
        box = image[y : y + 4 * side, x : x + 4 * side].reshape(4, side, 4, side, 3).transpose(0, 2, 1, 3, 4)
        tiles = box.reshape(16, side, side, 3)[rng.permutation(16)].reshape(4, 4, side, side, 3)
        image[y : y + 4 * side, x : x + 4 * side] = tiles.transpose(0, 2, 1, 3, 4).reshape(4 * side, 4 * side, 3)
    return image


def batch(seed: int, size: int, vae: nn.Module | None, augment: bool = True, split: scenes.Split = "train"):
    """Pictures (B, 3, 64, 64), objects (B, n) multi-hot, cells (B, 16, 16) class index (0 background)."""
    rng = np.random.default_rng([4, seed])
    pictures, objects, cells = [], np.zeros((size, len(OBJECTS)), np.float32), np.zeros((size, CELLS, CELLS), np.int64)
    for row in range(size):
        scene = scenes.sample(seed * size + row, split)
        image, masks = scenes.render(scene)
        if augment and rng.random() < 0.1:
            pictures.append(scrambled(image, masks, rng))
            continue
        for index, item in enumerate(scene.items):
            objects[row, OBJECTS.index(item.name)] = 1
            cells[row][scenes.patch_mask(masks[index], (CELLS, CELLS), 0.3)] = OBJECTS.index(item.name) + 1
        if augment and rng.random() < 0.3:
            blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
            image = np.asarray(blurred)
        pictures.append(image)
    x = to_tensor(np.stack(pictures))
    if augment:
        generator = torch.Generator().manual_seed(seed)
        if vae is not None:
            part = size // 16
            latents = vae.encode(x[:part]).latent_dist.mean
            noise = (
                torch.randn(latents.shape, generator=generator) * torch.rand(part, 1, 1, 1, generator=generator) * 0.5
            )
            x[:part] = vae.decode(latents + noise * latents.std()).sample.clamp(-1, 1)
        gain = 1 + 0.15 * (torch.rand(size, 3, 1, 1, generator=generator) - 0.5)
        level = 0.12 * torch.rand(size, 1, 1, 1, generator=generator)
        x = (x * gain + level * torch.randn(x.shape, generator=generator)).clamp(-1, 1)
    return x, torch.from_numpy(objects), torch.from_numpy(cells)


def train(
    folder: Path,
    minutes: float,
    vae: nn.Module | None = None,
    size: int = 64,
    lr: float = 3e-3,
    start_from: Judge | None = None,
    threshold: float = 0.3,
) -> Judge:
    """Train for `minutes` of wall time, measure on 2,000 held-out scenes, write judge.safetensors and its card.

    `start_from` goes on with an earlier judge, on scenes that it has not seen.
    """
    torch.manual_seed(1)
    net = JudgeNet() if start_from is None else start_from.net.train()
    seen = 0 if start_from is None else int(start_from.card["steps"])
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2)
    start, step = time.monotonic(), 0
    weight = torch.tensor([0.3] + [1.0] * len(OBJECTS))
    while (part := (time.monotonic() - start) / (minutes * 60)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = lr * (min(1, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * part)) + 0.005)
        with torch.no_grad():
            x, objects, cells = batch(seen + step, size, vae)
        logits, maps = net(x)
        loss = 10 * F.binary_cross_entropy_with_logits(logits, objects) + F.cross_entropy(maps, cells, weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
        if step % 100 == 0:
            print(f"judge step {step} {part * minutes:.1f} min loss {loss.item():.4f}", flush=True)
    judge = Judge(net, threshold)
    judge.card = {"steps": seen + step, "batch": size, "split": "train", **measure(judge)}
    judge.save(folder)
    print(json.dumps(judge.card))
    return judge


@torch.no_grad()
def measure(judge: Judge, count: int = 2000) -> dict[str, object]:
    """Held-out figures: exact-set accuracy on clean scenes, per-object recall, false positives per image."""
    judge.net.eval()
    exact = wrong = total = 0
    hits, seen = np.zeros(len(OBJECTS)), np.zeros(len(OBJECTS))
    for start in range(count // 50):
        x, objects, _ = batch(start, 50, None, augment=False, split="heldout")
        shown = judge.net(x)[0].sigmoid().numpy() >= judge.threshold
        truth = objects.numpy() > 0
        exact += int((shown == truth).all(1).sum())
        wrong += int((shown & ~truth).any(1).sum())
        hits, seen, total = hits + (shown & truth).sum(0), seen + truth.sum(0), total + len(truth)
    return {
        "heldout_scenes": total,
        "heldout_exact_accuracy": round(exact / total, 4),
        "heldout_images_with_a_false_object": round(wrong / total, 4),
        "heldout_recall": {
            name: round(float(h / max(s, 1)), 4) for name, h, s in zip(OBJECTS, hits, seen, strict=True)
        },
    }
