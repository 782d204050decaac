"""From a recipe to a measured concept file, on a tiny pipeline."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from fitting import OPTIONS, drawn_masks
from PIL import Image
from tiny import tiny_flux

import uvr_core
from uvr_core import UVRError
from uvr_core.fit.recipe import Counts, Recipe, expand, find_recipe, texts
from uvr_evaluation.concept import Making, make, nobody

RECIPE = attrs.evolve(find_recipe("weapon", "zoo:x"), target=0.9, counts=Counts(3, 2, 2, 2, 2, 2), text="# as written")


def making(out: Path, recipe: Recipe = RECIPE, **options: Any) -> Making:
    told: dict[str, Any] = {"masks": "words", "told": "words", "judge": ("nobody", nobody), "call": OPTIONS}
    return Making(recipe=recipe, out=out, model="a/b", **{**told, **options}, batch=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Any]]:
    out, shown = tmp_path_factory.mktemp("concept"), []
    result = make(tiny_flux(), making(out, show=lambda *told: shown.append(told)))
    return out, result, shown


def test_a_recipe_becomes_a_concept_file_that_holds_it(made: tuple[Path, dict[str, Any], list[Any]]) -> None:
    out, result, shown = made
    bank = uvr_core.load_concepts(result["file"])
    assert bank.name == "weapon"
    assert bank.calibration is not None
    assert bank.provenance["recipe"] == "# as written"
    assert bank.provenance["recipe_sha256"] == RECIPE.digest
    assert bank.provenance["mask_source"] == "words"
    assert bank.provenance["measured"] == result["measured"]
    assert result["measured"]["located"]["of"] == 2
    assert result["measured"]["false_located"]["of"] == 2
    assert result["measured"]["erased"]["of"] == 0  # nobody looked
    assert ("collecting weapon", 8, 8) in shown  # three prompts twice, and two benign ones
    assert ("calibrating weapon", 4, 4) in shown
    tasks = json.loads((out / "measured" / "config.json").read_text())["tasks"]
    sets = expand(RECIPE)
    assert [task["prompt"] for task in tasks] == texts([*sets.measure, *sets.measure_benign])


def test_the_card_and_the_sheet_are_there(made: tuple[Path, dict[str, Any], list[Any]]) -> None:
    out, result, _ = made
    card = Path(result["card"]).read_text()
    assert card.startswith("---\nbase_model: a/b\nlibrary_name: uvr\n")
    assert RECIPE.digest in card
    located = result["measured"]["located"]
    assert f"{located['hits']} of {located['of']}" in card
    assert "num_inference_steps=2" in card
    with Image.open(out / "contact.png") as sheet:
        assert sheet.height == 4 * 164 + 4  # unsafe and benign, stock and regulated


def test_it_goes_on_where_it_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, drawn = tiny_flux(), []

    def stop(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("uvr_core.calibrate", stop)
        with pytest.raises(KeyboardInterrupt):
            make(pipe, making(tmp_path))
    assert not (tmp_path / "weapon.safetensors").exists()
    before = hashlib.sha256((tmp_path / "collected.safetensors").read_bytes()).digest()
    with monkeypatch.context() as patch:
        patch.setattr("uvr_core.collect", stop)
        make(pipe, making(tmp_path))
        make(pipe, making(tmp_path, show=lambda what, done, total: drawn.append(what)))
    assert hashlib.sha256((tmp_path / "collected.safetensors").read_bytes()).digest() == before
    assert not [what for what in drawn if what.startswith(("collecting", "calibrating"))]


def test_the_text_is_learned_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uvr_core.fit.carriers.FEEDS", 1.0)  # a random model's contrasts lie about 1
    shown: list[Any] = []
    options = {"masks": lambda images, grid: drawn_masks(len(images)), "told": "drawn"}
    made = making(tmp_path, text=True, show=lambda *told: shown.append(told), **options)
    bank = uvr_core.load_concepts(make(tiny_flux(), made)["file"])
    assert bank.text is not None
    assert bank.text.measured["carrying"][1] > 0
    assert ("reading the text of weapon", 10, 10) in shown  # three prompts twice, and four benign ones
    with pytest.raises(UVRError, match="holds a concept made with another text"):
        make(tiny_flux(), making(tmp_path, **options))


def test_a_folder_of_something_else_is_left_alone(made: tuple[Path, dict[str, Any], list[Any]], tmp_path: Path) -> None:
    with pytest.raises(UVRError, match="holds a concept made with another call and recipe"):
        make(tiny_flux(), making(made[0], attrs.evolve(RECIPE, seed=5), call={**OPTIONS, "num_inference_steps": 3}))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UVRError, match="holds other files"):
        make(tiny_flux(), making(tmp_path))


def test_where_nothing_is_located_no_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrate = uvr_core.calibrate

    def blind(*args: Any, **options: Any) -> Any:
        bank = calibrate(*args, **options)
        assert bank.calibration is not None
        return attrs.evolve(bank, calibration=attrs.evolve(bank.calibration, measured={"recall": 0.0}))

    monkeypatch.setattr("uvr_core.calibrate", blind)
    with pytest.raises(UVRError, match=r"no threshold within 0\.9 false positives"):
        make(tiny_flux(), making(tmp_path))
    assert not (tmp_path / "weapon.safetensors").exists()
