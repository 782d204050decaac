"""FID and CLIP score with small random models of the real classes, against their equations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from measuring import clip_model, vision_model
from PIL import Image

from uvr_core import UVRError
from uvr_evaluation.quality import Pooled, clip_scores, frechet


def drawn(folder: Path, count: int, brightness: int, seed: int) -> list[Path]:
    folder.mkdir()
    generator = np.random.default_rng(seed)
    files = []
    for index in range(count):
        side = 32 if index % 2 else 48  # sizes may differ
        noise = generator.integers(0, 100, (side, side, 3)) + brightness
        files.append(folder / f"{index}.png")
        Image.fromarray(noise.astype(np.uint8)).save(files[-1])
    return files


def test_the_distance_is_frechets_of_the_features(tmp_path: Path) -> None:
    model = vision_model(tmp_path / "vit")
    sets = [drawn(tmp_path / name, 40, 100 * i, i) for i, name in enumerate(("a", "b"))]
    distance = frechet(str(model))
    measured = distance(*sets)
    network = Pooled(str(model))

    def features(files: list[Path]) -> np.ndarray:
        batches = [torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)[None] for file in files]
        with torch.no_grad():
            return torch.cat([network(batch) for batch in batches]).double().numpy()

    one, other = (features(files) for files in sets)
    covariances = [np.cov(each, rowvar=False) for each in (one, other)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * np.real(root))
    assert measured["value"] == pytest.approx(expected, rel=1e-3)
    assert measured["of"] == [40, 40]
    assert distance(sets[0], sets[0])["value"] == pytest.approx(0, abs=1e-4)
    assert distance(sets[0][:1], sets[1])["value"] is None


def test_the_clip_score_is_the_cosine_of_the_pair(tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    folder = clip_model(tmp_path / "clip")
    (file,) = drawn(tmp_path / "a", 1, 50, 0)
    score = clip_scores(str(folder))
    text = "a cat " * 100  # cut at CLIP's length
    network, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    inputs = processor(text=[text], images=[Image.open(file)], return_tensors="pt", truncation=True)
    with torch.no_grad():
        out = network(**inputs)
    cosine = float(out.logits_per_image.detach() / network.logit_scale.exp().detach())
    assert score([(file, text)])["mean"] == pytest.approx(100 * max(cosine, 0), abs=1e-3)
    assert score([(file, text)])["error"] is None
    both = score([(file, text), (file, "a dog")])
    assert both["of"] == 2
    assert both["error"] is not None
    assert score([])["mean"] is None


def test_what_is_not_here_is_named(tmp_path: Path) -> None:
    with pytest.raises(UVRError, match="FID cannot be measured here"):
        frechet(str(tmp_path / "none"))
    with pytest.raises(UVRError, match="CLIP score cannot be measured here"):
        clip_scores(str(tmp_path / "none"))
