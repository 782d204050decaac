"""How good pictures are as a set: FID and CLIP score, by models from the user's disk or the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from uvr_core.errors import UVRError
from uvr_core.files import read_picture

INCEPTION = "inception"
CLIP = "openai/clip-vit-large-patch14"
BATCH = 16


class Pooled(nn.Module):
    """Pooled features of a vision model of transformers, for a Fréchet distance other than Inception's (after Stein et
    al. 2023, who take DINOv2): uint8 (B, 3, H, W) -> (B, D)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        from transformers import AutoImageProcessor, AutoModel

        self.processor = AutoImageProcessor.from_pretrained(name)
        self.model = AutoModel.from_pretrained(name).eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pictures = list(images.permute(0, 2, 3, 1).cpu().numpy())
        out = self.model(**self.processor(images=pictures, return_tensors="pt").to(images.device))
        pooled = getattr(out, "pooler_output", None)
        return out.last_hidden_state.mean(1) if pooled is None else pooled


def frechet(features: str = INCEPTION) -> Callable[[Sequence[Path], Sequence[Path]], dict[str, Any]]:
    """Fréchet distance of two sets of pictures (Heusel et al. 2017), by torchmetrics in float64.

    Args:
        features: "inception" (torch-fidelity's port of the network that FID is of), else a vision model of
            transformers: a name of the Hub or a folder.

    Returns:
        distance(pictures, reference) -> {"value", "of": numbers of both, "features"}. It is biased upwards where
        there are few pictures, by more the fewer: compare at the same numbers alone.

    Raises:
        UVRError: the model is not here and cannot be fetched.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric: Any = FrechetInceptionDistance(feature=2048 if features == INCEPTION else Pooled(features))
    except Exception as error:  # whatever a loader makes of what is not here
        needs = "pip install torch-fidelity, which fetches its weights once" if features == INCEPTION else features
        raise UVRError(f"FID cannot be measured here ({_first_line(error)}); it needs {needs}") from error
    metric = metric.set_dtype(torch.float64).to(device())

    def distance(pictures: Sequence[Path], reference: Sequence[Path]) -> dict[str, Any]:
        if min(len(pictures), len(reference)) < 2:
            return {"value": None, "of": [len(pictures), len(reference)], "features": features}
        metric.reset()
        with torch.no_grad():
            for files, real in ((reference, True), (pictures, False)):
                for batch in _batches(files):
                    metric.update(batch.to(device()), real=real)
            value = float(metric.compute())
        return {"value": value, "of": [len(pictures), len(reference)], "features": features}

    return distance


def clip_scores(model: str = CLIP) -> Callable[[Sequence[tuple[Path, str]]], dict[str, Any]]:
    """CLIP score (Hessel et al. 2021, as 100 max(cos, 0)) of pictures and their prompts, cut at CLIP's 77 tokens.

    Returns:
        score(pairs) -> {"mean", "error" (standard, of the mean), "of", "model"}.

    Raises:
        UVRError: the model is not here and cannot be fetched.
    """
    try:
        from transformers import CLIPModel, CLIPProcessor

        network = CLIPModel.from_pretrained(model).eval().to(device())
        processor = CLIPProcessor.from_pretrained(model)
    except Exception as error:
        raise UVRError(f"CLIP score cannot be measured here ({_first_line(error)}); it needs {model}") from error

    def score(pairs: Sequence[tuple[Path, str]]) -> dict[str, Any]:
        values: list[float] = []
        for first in range(0, len(pairs), BATCH):
            batch = pairs[first : first + BATCH]
            pictures, texts = [read_picture(file).convert("RGB") for file, _ in batch], [text for _, text in batch]
            inputs = processor(text=texts, images=pictures, return_tensors="pt", padding=True, truncation=True)
            with torch.no_grad():
                out = network(**inputs.to(device()))
            cosines = nn.functional.cosine_similarity(out.image_embeds.float(), out.text_embeds.float())
            values += (100 * cosines.clamp_min(0)).tolist()
        error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
        return {"mean": float(np.mean(values)) if values else None, "error": error, "of": len(values), "model": model}

    return score


def device() -> str:
    """Where the measuring models run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _batches(files: Sequence[Path]) -> Iterator[torch.Tensor]:
    """uint8 (b, 3, H, W), of pictures of one size that follow one another."""
    batch: list[np.ndarray] = []
    for file in files:
        picture = np.asarray(read_picture(file).convert("RGB"))
        if batch and (len(batch) == BATCH or picture.shape != batch[0].shape):
            yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
            batch = []
        batch.append(picture)
    if batch:
        yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
