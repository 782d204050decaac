"""Train a zoo transformer: rectified flow on the latents of scenes, then guidance distillation.

    uvr zoo train flux --minutes 60 --resume

A run lives in a folder, as `training` says. `checkpoint.pt` holds model, EMA, optimisers, random state, step, seconds
spent and, once guidance is distilled, the teacher; `log.jsonl` has a line per fidelity check as well; `scenes.pt` is
the encoded training data, made again when what it was made of has changed.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import diffusers
import numpy as np
import torch
from PIL import Image
from torch import nn

from uvr_core.errors import UVRError

from . import scenes, training
from .architectures import ARCHITECTURES, Condition, pack
from .pipelines import assemble
from .recipes import Recipe
from .vae import to_tensor

Pair = tuple[scenes.Scene | None, str, scenes.Scene]


def _draw_pair(recipe: Recipe, seed: int) -> Pair:
    """Source (None: no editing), caption or instruction, and the scene to draw, of one training sample."""
    if recipe.edits:
        edit = scenes.sample_edit(seed, objects=recipe.objects, styles=recipe.styles)
        return edit.source, edit.instruction, edit.target
    scene = scenes.sample(seed, objects=recipe.objects, styles=recipe.styles)
    return None, scene.caption, scene


def _hash_of(pipe: Any, recipe: Recipe, samples: list[Pair]) -> str:
    """SHA-256 of what encoded scenes depend on: every sample, how sprites and scenes look, the parts that encode."""
    family = ARCHITECTURES[recipe.name]
    digest = hashlib.sha256(f"{family.pipeline} {vars(family)} {samples}".encode())
    digest.update(np.stack(list(scenes.atlas().values())).tobytes())
    for source, _, target in samples[:64]:
        digest.update(b"".join(scenes.render(scene)[0].tobytes() for scene in (source, target) if scene is not None))
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, nn.Module) and name != "transformer":
            scale = [getattr(part.config, f"{field}_factor", None) for field in ("scaling", "shift")]
            digest.update(f"{name} {type(part).__name__} {scale}".encode())
            for key, value in part.state_dict().items():
                digest.update(key.encode() + value.float().cpu().numpy().tobytes())
        elif hasattr(part, "get_vocab"):
            digest.update(f"{name} {part.model_max_length} {sorted(part.get_vocab().items())}".encode())
    return digest.hexdigest()


@torch.no_grad()
def encode_scenes(pipe: Any, recipe: Recipe, cache: Path | None = None) -> dict[str, torch.Tensor]:
    """Render and encode the recipe's training samples, as the pipeline itself would encode them.

    A `cache` that was made of the same is read, any other is replaced.

    Returns float16 columns with one row per sample (`empty.*`: one row if it is the same for all): `x` the target's
    tokens, `reference` the source's (editing), `weight` of each patch (2 on objects, 1 elsewhere), `text.*` the
    condition, `empty.*` that of the empty prompt.
    """
    samples = [_draw_pair(recipe, seed) for seed in range(recipe.scenes)]
    key = "" if cache is None else _hash_of(pipe, recipe, samples)
    if cache is not None and cache.exists():
        stored = torch.load(cache, weights_only=True)
        if stored.get("made_of") == key:
            return dict(stored["columns"])
        print(json.dumps({"scenes": f"{cache} was made of something else; encoding anew"}), flush=True)
    family = ARCHITECTURES[recipe.name]
    columns: dict[str, list[torch.Tensor]] = {}

    def add(name: str, value: torch.Tensor) -> None:
        columns.setdefault(name, []).append(value.half().cpu())

    for start in range(0, recipe.scenes, 64):
        drawn = samples[start : start + 64]
        sources, captions, targets = zip(*drawn, strict=True)
        images, masks = zip(*(scenes.render(s) for s in targets), strict=True)
        objects = [np.any(list(m.values()), axis=0) for m in masks]
        pictures = None
        if recipe.edits:
            before, source_masks = zip(*(scenes.render(s) for s in sources), strict=True)
            objects = [o | np.any(list(m.values()), axis=0) for o, m in zip(objects, source_masks, strict=True)]
            pictures = [Image.fromarray(image) for image in before]
            add("reference", pack(family.latents(pipe, to_tensor(np.stack(before)).to(pipe.device))))
        add("x", pack(family.latents(pipe, to_tensor(np.stack(images)).to(pipe.device))))
        add("weight", torch.tensor(np.stack([1 + scenes.patch_mask(o).reshape(-1) for o in objects])))
        for name, value in family.encode(pipe, list(captions), pictures).items():
            add(f"text.{name}", value)
        if start == 0 or family.sees_image:
            blank = [""] * (len(drawn) if family.sees_image else 1)
            for name, value in family.encode(pipe, blank, pictures).items():
                add(f"empty.{name}", value)
    data = {name: torch.cat(values) for name, values in columns.items()}
    if cache is not None:
        training.write({"made_of": key, "columns": data}, cache)
    return data


@attrs.frozen(eq=False)
class _Draw:
    """One batch: target tokens, patch weights, noise level, noise, source tokens, and three conditions.

    `prompt` is the prompt's, `empty` the empty prompt's, `used` the prompt's with some samples' replaced.
    """

    x: torch.Tensor
    weight: torch.Tensor
    sigma: torch.Tensor
    noise: torch.Tensor
    reference: torch.Tensor | None
    prompt: Condition
    empty: Condition
    used: Condition

    @property
    def noisy(self) -> torch.Tensor:
        level = self.sigma[:, None, None]
        return (1 - level) * self.x + level * self.noise


class Trainer(training.FlowTrainer):
    """One training run in a folder; see the module's docstring."""

    def __init__(
        self,
        recipe: Recipe,
        parts: Any,
        folder: Path,
        *,
        device: str = "cpu",
        resume: bool = False,
        start_from: nn.Module | None = None,
    ):
        self.recipe, self.parts, self.folder = recipe, parts, folder
        self.family = ARCHITECTURES[recipe.name]
        self.teacher: nn.Module | None = None  # the average that guidance is distilled from
        self.stopped = False  # by a signal
        checkpoint = training.checkpoint_of(folder, resume)
        torch.manual_seed(recipe.seed)
        model = getattr(diffusers, self.family.transformer)(**recipe.transformer).to(device)
        if start_from is not None:
            model.load_state_dict(start_from.state_dict())
        average = copy.deepcopy(model).requires_grad_(False)
        how: dict[str, Any] = {"lr": recipe.learning_rate, "keep": recipe.ema, "seed": recipe.seed, "device": device}
        super().__init__(model, average, checkpoint, **how)
        self.pipe = assemble(recipe, self.ema, parts).to(device)
        self.data = encode_scenes(self.pipe, recipe, folder / "scenes.pt")

    # -- state
    def state(self) -> dict[str, Any]:
        return {**super().state(), "teacher": None if self.teacher is None else self.teacher.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        if state.get("teacher") is not None:
            self.teacher = copy.deepcopy(self.ema).eval()
            self.teacher.load_state_dict(state["teacher"])

    def log(self, **record: Any) -> None:
        training.log(self.folder, {"step": self.step, "seconds": round(self.seconds + self._elapsed(), 1), **record})

    def _elapsed(self) -> float:
        return time.monotonic() - self._start if hasattr(self, "_start") else 0.0

    # -- the two losses
    def _draw(self, shift: float) -> _Draw:
        size = self.recipe.batch_size
        index = torch.randint(len(self.data["x"]), (size,), generator=self.generator)
        row = {
            name: column[index].float().to(self.device)
            for name, column in self.data.items()
            if not name.startswith("empty.")
        }
        sigma = torch.sigmoid(torch.randn(size, generator=self.generator))
        flat = torch.rand(size, generator=self.generator)
        sigma = torch.where(torch.rand(size, generator=self.generator) < 0.25, flat, sigma)
        noise = torch.randn(row["x"].shape, generator=self.generator).to(self.device)
        chance = torch.rand(2, size, generator=self.generator).to(self.device)
        no_text, no_pooled = chance[0] < self.recipe.drop_text, chance[1] < self.recipe.drop_pooled
        prompt = {name.removeprefix("text."): row[name] for name in row if name.startswith("text.")}
        empty = {
            name.removeprefix("empty."): (column[index] if len(column) > 1 else column.expand(size, *column.shape[1:]))
            .float()
            .to(self.device)
            for name, column in self.data.items()
            if name.startswith("empty.")
        }
        used = {}
        for name, value in prompt.items():
            dropped = no_text | no_pooled if name == "pooled" else no_text
            used[name] = torch.where(dropped.view(-1, *[1] * (value.ndim - 1)), empty[name], value)
        return _Draw(
            row["x"],
            row["weight"],
            (shift * sigma / (1 + (shift - 1) * sigma)).to(self.device),
            noise,
            row.get("reference"),
            prompt,
            empty,
            used,
        )

    def flow_loss(self) -> torch.Tensor:
        """Rectified flow: x_t = (1-sigma) x + sigma e, target e - x; objects' patches weigh double."""
        d = self._draw(1.5)
        velocity = self.family.predict(
            self.model, d.noisy, d.sigma, d.used, d.reference, guidance=torch.ones_like(d.sigma)
        )
        error = (velocity - (d.noise - d.x)).square().mean(-1)
        return (error * d.weight).sum() / d.weight.sum()

    def distillation_loss(self, teacher: nn.Module) -> torch.Tensor:
        """Guidance distillation (Meng et al. 2023): one pass at scale w matches u + w (c - u) of the teacher."""
        d = self._draw(1.5)
        low, high = self.recipe.guidance
        scale = low + (high - low) * torch.rand(len(d.x), generator=self.generator).to(self.device)
        predict, one = self.family.predict, torch.ones_like(scale)
        with torch.no_grad():
            conditional = predict(teacher, d.noisy, d.sigma, d.prompt, d.reference, guidance=one)
            unconditional = predict(teacher, d.noisy, d.sigma, d.empty, d.reference, guidance=one)
            target = unconditional + scale[:, None, None] * (conditional - unconditional)
        student = predict(self.model, d.noisy, d.sigma, d.prompt, d.reference, guidance=scale)
        return (student - target).square().mean()

    # -- the loop
    def run(
        self,
        minutes: float,
        *,
        distil: bool = False,
        decay: float = 0.25,
        fidelity: Callable[[Any], dict[str, float]] | None = None,
        fidelity_every: float = 10.0,
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> None:
        """Train for `minutes` of wall time; the learning rate falls linearly over the last `decay` of them.

        Distillation starts from the average that plain training left, which stays the teacher however often the run
        is resumed.

        Raises:
            UVRError: there is nothing to distil yet, or plain training would go on from distilled weights.
        """
        if distil and self.step == 0:
            raise UVRError(f"{self.folder}: nothing to distil yet; train first, then pass --resume --distil")
        if not distil and self.teacher is not None:
            raise UVRError(
                f"{self.checkpoint}: guidance has been distilled into this run; go on with --distil, or train anew in "
                "another folder"
            )
        if distil and self.teacher is None:
            self.teacher = copy.deepcopy(self.ema).eval()
            self.model.load_state_dict(self.ema.state_dict())
        self._start, total = time.monotonic(), minutes * 60
        saved = checked = first = 0.0
        losses: list[float] = []
        with training.signals() as stopped:
            try:
                while not stopped() and (elapsed := self._elapsed()) < total:
                    warm = min(1.0, (len(losses) + first + 1) / 100)
                    rate = warm * min(1.0, max(1 - elapsed / total, 0.01) / decay) * (0.5 if distil else 1.0)
                    losses.append(self.train_step(rate, self.teacher))
                    progress(f"training {self.recipe.name}, seconds", round(elapsed), round(total))
                    if self.step % training.LOG_EVERY == 0:
                        self.log(loss=float(np.mean(losses)), distil=distil, lr=rate * self.recipe.learning_rate)
                        first, losses = 100, []
                    if self._elapsed() - saved > training.SAVE_EVERY:
                        saved = self._elapsed()
                        self.save()
                    if fidelity is not None and self._elapsed() - checked > fidelity_every * 60:
                        checked = self._elapsed()
                        self.log(fidelity=fidelity(self.ema))
            finally:
                self.seconds += self._elapsed()
                del self._start
                self.save()
            self.stopped = stopped()

    def train_step(self, rate: float = 1.0, teacher: nn.Module | None = None) -> float:
        """One update at `rate` times the recipe's learning rate; returns the loss. A function of the saved state.

        Raises:
            FloatingPointError: loss or gradient is NaN or Inf; nothing was changed but the random state.
        """
        return self.update(
            self.flow_loss if teacher is None else lambda: self.distillation_loss(teacher),
            self.recipe.learning_rate * rate,
        )
