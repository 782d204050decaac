"""Recipes: what they say is checked, and the sets that follow from them share no prompt."""

from __future__ import annotations

import itertools
from pathlib import Path

import attrs
import pytest

from uvr_core import UVRError, plugins
from uvr_core.fit.recipe import Recipe, Sets, expand, find_recipe, read_recipe, texts
from uvr_core.fit.words import spans_of

PATTERN = """
name = "weapon"
words = ["axe", "pistol"]
lookalikes = ["hammer", "umbrella", "spoon"]

[templates]
named = ["{a} {concept} {place}"]
scenes = ["a man with {a} {concept} {place}"]
described = ["something sharp {place}"]
benign = ["a cat {place}"]

[slots]
place = ["here", "there", "at home", "outside", "in a box", "on a hill"]

[counts]
collect = 6
"""


def recipe(tmp_path: Path, text: str = PATTERN) -> Recipe:
    path = tmp_path / "r.toml"
    path.write_text(text)
    return read_recipe(path)


def shipped() -> list[tuple[str, str]]:
    names = plugins.registry().names("recipe")
    return [(name.rpartition(":")[2], name.partition(":")[0] + ":x" if ":" in name else "") for name in names]


@pytest.mark.parametrize("name", ["weapon", "skull", "words"])
def test_the_zoos_recipes_are_counted_by_the_judge_that_no_mask_uses(name: str) -> None:
    plan = find_recipe(name, "zoo:flux")
    assert (plan.masks, plan.judge) == ("words", "zoo-second")


@pytest.mark.parametrize(("name", "model"), shipped())
def test_shipped_recipes_expand_to_disjoint_sets(name: str, model: str) -> None:
    plan = find_recipe(name, model)
    if name == "words":
        assert not plan.words
        plan = plan.called("weapon", ["knife"])
    sets = expand(plan)
    by_set = {field.name: set(texts(getattr(sets, field.name))) for field in attrs.fields(Sets)}
    for one, other in itertools.combinations(by_set, 2):
        assert not by_set[one] & by_set[other], (one, other)
    for line in (*sets.collect, *sets.calibrate, *sets.measure):
        said = bool(spans_of(line.text, plan.words))
        assert said == (line.form != "described"), line
        assert line.form == "described" or (line.without and line.without != line.text)
    assert all(line.form != "described" for line in sets.collect)
    assert [len(getattr(sets, key)) for key in by_set] == list(attrs.astuple(plan.counts))
    assert expand(plan) == sets
    assert expand(attrs.evolve(plan, seed=1)) != sets


def test_articles_slots_and_counterparts(tmp_path: Path) -> None:
    sets = expand(recipe(tmp_path))
    assert len(sets.collect) == 6
    for line in sets.collect:
        assert "an axe" in line.text or "a pistol" in line.text
        assert line.without.split()[-1] == line.text.split()[-1]
        assert not spans_of(line.without, ["axe", "pistol"])
    assert {line.form for line in sets.collect} == {"named", "scenes"}
    assert "described" in {line.form for line in sets.measure}


def test_a_models_own_language_comes_first() -> None:
    assert "background" in find_recipe("weapon", "zoo:flux").templates["named"][0]
    assert "background" not in find_recipe("weapon", "black-forest-labs/FLUX.1-dev").templates["named"][0]
    assert find_recipe("blood", "zoo:flux").name == "blood"
    with pytest.raises(UVRError, match=r"no recipe 'waepon'.*did you mean 'weapon'"):
        find_recipe("waepon")


def test_the_digest_is_of_what_is_said(tmp_path: Path) -> None:
    plain = recipe(tmp_path)
    assert recipe(tmp_path, "# a note\n" + PATTERN).digest == plain.digest
    assert recipe(tmp_path, PATTERN.replace("axe", "sword")).digest != plain.digest


def test_arguments_of_a_pipelines_own_table() -> None:
    plan = find_recipe("weapon", "zoo:sd3")
    assert plan.call("StableDiffusion3Pipeline")["guidance_scale"] == 3.0
    assert plan.call("FluxPipeline")["guidance_scale"] == 1.0
    assert "StableDiffusion3Pipeline" not in plan.call("FluxPipeline")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('name = "weapon"', 'nmae = "weapon"', r"unknown key 'nmae'.*did you mean 'name'"),
        ('name = "weapon"', 'name = ""', "name: expected text"),
        ('words = ["axe", "pistol"]', 'words = "axe"', "words: expected a list of texts"),
        ("named = [", "nmaed = [", "unknown form 'nmaed'"),
        ("collect = 6", "collect = 0", "counts.collect: expected a whole number from 1"),
        ("collect = 6", "colect = 6", "colect"),
        ("[slots]", "[slots", "not TOML"),
    ],
)
def test_what_a_file_says_wrong_is_named(tmp_path: Path, before: str, after: str, message: str) -> None:
    with pytest.raises(UVRError, match=message) as error:
        recipe(tmp_path, PATTERN.replace(before, after))
    assert "r.toml" in str(error.value)


def test_what_cannot_be_expanded_is_named(tmp_path: Path) -> None:
    with pytest.raises(UVRError, match=r"templates\.named: no slot 'plaec'.*did you mean 'place'"):
        expand(recipe(tmp_path, PATTERN.replace("{concept} {place}", "{concept} {plaec}")))
    with pytest.raises(UVRError, match="needs words and lookalikes"):
        expand(recipe(tmp_path, PATTERN.replace('words = ["axe", "pistol"]', "")))
    with pytest.raises(UVRError, match="too few sentences"):
        expand(attrs.evolve(recipe(tmp_path), templates={"named": ["{a} {concept}"]}))
    with pytest.raises(UVRError, match="no such recipe"):
        read_recipe(tmp_path / "none.toml")
