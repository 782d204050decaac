"""vlm, on small random models of two of transformers' families."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from small_judges import IMAGES, WORDS, gemma, llava, save

from uvr_core import PluginError, plugins
from uvr_core.testing import check_judge
from uvr_plugins.judges import Vlm

QUESTION = "pistol {label} ?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(llava, tmp_path_factory.mktemp("llava"))


def test_it_keeps_the_contract_through_the_door(folder: str) -> None:
    labels = ("pistol", "knife")
    judge = plugins.registry().make("judge", "vlm", model=folder, labels=labels, threshold=0.2).object
    check_judge(judge, images=IMAGES)
    check_judge(judge)
    assert 0 < sum(map(len, judge(IMAGES))) < 6
    assert Vlm(model=folder)(IMAGES) == [{}] * 3


def test_the_score_is_yes_against_no_of_the_next_token(folder: str) -> None:
    net = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.LlavaProcessor.from_pretrained(folder)
    rows = Vlm(model=folder, labels=("pistol", "knife"), question=QUESTION).scores(IMAGES)
    for image, row in zip(IMAGES, rows, strict=True):
        for label, score in row.items():
            inputs = processor(images=image, text=f"<image> pistol {label} ? ", return_tensors="pt")
            with torch.no_grad():
                says = net(**inputs).logits[0, -1].double().softmax(-1)
            yes, no = (sum(float(says[WORDS.index(word)]) for word in each) for each in (("yes", "Yes"), ("no", "No")))
            assert score == pytest.approx(yes / (yes + no), abs=1e-5)
    assert len({score for row in rows for score in row.values()}) == 6  # the picture and the label both count


def test_another_family(tmp_path: Path) -> None:
    judge = Vlm(model=save(gemma, tmp_path), labels=("pistol", "knife"), threshold=0.1)
    check_judge(judge, images=IMAGES)
    assert len({score for row in judge.scores(IMAGES) for score in row.values()}) == 6


def test_what_cannot_be_asked_says_so(folder: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="needs weights: vlm=FOLDER:label"):
        Vlm(labels=("pistol",))([])
    with pytest.raises(PluginError, match="cannot load"):
        Vlm(labels=("pistol",), model=str(tmp_path / "none"))([])
    words = [word for word in WORDS if word.lower() != "yes"]
    with pytest.raises(PluginError, match="has no single tokens for yes and no"):
        Vlm(model=save(llava, tmp_path / "wordless", words))([])
    with pytest.raises(ValueError, match=r"expected \{label\} in it"):
        Vlm(question="Is it there?")
    silent = tmp_path / "silent"
    silent.mkdir()
    for file in Path(folder).iterdir():
        if "chat_template" not in file.name:
            (silent / file.name).write_bytes(file.read_bytes())
    with pytest.raises(PluginError, match="has no chat template"):
        Vlm(model=str(silent))([])
