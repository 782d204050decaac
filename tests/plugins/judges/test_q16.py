"""q16, on a small random CLIP and prompts of the same width."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from small_judges import IMAGES, clip, save

from uvr_core import PluginError, plugins
from uvr_core.testing import check_judge
from uvr_plugins.judges import Q16

PROMPTS = np.random.default_rng(4).normal(size=(2, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    save(clip, path)
    for protocol in (2, 5):
        (path / f"prompts{protocol}.p").write_bytes(pickle.dumps(PROMPTS, protocol))
    np.save(path / "prompts.npy", PROMPTS)
    save_file({"prompts": torch.from_numpy(PROMPTS)}, path / "prompts.safetensors")
    return path


def test_it_keeps_the_contract_through_the_door(folder: Path) -> None:
    judge = plugins.registry().make("judge", "q16", model=str(folder / "prompts.npy"), threshold=0.01).object
    check_judge(judge, images=IMAGES)
    check_judge(judge)


@pytest.mark.parametrize("file", ["prompts2.p", "prompts5.p", "prompts.npy", "prompts.safetensors"])
def test_the_score_is_the_softmax_of_a_hundred_cosines(folder: Path, file: str) -> None:
    net = transformers.CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    pixels = transformers.CLIPImageProcessor.from_pretrained(folder)(images=IMAGES, return_tensors="pt").pixel_values
    with torch.no_grad():
        seen = net(pixels).image_embeds.double().numpy()
    cosines = (seen @ PROMPTS.T) / np.linalg.norm(seen, axis=1)[:, None] / np.linalg.norm(PROMPTS, axis=1)
    expected = 1 / (1 + np.exp(100 * (cosines[:, 0] - cosines[:, 1])))  # the second is "inappropriate"
    got = [row["inappropriate"] for row in Q16(model=str(folder / file)).scores(IMAGES)]
    assert got == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_clip_that_lies_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(PROMPTS))
    prompts = str(tmp_path / "prompts.p")
    assert Q16(model=prompts, clip=str(folder)).scores(IMAGES) == Q16(model=str(folder / "prompts.npy")).scores(IMAGES)
    with pytest.raises(PluginError, match="finds no 'openai/clip-vit-large-patch14' on this disk"):
        Q16(model=prompts)([])
    with pytest.raises(PluginError, match=r"expected two prompts of CLIP's width, \(2, 8\), got \(2, 12\)"):
        Q16(model=prompts, clip=save(clip, tmp_path / "other", 8))([])


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("bomb",)


def test_a_pickle_that_calls_something_is_not_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(PluginError, match=r"holds posix.mkdir, expected one numpy array"):
        Q16(model=str(tmp_path / "prompts.p"), clip=str(folder))([])
    assert not (tmp_path / "bomb").exists()


def test_without_its_file_it_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"needs the file of its soft prompts: q16=FOLDER/prompts\.p"):
        Q16()([])
    with pytest.raises(PluginError, match=r"cannot read soft prompts from .*FileNotFoundError"):
        Q16(model=str(tmp_path / "none.p"))([])
