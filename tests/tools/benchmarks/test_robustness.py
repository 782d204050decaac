"""tools/benchmarks/robustness.py: the search climbs, the inversion inverts, the tasks say what they should, the page is
the JSON's."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from uvr_zoo import scenes
from uvr_zoo.vocabulary import DESCRIPTIONS, SYNONYMS

ROOT = Path(__file__).parents[3]
sys.path.append(str(ROOT / "tools" / "benchmarks"))

import attack  # noqa: E402
import inversion  # noqa: E402
import outcomes  # noqa: E402
import robustness  # noqa: E402
import variations  # noqa: E402


def test_the_search_improves_a_synthetic_objective_within_its_budget():
    wanted, asked = {"north", "wind", "sun"}, []

    def objective(prompts: list[str]) -> list[float]:
        asked.extend(prompts)
        return [len(wanted & set(prompt.split())) / 3 for prompt in prompts]

    vocabulary = ["north", "wind", "sun", *(f"word{i}" for i in range(20))]
    found = attack.search(objective, "a b c d", vocabulary, queries=500, seed=0, enough=1.0)
    assert asked[0] == "a b c d"
    assert found.score == 1.0
    assert wanted <= set(found.prompt.split())
    assert asked[found.query - 1] == found.prompt
    assert len(asked) == found.asked <= 500
    assert list(found.curve) == sorted(found.curve)


def test_the_search_stops_at_its_budget_and_keeps_the_best():
    found = attack.search(lambda p: [0.0] * len(p), "a b", ["c"], queries=20, seed=0, enough=1.0, batch=16)
    assert (found.asked, found.score, found.prompt, found.query) == (20, 0.0, "a b", 1)


def test_a_weapon_counts_only_if_its_words_drew_it(monkeypatch):
    """Pictures are their prompts; the judge sees a weapon in what names a knife, and is fooled by stars."""
    monkeypatch.setattr(attack, "draw", lambda pipe, prompts, seeds: list(prompts))
    monkeypatch.setattr(attack, "steady_scores", lambda images: [float("knife" in i or "star" in i) for i in images])
    prompts, seeds = ["a knife", "a knife and a star", "a star", "a dog"], [0] * 4
    counts = {}
    for arm in ("stock", "blocklist", "control"):
        target = attack.Target(None, None, arm, lambda prompt: "knife" in prompt)
        counts[arm] = (target.scores(prompts, seeds), target.fooled)
    assert counts["stock"] == ([1, 0, 0, 0], 2)
    assert counts["blocklist"] == ([0, 0, 0, 0], 1)
    assert counts["control"] == ([1, 1, 1, 0], 0)


def test_inversion_undoes_the_euler_steps():
    """On a velocity without a model: x' = A x + level; forward from the inverted latents is the picture again."""
    matrix = 0.5 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = inversion.shifted(inversion.schedule(10), 2.0)

    def velocity(x: torch.Tensor, level: float) -> torch.Tensor:
        return x @ matrix + level

    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    states = inversion.invert(velocity, x, levels, rounds=20)
    assert len(states) == len(levels) == 11
    drawn = states[0]
    for high, low in pairwise(levels):
        drawn = drawn + (low - high) * velocity(drawn, high)
    torch.testing.assert_close(drawn, x, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("one_thread")
def test_a_picture_comes_back_from_its_inverted_latents():
    """Through the real pipeline, whose schedule `shifted` must match; a few grey levels are the autoencoder's."""
    scene = scenes.sample(820_123, "heldout", objects=("knife", "dog"), styles=("toy",), wordings=0.0, pair=1.0)
    picture, pipe = scenes.render(scene)[0], outcomes.pipeline("flux")
    states = inversion.inverted(pipe, [picture], [scene.caption], rounds=2)
    assert len(states) == inversion.STEPS + 1
    drawn = inversion._from(pipe, states, 1.0, [scene.caption], [0], true_cfg_scale=1.0)
    assert pipe.scheduler.sigmas.tolist() == pytest.approx(inversion.shifted(inversion.schedule(), 2.0))
    assert np.abs(np.asarray(drawn[0], float) - picture).mean() < 8


@pytest.mark.parametrize(("name", "by"), [("flux", ""), ("flux-kontext", "instruction")])
def test_rewording_changes_the_unsafe_object_alone(name, by):
    for task in variations.asking(name, by, 6, ("toy",)):
        (unsafe,) = variations.shown(task).unsafe
        plain = variations.reworded(task, "name")
        assert plain == task
        for wording, words in (("synonym", SYNONYMS[unsafe][0]), ("description", DESCRIPTIONS[unsafe])):
            other = variations.reworded(task, wording)
            text = other.instruction if by else other.caption
            assert words in text
            assert unsafe not in text.split()
            assert [i.name for i in variations.shown(other).items] == [i.name for i in variations.shown(task).items]


def test_outcome_counts(monkeypatch):
    """Four pictures: erased, left, new, and a neighbour lost."""
    tasks = [
        scenes.Scene((scenes.Item("knife", "left"), scenes.Item("dog", "right")), "sky", "toy", i) for i in range(4)
    ]
    seen = {
        "s0": ["knife", "dog"], "s1": ["knife", "dog"], "s2": ["dog"], "s3": ["bomb", "dog"],
        "r0": ["dog"], "r1": ["pistol", "dog"], "r2": ["knife"], "r3": [],
    }  # fmt: skip
    monkeypatch.setattr(outcomes, "judge", lambda: lambda images: [dict.fromkeys(seen[i], 1.0) for i in images])
    stock = outcomes.Generated([f"s{i}" for i in range(4)], [None], [4])
    regulated = outcomes.Generated([f"r{i}" for i in range(4)], [None], [4])
    row = outcomes.outcome(tasks, [outcomes.members_of(t) for t in tasks], stock, regulated)
    counts = {what: (row[what]["hits"], row[what]["of"]) for what in ("stock", "regulated", "erased", "kept")}
    assert counts == {"stock": (3, 4), "regulated": (2, 4), "erased": (2, 3), "kept": (2, 4)}
    assert row["drop"][0] == pytest.approx(0.25)


def test_the_page_is_what_the_json_gives(tmp_path):
    given = ROOT / "docs" / "figures" / "robustness.json"
    robustness.main(["--from", str(given), "--out", str(tmp_path)])
    assert (tmp_path / "robustness.md").read_text() == (ROOT / "docs" / "robustness.md").read_text()
    assert set(json.loads(given.read_text())["parts"]) == set(robustness.PARTS)
