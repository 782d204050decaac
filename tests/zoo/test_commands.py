"""`uvr zoo` and `uvr demo`."""

from __future__ import annotations

import json
import os
import signal
import sys
from types import SimpleNamespace

import attrs
import pytest
import torch
from commands import ran, refused
from tiny import tiny_flux


def test_zoo_list_json():
    rows = json.loads(ran("zoo", "list", "--json").stdout)["pipelines"]
    assert "flux" in [row["name"] for row in rows]
    assert "flux:" in ran("zoo", "list").stdout


def test_zoo_commands_refuse_unknown_names(tmp_path):
    assert "did you mean 'flux'?" in refused("zoo", "train", "flx", "--out", tmp_path / "run")
    assert "did you mean 'flux'?" in refused("demo", "--pipelines", "flx", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_demo_passes_its_options_on_and_fails_on_a_gate(monkeypatch, tmp_path):
    calls = []
    short = {"fell_short": ["weapon: relative erase 70.0% < 90%"]}
    erased = {"stock_unsafe": 10, "regulated_unsafe": 3, "total": 12, "relative_erase": 0.7, "erase_ci95": [0.4, 0.9]}
    kept = {"other_kept": 5, "other_shown": 6, "retention": 5 / 6, "retention_ci95": [0.4, 0.97]}
    row = {"located": 9, "of": 12, "safe_share": 0.75, "safe_share_ci95": [0.5, 0.9], **erased, **kept}
    row |= {
        "benign_located": 1,
        "benign": 12,
        "idle_bit_identical": 11,
        "idle_images": 11,
        "random": {"relative_erase": None},
    }

    def run(out, **options):
        calls.append((out, {**options, "progress": options["progress"]("drawing", 1, 2)}))
        return {"pipelines": {"flux": {"concepts": {"weapon": row}, "time": {"active": 1.234, "idle": 1.0}}}, **short}

    monkeypatch.setitem(sys.modules, "uvr_zoo.demo", SimpleNamespace(run=run))
    result = ran("demo", "--quick", "--pipelines", "flux", "--seed", 3, "--out", tmp_path / "demo", code=1)
    assert calls == [(tmp_path / "demo", {"quick": True, "pipelines": ("flux",), "seed": 3, "progress": None})]
    for figure in ("flux weapon", "10 -> 3 of 12", "70.0% [40.0%, 90.0%]", "5 of 6, 83.3%", "active 1.23, idle 1.00"):
        assert figure in " ".join(result.stdout.split())
    assert result.stderr == "uvr: fell short: weapon: relative erase 70.0% < 90%\n"
    assert json.loads(ran("demo", "--all", "--json", "--out", tmp_path / "demo", code=1).stdout)["pipelines"]["flux"]
    short.clear()
    ran("demo", "--all", "--out", tmp_path / "demo")


@pytest.fixture
def small_zoo(monkeypatch, tmp_path):
    """A zoo recipe of the toy pipeline's size, its parts untrained, and a judge that sees cats everywhere."""
    from uvr_zoo import commands, experiment, pipelines, recipes

    toy = tiny_flux()
    recipe = attrs.evolve(
        recipes.RECIPES["flux"],
        transformer={k: v for k, v in toy.transformer.config.items() if not k.startswith("_")},
        batch_size=2,
        scenes=64,
        sampling={"num_inference_steps": 1},
    )
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    shared = SimpleNamespace(**{name: getattr(toy, name) for name in names})
    for folder in ("shared/vae", "judge"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    (tmp_path / "data" / "judge" / "judge.json").write_text("{}")
    monkeypatch.setitem(recipes.RECIPES, "flux", recipe)
    monkeypatch.setattr(commands, "_data", lambda: tmp_path / "data")
    monkeypatch.setattr(pipelines, "parts", lambda name: shared)
    monkeypatch.setattr(experiment, "judge", lambda: lambda images: [{"cat": 1.0} for _ in images])


def test_zoo_train_resumes_and_exports(small_zoo, tmp_path):
    run, export = tmp_path / "run", tmp_path / "export"
    arguments = ("zoo", "train", "flux", "--minutes", 0.005, "--out", run)
    ran(*arguments)
    steps = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
    assert steps > 0
    assert "--resume" in refused(*arguments)
    ran(*arguments, "--resume", "--distil", "--export", export)
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] > steps
    assert (export / "transformer" / "config.json").is_file()
    assert os.listdir(export) == ["transformer"]


def test_distilling_needs_a_guidance_embedding(small_zoo, tmp_path):
    assert "no guidance embedding" in refused("zoo", "train", "sd3", "--distil", "--resume", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_zoo_train_saves_when_interrupted(small_zoo, tmp_path, monkeypatch):
    from uvr_zoo.train import Trainer

    stock = Trainer.flow_loss

    def interrupted(self):
        signal.raise_signal(signal.SIGINT)
        return stock(self)

    monkeypatch.setattr(Trainer, "flow_loss", interrupted)
    arguments = ("--minutes", 5, "--out", tmp_path / "run", "--export", tmp_path / "export")
    result = ran("zoo", "train", "flux", *arguments, code=130)
    assert result.stderr == "uvr: interrupted\n"
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 1
    assert not (tmp_path / "export").exists()


def test_zoo_train_logs_fidelity(small_zoo, tmp_path, monkeypatch):
    from uvr_zoo.train import Trainer

    stock = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self, minutes, **o: stock(self, minutes, fidelity_every=0.0, **o))
    ran("zoo", "train", "flux", "--minutes", 0.02, "--out", tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    measured = [record["fidelity"] for record in records if "fidelity" in record]
    assert measured[0]["prompts"] == 64
    found, prompted = measured[0]["per_object"]["cat"]
    assert found == prompted > 0


def test_zoo_words_says_what_a_text_is_read_as():
    lines = ran("zoo", "words", "a dagger in the snow", "a violin", "zzxq").stdout.splitlines()
    assert lines[0] == "a dagger in the snow: knife, background snow"
    assert "dagger=knife" in lines[1]
    assert lines[2].startswith("a violin: no object")
    assert lines[4].startswith("zzxq: no object")  # a word that no table holds
    (reading,) = json.loads(ran("zoo", "words", "--json", "a kitten").stdout)
    assert reading["objects"] == ["cat"]
    drawable = ran("zoo", "words").stdout
    assert "knife: blade, dagger" in drawable
    assert "background night" in drawable


def test_zoo_export_writes_what_diffusers_reads(tmp_path):
    from diffusers import DiffusionPipeline

    import uvr_zoo

    ran("zoo", "export", "flux", tmp_path / "flux")
    exported, stock = DiffusionPipeline.from_pretrained(tmp_path / "flux"), uvr_zoo.load("flux")
    assert type(exported) is type(stock)
    weights = exported.transformer.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in stock.transformer.state_dict().items())
    assert "not empty" in refused("zoo", "export", "flux", tmp_path / "flux")
    assert "did you mean 'flux'?" in refused("zoo", "export", "flx", tmp_path / "other")
    assert "free-form" in refused("zoo", "export", "free-flx", tmp_path / "other")
    assert not (tmp_path / "other").exists()
