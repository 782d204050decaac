"""`uvr zoo ground` and `publish`: every part is made, stops and resumes, and the pipelines load what was made."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import diffusers
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from tiny import tiny_flux

import uvr_zoo
from uvr_core.cli import main
from uvr_core.errors import UVRError
from uvr_zoo import commands, components, judging, pipelines, training, vae
from uvr_zoo.architectures import ARCHITECTURES
from uvr_zoo.components import PARTS, staged
from uvr_zoo.pipelines import assemble
from uvr_zoo.recipes import RECIPES
from uvr_zoo.training import Run, fit


def uvr(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def ran(*arguments: object) -> str:
    result = uvr(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time as the trainings see it: one second a step."""
    now, step = SimpleNamespace(seconds=0.0), torch.optim.AdamW.step

    def counted(self: Any, *args: Any) -> Any:
        now.seconds += 1
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    for module in (training, judging):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


class Toy:
    """A linear map trained on noise from torch's global generator; `at[i]` runs within step i."""

    def __init__(self, at: dict[int, Callable[[], None]] | None = None):
        torch.manual_seed(0)
        self.module, self.at = torch.nn.Linear(3, 1), at or {}
        self.losses: list[float] = []

    def loss(self, step: int) -> dict[str, Any]:
        self.at.get(step, lambda: None)()
        loss = (self.module(torch.randn(4, 3)) - 1).square().mean()
        self.losses.append(float(loss.detach()))
        return {"loss": loss, "half": self.losses[-1] / 2}

    def fit(self, folder: Path, seconds: float, resume: bool = False, part: str = "toy", **options: Any) -> int:
        return fit(part, self.module, self.loss, Run(seconds / 60, folder, resume), lr=0.1, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_resumed_is_the_run_that_never_stopped(clock: Any, tmp_path: Path, number: int) -> None:
    straight = Toy()
    assert straight.fit(tmp_path / "straight", 8) == 8
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    first = Toy({2: lambda: signal.raise_signal(number)})
    with pytest.raises(KeyboardInterrupt):
        first.fit(tmp_path / "run", 8)
    assert len(first.losses) == 3, "the step under way is finished, no other begun"
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    clock.seconds += 1000
    torch.manual_seed(99)
    second = Toy()
    torch.manual_seed(1234)
    assert second.fit(tmp_path / "run", 8, resume=True) == 8
    assert first.losses + second.losses == straight.losses
    assert torch.equal(second.module.weight, straight.module.weight)
    assert Toy().fit(tmp_path / "run", 8, resume=True) == 8, "the time is spent"


def test_the_rate_rises_over_the_first_steps_and_falls_as_a_cosine(clock: Any, tmp_path: Path) -> None:
    rates: list[float] = []
    init = torch.optim.AdamW.__init__
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "__init__", lambda self, *a, **o: (seen.append(self), init(self, *a, **o))[1])
        toy = Toy({i: lambda: rates.append(seen[0].param_groups[0]["lr"]) for i in range(8)})
        toy.fit(tmp_path, 8, warm=4)
    assert rates == pytest.approx(
        [0.1 * r for r in (0.26, 0.490970, 0.650165, 0.701342, 0.51, 0.318658, 0.156447, 0.048060)], abs=1e-7
    )


def test_a_checkpoint_is_not_overwritten_unasked_nor_taken_for_another_parts(clock: Any, tmp_path: Path) -> None:
    Toy().fit(tmp_path, 2)
    data = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(FileExistsError, match="--resume"):
        Toy().fit(tmp_path, 4)
    with pytest.raises(UVRError, match="a checkpoint of other, got toy"):
        Toy().fit(tmp_path, 4, resume=True, part="other")
    assert (tmp_path / "checkpoint.pt").read_bytes() == data


def test_it_logs_and_saves_as_it_goes(clock: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[int] = []
    look = lambda: steps.append(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"])  # noqa: E731
    toy = Toy({200: look})
    toy.fit(tmp_path, 201)
    assert steps == [121]
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert capsys.readouterr().out.splitlines() == lines
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == [100, 200]
    assert records[0]["loss"] == pytest.approx(toy.losses[99], abs=1e-4)
    assert records[0]["half"] == pytest.approx(toy.losses[99] / 2, abs=1e-4)
    assert records[0]["of"] == 201


def test_a_loss_that_is_not_finite_does_no_harm(clock: Any, tmp_path: Path) -> None:
    toy = Toy()
    toy.at[2] = lambda: toy.module.weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="toy, step 2"):
        toy.fit(tmp_path, 4)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


@pytest.fixture
def empty_zoo(clock: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The zoo's data folder with nothing trained in it; batches are small, and measuring looks at few pictures."""
    data = tmp_path / "data"
    monkeypatch.setattr(commands, "_data", lambda: data)
    monkeypatch.setattr(pipelines, "DATA", data)
    monkeypatch.setattr(judging, "measure", lambda judge: {})
    monkeypatch.setattr(vae, "_unseen", lambda: vae.batch(10_000_000, 4)[0])
    for module in (vae, judging):
        small = lambda seed, size, *rest, stock=module.batch: stock(seed, 16, *rest)  # noqa: E731
        monkeypatch.setattr(module, "batch", small)
    return data


def test_everything_is_made_from_nothing_and_the_pipelines_load_it(empty_zoo: Path, tmp_path: Path) -> None:
    for name in PARTS:
        assert f"ground {name}\n" in ran("zoo", "list")
        out = ran("zoo", "ground", name, "--minutes", 1 / 60, "--out", tmp_path / name, "--export", empty_zoo)
        assert all(str(empty_zoo / path) in out for path in PARTS[name].files)
    assert not [path for path in empty_zoo.rglob("*") if "unfinished" in path.name]
    listed = json.loads(ran("zoo", "list", "--json"))["parts"]
    assert {row["name"]: row["made"] for row in listed} == dict.fromkeys(PARTS, True)
    for path in empty_zoo.rglob("*.safetensors"):
        assert {t.dtype for t in load_file(path).values() if t.is_floating_point()} == {torch.float16}, path
    for name, family in ARCHITECTURES.items():
        shared = SimpleNamespace(**family.parts(empty_zoo / "shared"))
        recipe = RECIPES[name]
        kind = getattr(diffusers, family.transformer)
        pipe = assemble(recipe, kind(**{**recipe.transformer, "num_layers": 1}), shared)
        picture = torch.zeros(1, 3, 64, 64)
        assert family.latents(pipe, picture).shape == (1, 4, 16, 16)
    assert judging.Judge.load(empty_zoo / "judge").net.objects.out_channels == 25


def test_a_part_resumes_and_leaves_no_other_parts_behind(empty_zoo: Path, tmp_path: Path) -> None:
    arguments = ("zoo", "ground", "text", "--out", tmp_path / "run", "--export", empty_zoo)
    ran(*arguments, "--minutes", 2 / 60)
    weights = empty_zoo / "shared" / "text_encoder" / "model.safetensors"
    before = load_file(weights)
    again = uvr(*arguments, "--minutes", 3 / 60)
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    ran(*arguments, "--minutes", 3 / 60, "--resume")
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3
    assert not all(torch.equal(value, before[key]) for key, value in load_file(weights).items())
    shared = empty_zoo / "shared"
    (shared / "tokenizer" / "mark").touch()
    ran("zoo", "ground", "text-edit", "--minutes", 1 / 60, "--out", tmp_path / "edit", "--export", empty_zoo)
    assert (shared / "tokenizer" / "mark").exists()
    assert sorted(os.listdir(shared / "edit")) == ["text_encoder", "text_encoder_2"]


def test_an_interrupted_part_keeps_its_checkpoint_and_writes_no_weights(
    empty_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uvr_zoo import text

    stock = text._batch
    monkeypatch.setattr(text, "_batch", lambda *args: (signal.raise_signal(signal.SIGINT), stock(*args))[1])
    result = uvr("zoo", "ground", "text", "--minutes", 9, "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 1
    assert os.listdir(tmp_path / "run" / "export") == []


def test_what_is_missing_is_named_with_the_command_that_makes_it(empty_zoo: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        result = uvr("zoo", *arguments)
        assert result.exit_code == 2, result.output
        return result.stderr

    out = ("--out", tmp_path / "run")
    for part, need in (("text-edit", "text"), ("vae-qwen", "vae"), ("judge", "vae")):
        assert f"first uvr zoo ground {need}\n" in refused("ground", part, *out)
    assert "did you mean 'vision-text'?" in refused("ground", "visiontext", *out)
    assert "uvr zoo ground vae\n" in refused("train", "sd3", *out)
    assert "uvr zoo ground vae-qwen\n" in refused("train", "qwen-image", *out)
    assert "starts from flux" in refused("train", "flux-kontext", *out)
    assert "uvr zoo ground vae\n" in refused("publish", "sd3", "--export", tmp_path)
    with pytest.raises(UVRError, match="keeps no checkpoint"):
        components._judge(tmp_path, Run(1.0, tmp_path, resume=True), empty_zoo)


def test_staged_files_replace_the_old_ones_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    with pytest.raises(FileNotFoundError), staged(tmp_path, ("a", "b/c")) as stage:
        (stage / "nowhere" / "c").write_text("never")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "old"]
    with staged(tmp_path, ("a", "b/c")) as stage:
        (stage / "a").mkdir()
        (stage / "b").mkdir()
        (stage / "b" / "c").write_text("new")
        (stage / "more").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "c"]


def test_publish_writes_what_load_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from uvr_zoo import experiment

    toy = tiny_flux()
    config = {key: value for key, value in toy.transformer.config.items() if not key.startswith("_")}
    recipe = attrs.evolve(RECIPES["flux"], transformer=config, sampling={"num_inference_steps": 1})
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    monkeypatch.setitem(RECIPES, "flux", recipe)
    monkeypatch.setattr(pipelines, "parts", lambda name: SimpleNamespace(**{n: getattr(toy, n) for n in names}))
    for module in (experiment, uvr_zoo):
        monkeypatch.setattr(module, "judge", lambda: lambda images: [{"cat": 1.0} for _ in images])
    run, export = tmp_path / "run", tmp_path / "data"
    result = uvr("zoo", "publish", "flux", "--run", run, "--export", export)
    assert result.exit_code == 2
    assert "first uvr zoo train flux" in result.stderr
    run.mkdir()
    torch.save({"ema": toy.transformer.state_dict(), "step": 7, "seconds": 90.0}, run / "checkpoint.pt")
    (export / "flux").mkdir(parents=True)
    (export / "flux" / "stale").touch()
    ran("zoo", "publish", "flux", "--run", run, "--export", export, "--count", 8)
    assert os.listdir(export) == ["flux"]
    files = ["README.md", "card.json", "samples.webp", "scheduler", "transformer"]
    assert sorted(os.listdir(export / "flux")) == files
    card = json.loads((export / "flux" / "card.json").read_text())
    assert card["fidelity"]["prompts"] == 8
    assert (card["training"]["steps"], card["training"]["minutes"]) == (7, 1.5)
    loaded = uvr_zoo.load("flux", export / "flux").transformer.state_dict()
    assert all(torch.equal(loaded[key], value.half().float()) for key, value in toy.transformer.state_dict().items())
