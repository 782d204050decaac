"""falconsai-nsfw, on small random models of its class."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_judges import IMAGES, save, vit

from uvr_core import PluginError, plugins
from uvr_core.testing import check_judge
from uvr_plugins.judges import FalconsaiNSFW


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(vit, tmp_path_factory.mktemp("vit"))


def by_hand(folder: str, place: int) -> list[float]:
    net = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images=IMAGES, return_tensors="pt").pixel_values
    with torch.no_grad():
        return net(pixels).logits.softmax(-1)[:, place].tolist()


def test_it_keeps_the_contract_through_the_door(folder: str) -> None:
    scores = sorted(by_hand(folder, 1))
    judge = plugins.registry().make("judge", "falconsai-nsfw", model=folder, threshold=scores[1]).object
    check_judge(judge, images=IMAGES)
    assert sum(map(len, judge(IMAGES))) == 1  # of three, those above the middle one
    check_judge(judge)


def test_the_class_is_told_by_its_name(tmp_path: Path) -> None:
    for classes in (("normal", "nsfw"), ("nsfw", "normal"), ("drawing", "hentai", "nsfw")):
        folder = save(vit, tmp_path / classes[0], classes)
        got = [row["nsfw"] for row in FalconsaiNSFW(model=folder).scores(IMAGES)]
        assert got == pytest.approx(by_hand(folder, classes.index("nsfw")), abs=1e-5)
        assert len(set(got)) == 3
    both = FalconsaiNSFW(labels=("nsfw", "hentai"), model=folder).scores(IMAGES[:1])[0]
    assert both == pytest.approx({"nsfw": by_hand(folder, 2)[0], "hentai": by_hand(folder, 1)[0]}, abs=1e-5)
    with pytest.raises(PluginError, match="no class 'hentay'; did you mean 'hentai'"):
        FalconsaiNSFW(labels=("hentay",), model=folder)([])


def test_more_pictures_than_a_batch(folder: str) -> None:
    judge = FalconsaiNSFW(model=folder)
    got = [row["nsfw"] for row in judge.scores(IMAGES * 7)]
    assert got == pytest.approx([row["nsfw"] for row in judge.scores(IMAGES)] * 7, abs=1e-5)


def test_nothing_is_fetched_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[Any] = []

    def refuse(*address: Any, **_: Any) -> Any:
        reached.append(address)
        raise RuntimeError("no network in this test")  # nothing that is tried again

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(
        PluginError, match=r"finds no 'Falconsai/nsfw_image_detection' .*fetches nothing unasked"
    ) as told:
        FalconsaiNSFW()(IMAGES)
    assert "\n" not in str(told.value)
    assert reached == []
    with pytest.raises(PluginError, match=r"cannot load 'Falconsai/nsfw_image_detection'"):
        FalconsaiNSFW(model="Falconsai/nsfw_image_detection")([])
    assert reached  # a name that the user gave is looked for, so that the line above could have failed


def test_missing_weights_and_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginError, match=r"cannot load .*name a folder that holds it"):
        FalconsaiNSFW(model=str(tmp_path))([])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PluginError, match=r"needs the package transformers.*: pip install transformers$"):
        FalconsaiNSFW()
