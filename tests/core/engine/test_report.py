"""The account of a run: what it says in words, and in JSON."""

from __future__ import annotations

import json

import attrs
import numpy as np
import pytest

from uvr_core.adapter import TextRoute
from uvr_core.engine.report import Finding, Report

CORE = np.eye(3, dtype=bool)
LOCATED = Finding(0, "weapon", "contrast", "block", True, 7.25, 5.0, 2, 3, 4, CORE, None, False, CORE.astype("float32"))
UNSEEN = attrs.evolve(LOCATED, sample=1, located=False, score=1.0, first_step=None, patches=0, core=~CORE & False)
REPORT = Report("regulate", 8, 2, 4, 64, (LOCATED, UNSEEN))


def test_it_says_what_was_located_where() -> None:
    assert REPORT.located(0)
    assert REPORT.located(0, "weapon")
    assert not REPORT.located(0, "nudity")
    assert not REPORT.located(1)
    assert REPORT.refused == ()
    refused = attrs.evolve(REPORT, findings=(attrs.evolve(LOCATED, refused=True), UNSEEN) * 2)
    assert refused.refused == (0,)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "image 0 weapon: located at step 2, 3 patches, 4 steps regulated (score 7.25, threshold 5)"),
        ({"from_source": True}, "3 patches, from the source image, 4 steps"),
        ({"from_source": False}, "3 patches, from the instruction, 4 steps"),
        ({"refused": True}, "threshold 5), the image was kept back"),
        ({"source_score": 6.5, "source_threshold": 4.0}, "(score 7.25, threshold 5), in the source 6.5, threshold 4"),
    ],
)
def test_words(change: dict[str, object], says: str) -> None:
    lines = str(attrs.evolve(REPORT, findings=(attrs.evolve(LOCATED, **change), UNSEEN))).splitlines()
    assert lines[0] == "posture regulate: 8 steps x 2 passes, 64 tap firings verified (4 taps)"
    assert says in lines[1]
    assert lines[2].strip() == "image 1 weapon: not located (score 1, threshold 5)"


def test_json_lists_patches_in_row_major_order_and_leaves_the_heat_out() -> None:
    data = json.loads(json.dumps(REPORT.to_dict()))
    assert (data["posture"], data["steps"], data["passes"], data["taps"], data["fired"]) == ("regulate", 8, 2, 4, 64)
    first, second = data["findings"]
    assert (first["core"], first["grid"], second["core"]) == ([0, 4, 8], [3, 3], [])
    assert "heat" not in first
    assert {field.name for field in attrs.fields(Finding)} - {"heat"} | {"grid", "outcome"} == first.keys()


def test_routes_of_text_that_are_not_regulated_are_told() -> None:
    report = attrs.evolve(REPORT, routes=(TextRoute("pooled text", "it modulates every block"),))
    assert str(report).splitlines()[-1] == "  not regulated, pooled text: it modulates every block"
    assert report.to_dict()["routes"] == [{"name": "pooled text", "description": "it modulates every block"}]


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({"located": False}, "not located"),
        ({}, "regulated"),
        ({"standing": False}, "erased"),
        ({"standing": False, "located": False}, "not located"),
        ({"standing": True}, "let through"),
        ({"standing": True, "refused": True}, "withheld"),
        ({"refused": True}, "withheld"),
    ],
)
def test_a_word_says_what_became_of_the_concept(changes: dict[str, bool], outcome: str) -> None:
    assert attrs.evolve(LOCATED, **changes).outcome == outcome
