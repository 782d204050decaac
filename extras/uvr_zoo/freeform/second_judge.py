"""The second judge: a network unlike the first one's, on free-form scenes, that no mask, calibration or training uses.

The first is plain convolutions whose object scores are pooled cell scores. This one is a ConvNeXt (Liu et al. 2022)
whose every object looks for itself by a query of its own (after Query2Label, Liu et al. 2021), at any canvas.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import nn
from torch.nn import functional as F

from ..judging import Judge, scrambled
from ..storage import load_state, save_state
from ..training import Run, fit
from ..vae import to_tensor
from ..vocabulary import OBJECTS
from . import scenes
from .render import render
from .wordings import Split

CELL = 4  # pixels of a cell's side
FIRST_SEED = 1_500_000  # of the held-out scenes that it is measured on
_CANVASES = ((64, 64), (64, 64), (96, 96), (64, 96), (96, 64))


class Block(nn.Module):
    """7 x 7 depthwise, norm over channels, two pointwise layers; (B, C, H, W) to the same."""

    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.pointwise = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.depthwise(x).permute(0, 2, 3, 1))  # (B, H, W, C)
        return x + self.pointwise(hidden).permute(0, 3, 1, 2)


class SecondNet(nn.Module):
    """(B, 3, 4h, 4w) in [-1, 1] -> object logits (B, n), cell logits (B, n + 1, h, w) with 0 = background."""

    def __init__(self, n: int = len(OBJECTS), narrow: int = 48, wide: int = 88):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, narrow, 4, CELL), nn.GroupNorm(1, narrow))
        self.fine = nn.Sequential(*(Block(narrow) for _ in range(3)))
        self.down = nn.Sequential(nn.GroupNorm(1, narrow), nn.Conv2d(narrow, wide, 2, 2))
        self.coarse = nn.Sequential(*(Block(wide) for _ in range(4)))
        self.join = nn.Conv2d(narrow + wide, wide, 1)
        self.last = Block(wide)
        self.norm = nn.LayerNorm(wide)
        self.cells = nn.Linear(wide, n + 1)
        self.query = nn.Linear(wide, n)
        self.present = nn.Parameter(torch.randn(n, wide) * wide**-0.5)
        self.bias = nn.Parameter(torch.full((n,), -2.0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fine = self.fine(self.stem(x))
        coarse = F.interpolate(self.coarse(self.down(fine)), size=fine.shape[-2:], mode="bilinear")
        features = self.norm(self.last(self.join(torch.cat([fine, coarse], 1))).permute(0, 2, 3, 1))  # (B, h, w, C)
        attention = self.query(features).flatten(1, 2).softmax(1)  # (B, hw, n)
        pooled = torch.einsum("bpn,bpc->bnc", attention, features.flatten(1, 2))
        return (pooled * self.present).sum(-1) + self.bias, self.cells(features).permute(0, 3, 1, 2)


def picture(seed: int, split: Split, canvas: tuple[int, int]) -> tuple[np.ndarray, dict[int, np.ndarray], scenes.Scene]:
    """A drawn scene: pixels, masks, scene."""
    scene = scenes.sample(seed, split, canvas=canvas)
    return *render(scene), scene


def labels(masks: dict[int, np.ndarray], scene: scenes.Scene, cell: int = CELL) -> tuple[np.ndarray, np.ndarray]:
    """Objects (n,) that show, and the class (h, w) of every cell: what at least three tenths of it show, else 0."""
    height, width = (side // cell for side in scene.canvas)
    objects, cells = np.zeros(len(OBJECTS), np.float32), np.zeros((height, width), np.int64)
    for index, item in enumerate(scene.items):
        objects[OBJECTS.index(item.name)] = 1
        share = masks[index].reshape(height, cell, width, cell).mean((1, 3))
        cells[share >= 0.3] = OBJECTS.index(item.name) + 1
    return objects, cells


def batch(seed: int, size: int, autoencoders: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures (B, 3, H, W) of one canvas, objects (B, n), cells (B, H/4, W/4); spoilt as generators spoil them.

    One in ten is scrambled: it shows nothing. A quarter went through an autoencoder with noise on its latents, others
    are blurred; all have their colours and noise of the pixels.
    """
    rng, generator = np.random.default_rng([12, seed]), torch.Generator().manual_seed(seed)
    canvas = _CANVASES[int(rng.integers(len(_CANVASES)))]
    pictures, objects, cells = [], [], []
    for row in range(size):
        image, masks, scene = picture(seed * size + row, "train", canvas)
        shown, where = labels(masks, scene)
        if rng.random() < 0.1:
            image, shown, where = scrambled(image, masks, rng), shown * 0, where * 0
        elif rng.random() < 0.3:
            image = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.3))))
        pictures.append(image)
        objects.append(shown)
        cells.append(where)
    x = to_tensor(np.stack(pictures))
    if autoencoders:
        part, vae = size // 4, autoencoders[int(rng.integers(len(autoencoders)))]
        latents = vae.encode(x[:part]).latent_dist.mean
        noise = torch.randn(latents.shape, generator=generator) * torch.rand(part, 1, 1, 1, generator=generator)
        x[:part] = vae.decode(latents + 0.4 * noise * latents.std()).sample.clamp(-1, 1)
    gain = 1 + 0.2 * (torch.rand(size, 3, 1, 1, generator=generator) - 0.5)
    level = 0.12 * torch.rand(size, 1, 1, 1, generator=generator)
    x = (x * gain + level * torch.randn(x.shape, generator=generator)).clamp(-1, 1)
    return x, torch.from_numpy(np.stack(objects)), torch.from_numpy(np.stack(cells))


def train(
    out: Path,
    run: Run,
    autoencoders: tuple[Any, ...],
    size: int = 32,
    lr: float = 2e-3,
    threshold: float = 0.5,
    heldout: int = 1000,
) -> Judge:
    """Train as `training.fit` does, measure on held-out scenes, write weights and card under `out`."""
    torch.manual_seed(2)
    net = SecondNet()
    weight = torch.tensor([0.3] + [1.0] * len(OBJECTS))

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            x, objects, cells = batch(step, size, autoencoders)
        logits, maps = net(x)
        presence = F.binary_cross_entropy_with_logits(logits, objects)
        place = F.cross_entropy(maps, cells, weight)
        exact = ((logits > 0) == (objects > 0)).all(1).float().mean()
        return {"loss": 10 * presence + place, "presence": presence.detach(), "place": place.detach(), "exact": exact}

    steps = fit("second-judge", net, loss_of, run, lr=lr)
    judge = Judge(
        net, threshold, {"architecture": "second", "steps": steps, "batch": size, "split": "train"}, side=None
    )
    judge.card |= measure(judge, heldout)
    save_state(net.state_dict(), out / "judge.int8.safetensors")
    judge.write_card(out)
    return judge


def load(folder: Path) -> Judge:
    """The second judge that `train` wrote."""
    net = SecondNet()
    net.load_state_dict(load_state(folder / "judge.int8.safetensors"))
    card = Judge.read_card(folder)
    return Judge(net, float(card["threshold"]), card, side=None)


GROUPS = ("all", "small", "held", "overlapped", "cut")


def groups_of(scene: scenes.Scene, masks: dict[int, np.ndarray]) -> dict[str, set[str]]:
    """Group -> the scene's objects in it: small, held by another, partly under another, cut by the edge."""
    groups: dict[str, set[str]] = {name: set() for name in GROUPS}
    for index, item in enumerate(scene.items):
        left, top, right, bottom = scenes.box(item, scene.canvas)
        alone = render(scenes.alone(scene, index))[1][0]
        groups["all"].add(item.name)
        if item.size == "small":
            groups["small"].add(item.name)
        if scene.relation == "holds" and index == 1:
            groups["held"].add(item.name)
        if masks[index].sum() < 0.9 * alone.sum():
            groups["overlapped"].add(item.name)
        if left < 0 or top < 0 or right > scene.canvas[1] or bottom > scene.canvas[0]:
            groups["cut"].add(item.name)
    return groups


@torch.no_grad()
def measure(judge: Judge, count: int = 1000, first: int = FIRST_SEED) -> dict[str, Any]:
    """Held-out scenes of 96 x 96: pictures whose set of objects is told exactly, and [told, shown] by group."""
    exact = wrong = 0
    groups = {name: [0, 0] for name in GROUPS}
    for start in range(first, first + count, 50):
        drawn = [picture(seed, "heldout", scenes.CANVAS) for seed in range(start, min(start + 50, first + count))]
        told = judge([Image.fromarray(image) for image, _, _ in drawn])
        for (_, masks, scene), names in zip(drawn, told, strict=True):
            shown = {item.name for item in scene.items}
            exact += shown == set(names)
            wrong += bool(set(names) - shown)
            for group, members in groups_of(scene, masks).items():
                groups[group][0] += len(members & set(names))
                groups[group][1] += len(members)
    return {"heldout_scenes": count, "exact": exact, "with_a_false_object": wrong, "recall": groups}
