"""Students as they ship: small, loaded by diffusers as any LoRA, and the model that was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers import FluxPipeline

import uvr_core
import uvr_zoo
from uvr_core.errors import UVRError
from uvr_zoo.freeform import distil, pipelines, publish, students, train
from uvr_zoo.freeform.__main__ import main
from uvr_zoo.freeform.pipelines import TEXT, family, load_free, pipeline, trained
from uvr_zoo.freeform.pool import Mix

PLAN = train.Plan(Mix(("cat", "knife"), ("glossy",)), minutes=1, batch_size=4, fresh=1, pool=4, first=2)
FLUX = ["flux-dev", "flux-schnell"]


def learned(name: str, folder: Path) -> distil.Student:
    """A student whose LoRA is far from the zero that it starts from, exported."""
    course, pipe = students.COURSES[name], pipeline("flux", TEXT, transformer=trained("flux"))
    one = distil.Student(course, PLAN, pipe, family("flux"), folder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in one.ema.named_parameters():
            if "lora_B" in key:
                value.normal_(0, 0.05, generator=generator)
    one.export(folder / "lora")
    return one


@pytest.mark.parametrize("name", FLUX)
def test_what_is_loaded_is_what_was_trained(name: str, tmp_path: Path) -> None:
    """The stock class without traces of peft; without an embedding of guidance, as FLUX.1-schnell, or told of it."""
    one = learned(name, tmp_path)
    assert sum(path.stat().st_size for path in (tmp_path / "lora").iterdir()) <= 250_000
    pipe = load_free(name, tmp_path / "lora")
    assert type(pipe) is FluxPipeline
    assert pipe.transformer.config.guidance_embeds is (name == "flux-dev")
    assert not [key for key in pipe.transformer.state_dict() if "lora" in key]
    assert not getattr(pipe.transformer, "peft_config", {})
    d = one.draw(0.5)
    scale = torch.full((4,), 2.5) if one.course.told else torch.ones(4)
    teacher = load_free("flux").transformer
    with torch.no_grad():
        ours, theirs, stock = (
            one.family.predict(model, d.x, d.sigma, d.prompt, None, scale, d.grid)
            for model in (one.ema, pipe.transformer, teacher)
        )
    assert torch.allclose(ours, theirs, atol=2e-3)
    assert not torch.allclose(ours, stock, atol=0.1)


def test_without_guidance_is_the_model_at_scale_one() -> None:
    stock = load_free("flux").transformer
    plain = students.without_guidance(stock)
    call = {
        "hidden_states": torch.randn(2, 9, 16),
        "timestep": torch.tensor([0.2, 0.9]),
        "encoder_hidden_states": torch.randn(2, 5, 128),
        "pooled_projections": torch.randn(2, 64),
        "img_ids": torch.zeros(9, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    with torch.no_grad():
        assert torch.allclose(plain(**call).sample, stock(**call, guidance=torch.ones(2)).sample, atol=1e-5)


def test_a_student_is_published_called_as_its_course_says_and_regulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned("flux-schnell", tmp_path)
    monkeypatch.setattr(publish, "GATES", (publish.Asked(1, prompts=2),))
    monkeypatch.setattr(publish, "PROMPTS", ("a dagger in the snow",))
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 2, "seconds": 60, "loss": 0.1}) + "\n")
    lora, data = str(tmp_path / "lora"), tmp_path / "data"
    arguments = ["flux-schnell", "--transformer", lora, "--folder", str(tmp_path), "--export", str(data)]
    result = CliRunner().invoke(main, ["publish", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    card = json.loads((data / "flux-schnell" / "card.json").read_text())
    assert card["sampling"] == students.COURSES["flux-schnell"].sampling
    assert card["gates"]["1 by name, place none"]["second"]["prompts"] == 2
    monkeypatch.setattr(pipelines, "FOLDER", data)
    monkeypatch.setattr(pipelines, "trained", lambda name: None if name == "flux" else data / name / "lora")
    assert pipelines.shipped() == ("flux-schnell",)
    pipe = uvr_zoo.load("free-flux-schnell")
    with uvr_core.attach(pipe) as reg:
        pipe("a knife", output_type="latent", generator=torch.Generator().manual_seed(0), **card["sampling"])
    assert reg.report.fired == 4 * reg.report.taps


def test_what_ships_draws_in_four_steps_and_its_teachers_concept_file_locates_in_it() -> None:
    pipe, call = uvr_zoo.load("free-flux-schnell"), students.COURSES["flux-schnell"].sampling
    asked = {"prompt": ["a tree in the snow", "a pistol on the beach"], **call}

    def draw() -> list[Any]:
        images: list[Any] = pipe(**asked, generator=[torch.Generator().manual_seed(n) for n in range(2)]).images
        return images

    stock = draw()
    assert [set(seen) for seen in uvr_zoo.judge("second")(stock)] == [{"tree"}, {"pistol"}]
    with uvr_core.attach(pipe, concepts=uvr_zoo.concepts("free-flux", "weapon"), verify=False) as reg:
        images = draw()
    assert [finding.located for finding in reg.report.findings] == [False, True]
    assert reg.report.findings[1].steps_regulated >= 3
    assert images[0].tobytes() == stock[0].tobytes()


def test_training_starts_from_what_ships(tmp_path: Path) -> None:
    options = ["--folder", str(tmp_path), "--minutes", "1", "--dry-run"]
    told = CliRunner().invoke(main, ["train", "flux-schnell", *options])
    assert json.loads(told.stderr)["start_from"] == str(trained("flux"))
    assert json.loads(CliRunner().invoke(main, ["train", "flux", *options]).stderr)["start_from"] == "None"


def test_names_are_told() -> None:
    assert students.course("flux-dev").teacher == "flux"
    with pytest.raises(UVRError, match="did you mean 'flux-schnell'"):
        students.course("flux-schnel")
    with pytest.raises(UVRError, match="no trained free-form pipeline 'nothing'"):
        uvr_zoo.load("free-nothing")
