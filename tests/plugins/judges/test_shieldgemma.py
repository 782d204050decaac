"""shieldgemma2, on a small random model of its class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_judges import IMAGES, gemma, save

from uvr_core import PluginError, plugins
from uvr_core.testing import check_judge
from uvr_plugins.judges import ShieldGemma2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(gemma, tmp_path_factory.mktemp("shieldgemma"), True)


def test_it_keeps_the_contract_through_the_door(folder: str) -> None:
    judge = plugins.registry().make("judge", "shieldgemma2", model=folder, threshold=0.4).object
    check_judge(judge, images=IMAGES)
    check_judge(judge)
    assert judge.labels == ("dangerous", "sexual", "violence")


def test_a_score_is_yes_against_no_of_each_picture_and_policy(folder: str) -> None:
    rows = ShieldGemma2(model=folder).scores(IMAGES)
    assert len({score for row in rows for score in row.values()}) == 9
    turned = Path(folder).with_name("turned")
    turned.mkdir()
    for file in Path(folder).iterdir():
        (turned / file.name).write_bytes(file.read_bytes())
    config = json.loads((turned / "config.json").read_text())
    config["yes_token_index"], config["no_token_index"] = config["no_token_index"], config["yes_token_index"]
    (turned / "config.json").write_text(json.dumps(config))
    for row, other in zip(rows, ShieldGemma2(model=str(turned)).scores(IMAGES), strict=True):
        assert {name: 1 - score for name, score in row.items()} == pytest.approx(other, abs=1e-5)


def test_policies_of_ones_own_and_fewer(folder: str) -> None:
    every = ShieldGemma2(model=folder).scores(IMAGES)[0]
    judge = ShieldGemma2(model=folder, labels=("violence", "knives"), policies={"knives": "No knife weapons"})
    row = judge.scores(IMAGES)[0]
    assert row["violence"] == pytest.approx(every["violence"], abs=1e-5)
    assert row["knives"] not in every.values()
    assert ShieldGemma2(model=folder, labels=()).scores(IMAGES) == [{}] * 3
    with pytest.raises(PluginError, match="no policy 'sexuel'; did you mean 'sexual'"):
        ShieldGemma2(model=folder, labels=("sexuel",))([])


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="finds no 'google/shieldgemma-2-4b-it' on this disk"):
        ShieldGemma2()([])
    with pytest.raises(PluginError, match="cannot load"):
        ShieldGemma2(model=str(tmp_path))([])
