"""`uvr analyze`: the real thing, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from flowing import SOURCES
from PIL import Image

import uvr_zoo
from uvr_analysis import figures
from uvr_core.cli import main

FAST = ("--steps", "4", "--size", "64x64", "--device", "cpu", "--true-cfg", "1", "--seed", "3")
KNIVES = [
    "a knife on the left and a cat on the right , day background , glossy style",
    "a dog on the left and a knife on the right , night background , toy style",
]


def uvr(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"exit {result.exit_code}: {result.stderr}"
    return result


def test_analyze_writes_numbers_and_figures(tmp_path: Path) -> None:
    out = tmp_path / "run"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(KNIVES))
    concept = ("--concept", "flux-weapon", "--masks", "zoo:knife,pistol,bomb")
    result = uvr("analyze", "zoo:flux", "--prompts", prompts, *concept, *FAST, "--out", out, "--json")
    data = json.loads(result.stdout)
    assert data == json.loads((out / "analysis.json").read_text())
    files = ["flows.png", "heatmap.png", "masks.gif", "masks.png", "localisation.png"]
    assert data["files"] == files
    assert sorted(path.name for path in out.iterdir()) == sorted([*files, "analysis.json"])
    assert data["schema"] == "uvr.analysis/1"
    assert data["prompts"] == [{"prompt": text, "seed": 3 + i} for i, text in enumerate(KNIVES)]
    assert set(data["versions"]) >= {"uvr-core", "torch", "diffusers"}
    assert "commit" in data
    assert data["concept"]["threshold"] == uvr_zoo.concepts("flux", "weapon").calibration.threshold
    text = data["directions"]["text to output"]
    assert text["images"] == 2
    assert np.shape(text["by_step_and_block"]) == (4, 6)
    assert text["mean"] == pytest.approx(np.mean(text["by_step_and_block"], 1).tolist(), abs=1e-4)
    assert all(low <= mean <= high for low, mean, high in zip(text["low"], text["mean"], text["high"], strict=True))
    assert text["boundary"]["reason"] == "2 images, 5 needed"
    assert data["stages"]["output"]["interference"]["seen"] is None
    (auroc,) = data["localisation"].values()
    assert min(auroc["auroc"]) > 0.8
    sizes = {}
    for name in files:
        with Image.open(out / name) as image:
            sizes[name] = (image.size, getattr(image, "n_frames", 1))
            assert len(np.unique(np.asarray(image.convert("RGB")))) > 20, name
    assert sizes == {
        "flows.png": ((4 * 320, 320), 1),  # output, located, rest and text read
        "heatmap.png": ((2 * 320, 2 * 260), 1),
        "masks.gif": ((2 * 132 + 4, 148), 4),
        "masks.png": ((2 * 132 + 4, 4 * 148), 1),
        "localisation.png": ((520, 320), 1),
    }
    assert "holds a run already" in uvr(
        "analyze", "zoo:flux", "--prompts", prompts, *FAST, "--out", out, code=2
    ).stderr  # fmt: skip


def test_analyze_an_editing_model_prints_what_it_saw(tmp_path: Path) -> None:
    source = tmp_path / "source.png"
    SOURCES[0].save(source)
    result = uvr(
        "analyze", "zoo:flux-kontext", "--prompt", "add a knife", "--prompt", "add a cat", "--image", source, *FAST,
        "--guidance", "1", "--out", tmp_path / "run",
    )  # fmt: skip
    assert "interference: seen; reference to output goes from" in result.stdout or "interference: not" in result.stdout
    assert "2 images, 5 needed" in result.stdout
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["analysis.json", "flows.png", "heatmap.png"]
    with Image.open(tmp_path / "run" / "heatmap.png") as image:
        assert image.size == (3 * 320, 3 * 260)


def test_analyze_refuses_in_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, source = tmp_path / "results" / "run", tmp_path / "source.png"
    SOURCES[0].save(source)
    monkeypatch.chdir(tmp_path)  # where no folder has the judge's name

    def refused(*arguments: object, model: str = "zoo:flux") -> str:
        result = uvr("analyze", model, *arguments, *FAST, "--out", out, code=2)
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1
        assert not out.parent.exists()
        return result.stderr

    one = ("--prompt", "a cat")
    assert "takes no source picture" in refused(*one, "--image", source)
    assert "edits pictures: give --image" in refused(*one, model="zoo:flux-kontext")
    assert "expected one, or one per prompt (1), got 2" in refused(*one, "--image", source, "--image", source)
    assert "not a picture" in refused(*one, "--image", Path(__file__))
    assert "did you mean 'contrast'" in refused(*one, "--concept", "flux-weapon", "--detector", "contrst")
    assert "give the --concept" in refused(*one, "--detector", "contrast")
    assert "zoo:LABEL,LABEL, or give a --concept" in refused(*one, "--masks", "zoo")
    assert "--prompt" in refused()
    assert "made for" in refused(*one, "--concept", "sd3-weapon")
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'uvr-core[eval]'" in refused(*one)


def test_the_command_is_listed_and_has_help() -> None:
    assert "\n  analyze " in uvr("--help").stdout
    assert "--masks" in uvr("analyze", "--help").stdout


def test_report_shows_an_analysis(tmp_path: Path) -> None:
    out = tmp_path / "run"
    shown = uvr("analyze", "zoo:flux", "--prompt", "a cat", *FAST, "--out", out).stdout
    file = out / "analysis.json"
    assert uvr("report", file).stdout.splitlines() == shown.splitlines()[:-1]
    uvr("report", file, "--markdown", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert shown.splitlines()[1] in page
    assert "![heatmap.png](run/heatmap.png)" in page
