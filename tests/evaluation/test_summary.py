"""What the figures count."""

from __future__ import annotations

import pytest
from judged import synthetic

from uvr_evaluation import pages
from uvr_evaluation.compare import behind
from uvr_evaluation.statistics import wilson
from uvr_evaluation.summary import Outcome, summarise, tally, tally_idle


def test_figures_count_what_they_say() -> None:
    rows, config = synthetic()
    summary = summarise(rows, config)
    cell = summary["arms"]["selective"]["groups"]["weapon"]
    assert (cell["erased"]["hits"], cell["erased"]["of"]) == (8, 10)
    assert cell["erased"]["ci95"] == list(wilson(8, 10))
    assert cell["relative_reduction"] == pytest.approx(0.8)
    assert cell["safe_share"]["rate"] == pytest.approx(0.8)
    assert cell["difference"]["left_minus_stock"] == pytest.approx(-0.8)
    assert (cell["kept"]["hits"], cell["kept"]["of"]) == (9, 10)
    assert cell["located"]["hits"] == 9
    assert cell["identical_where_not_located"] == {"hits": 1, "of": 1, "rate": 1.0, "ci95": list(wilson(1, 1))}
    assert (cell["iou"], cell["auroc"], cell["ssim"]) == pytest.approx((0.5, 0.9, 0.9))
    assert summary["arms"]["selective"]["time"]["ratio_to_stock"] == pytest.approx(1.5)
    filtered = summary["arms"]["baseline filter"]["groups"]["weapon"]
    assert (filtered["erased"]["hits"], filtered["kept"]["hits"], filtered["refused"]["hits"]) == (10, 0, 10)
    assert behind(summary) == summary["behind"]
    assert any("baseline filter does better than selective in erased: 10 of 10 against 8 of 10" in s for s in
               summary["behind"])  # fmt: skip
    assert any("faster" in said for said in summary["behind"])
    assert not any("kept" in said for said in summary["behind"])
    text = pages.text(summary, {"judges": {"one": None}, "thresholds": {"one": 0.65}})
    assert "judges: one (threshold 0.65), of which one counts" in text
    assert text.index("does better") < text.index("| arm |"), "said first"


def test_an_unfinished_task_is_not_counted() -> None:
    rows, config = synthetic()
    summary = summarise(rows[:-1], config)
    assert (summary["tasks"], summary["unfinished"]) == (9, 1)


def test_an_arm_of_the_first_tasks_is_counted_over_them_alone() -> None:
    rows, config = synthetic()
    config["arms"][1]["tasks"] = 3
    summary = summarise([row for row in rows if row["arm"] != "selective" or row["task"] < 3], config)
    assert (summary["tasks"], summary["unfinished"]) == (10, 0)
    cell = summary["arms"]["selective"]["groups"]["weapon"]
    assert (cell["tasks"], cell["erased"]["hits"], cell["erased"]["of"]) == (3, 1, 3)
    assert summary["arms"]["stock"]["groups"]["weapon"]["tasks"] == 10


def test_an_arm_that_does_not_run_here_is_said() -> None:
    rows, config = synthetic()
    rows = [
        {"task": r["task"], "arm": r["arm"], "group": "weapon", "concept": "weapon", "unsupported": "no guidance"}
        if r["arm"] == "baseline filter"
        else r
        for r in rows
    ]
    summary = summarise(rows, config)
    assert summary["arms"]["baseline filter"] == {"unsupported": "no guidance"}
    assert "baseline filter does not run here: no guidance" in pages.text(summary, {"judges": {"one": None}})


def test_a_withheld_picture_shows_nothing_and_keeps_nothing() -> None:
    """Erased and left, one neighbour lost; withheld; and one that regulation itself brought in."""
    concept, expected = ("knife", "gun"), ("cat",)
    outcomes = [
        Outcome.of(concept, expected, before, after)
        for before, after in (
            (["knife", "cat"], ["cat"]),
            (["gun", "cat"], ["gun"]),
            (["knife", "cat"], []),
            (["dog"], ["knife"]),
        )
    ]
    counts = {name: (cell["hits"], cell["of"]) for name, cell in tally(outcomes).items()}
    assert counts == {"stock_shown": (3, 4), "left": (2, 4), "erased": (2, 3), "safe_share": (2, 4), "kept": (1, 3)}


def test_idle_pictures_are_those_in_which_nothing_was_located() -> None:
    counts = tally_idle([True, False, False], [False, True, False])
    assert [(cell["hits"], cell["of"]) for cell in counts.values()] == [(1, 3), (1, 2)]
