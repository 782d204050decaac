"""`evaluate` in Python does what the command does."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from judged import FAST, PROMPTS, Dull, Shade, lasting, uvr
from tiny import tiny_flux

from uvr_core.errors import UVRError
from uvr_evaluation import Arm, evaluate
from uvr_evaluation.prompt_sets import read_tasks
from uvr_evaluation.rows import read_rows

CALL = {"num_inference_steps": 2, "width": 64, "height": 64}


def test_it_does_what_the_command_does(checkpoint: Path, concept: Path, prompts: Path, tmp_path: Path) -> None:
    """The same rows and figures; a pipeline is loaded when everything else is checked."""
    options = ("--concept", concept, "--policy", "uvr", "--baseline", "every-second", "--judge", "shade")
    printed = uvr("eval", checkpoint, "--prompts", prompts, *options, *FAST, "--out", tmp_path / "one", "--json")
    shown: list[tuple[str, int, int]] = []
    summary = evaluate(
        lambda: _quiet(), prompts, tmp_path / "two", judges=["shade"], concepts=[concept], policies=["uvr"],
        baselines=["every-second"], call=lambda pipe: CALL, batch=2, progress=lambda *told: shown.append(told),
    )  # fmt: skip
    assert lasting(read_rows(tmp_path / "two")) == lasting(read_rows(tmp_path / "one"))
    told = json.loads(printed.stdout)
    for name, arm in summary["arms"].items():
        assert json.loads(json.dumps(arm["groups"])) == told["arms"][name]["groups"]
    assert shown[-1] == ("evaluating", 3 * PROMPTS, 3 * PROMPTS)


def _quiet() -> object:
    pipe = tiny_flux()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_tasks_judges_and_arms_may_be_objects(concept: Path, prompts: Path, tmp_path: Path) -> None:
    tasks = read_tasks(prompts)[:2]
    names = prompts.parent / "subjects.toml"
    asked = {"judges": {"mine": Dull()}, "concepts": concept, "subjects": names, "call": CALL, "batch": 2}
    arm = Arm("weak", "policy", "uvr", set={"strong": 0.9})
    summary = evaluate(_quiet(), tasks, tmp_path / "out", arms=[arm], **asked)
    assert list(summary["arms"]) == ["stock", "weak"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model"] == "FluxPipeline"
    assert config["arms"][1]["set"] == {"strong": 0.9}
    with pytest.raises(UVRError, match="holds an evaluation with other prompts and tasks"):
        evaluate(_quiet(), read_tasks(prompts)[:3], tmp_path / "out", arms=[arm], **asked)


def test_controls_of_the_first_tasks_alone(concept: Path, prompts: Path, tmp_path: Path) -> None:
    """Across a batch; with banks that only labelled arms have; the pages show what there is."""
    arms = [
        Arm("uvr", "policy", "uvr", banks="weapon"),
        Arm("random", "policy", "uvr", where="random", banks="weapon", tasks=3, seed=1),
    ]
    asked = {"judges": {"mine": Shade()}, "subjects": prompts.parent / "subjects.toml", "call": CALL, "batch": 2}
    summary = evaluate(_quiet(), prompts, tmp_path / "out", arms=arms, anchors_from={"weapon": concept}, **asked)
    rows = read_rows(tmp_path / "out")
    assert [row["task"] for row in rows if row["arm"] == "random"] == [0, 1, 2]
    assert summary["unfinished"] == 0
    assert summary["arms"]["random"]["groups"]["weapon"]["tasks"] == 1
    assert (tmp_path / "out" / "report.html").read_text().count("<img") == 1 + len(rows)
    with pytest.raises(UVRError, match="--policy needs a --concept"):
        evaluate(_quiet(), prompts, tmp_path / "none", arms=arms, **asked)


def test_what_is_not_installed_is_named_before_anything_is_drawn(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "jinja2" else find(name))
    with pytest.raises(UVRError, match=r"need jinja2, not installed here: pip install 'uvr-core\[eval\]'"):
        evaluate(None, prompts, tmp_path / "out", judges={"mine": Shade()})
    assert not (tmp_path / "out").exists()
