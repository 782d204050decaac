"""Training a zoo transformer: a run that stops and resumes is the run that never stopped."""

from __future__ import annotations

import copy
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from tiny import tiny_flux

from uvr_core.errors import UVRError
from uvr_zoo import scenes
from uvr_zoo.architectures import ARCHITECTURES, image_ids, pack, unpack
from uvr_zoo.pipelines import assemble
from uvr_zoo.recipes import RECIPES, Recipe
from uvr_zoo.train import Trainer, encode_scenes

MICRO = attrs.evolve(
    RECIPES["flux"], scenes=64, batch_size=4,
    transformer={
        "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32, "guidance_embeds": True,
        "axes_dims_rope": (4, 6, 6),
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def parts() -> SimpleNamespace:
    pipe = tiny_flux()
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return SimpleNamespace(**{name: getattr(pipe, name) for name in names})


def blank(parts: SimpleNamespace) -> Any:
    """A pipeline of those parts, with an untrained transformer."""
    return assemble(MICRO, FluxTransformer2DModel(**MICRO.transformer), parts)


@pytest.fixture(scope="module")
def cache(parts: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "scenes.pt"
    encode_scenes(blank(parts), MICRO, path)
    return path


@pytest.fixture
def trainer(parts: SimpleNamespace, cache: Path, tmp_path: Path) -> Any:
    """trainer(name, resume=..., recipe=...): a Trainer in a folder of that name, scenes encoded already."""

    def make(name: str = "run", resume: bool = False, recipe: Recipe = MICRO) -> Trainer:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if not (folder / "scenes.pt").exists():
            (folder / "scenes.pt").symlink_to(cache)
        return Trainer(recipe, parts, folder, resume=resume)

    return make


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("distil", [False, True])
def test_stopped_and_resumed_is_bitwise_the_run_that_never_stopped(trainer: Any, distil: bool) -> None:
    straight = trainer("straight")
    teacher = weights(straight.ema) if distil else None

    def steps(run: Trainer, count: int) -> list[float]:
        model = None
        if teacher is not None:
            model = trainer("teacher", resume=True).model
            model.load_state_dict(teacher)
        return [run.train_step(0.5, model) for _ in range(count)]

    losses = steps(straight, 6)
    first = trainer("stopped")
    torch.manual_seed(99)  # what a new process finds must not matter
    halves = steps(first, 3)
    first.save()
    del first
    torch.manual_seed(1234)
    second = trainer("stopped", resume=True)
    assert second.step == 3
    halves += steps(second, 3)
    assert halves == losses
    assert len(set(losses)) == 6
    assert second.step == straight.step == 6
    assert same(weights(second.model), weights(straight.model))
    assert same(weights(second.ema), weights(straight.ema))
    assert not same(weights(straight.ema), weights(straight.model))


def test_distillation_keeps_its_teacher_when_it_is_resumed(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer()
    with pytest.raises(UVRError, match="nothing to distil yet"):
        run.run(1.0, distil=True)
    for _ in range(3):
        run.train_step()
    run.save()
    undistilled = weights(run.ema)
    teachers = []
    stock = Trainer.distillation_loss

    def loss(self: Trainer, teacher: Any) -> torch.Tensor:
        teachers.append(weights(teacher))
        signal.raise_signal(signal.SIGINT)
        return stock(self, teacher)

    monkeypatch.setattr(Trainer, "distillation_loss", loss)
    run = trainer(resume=True)
    run.run(1.0, distil=True)
    half = weights(run.ema), weights(run.model)
    run = trainer(resume=True)
    assert same(weights(run.model), half[1])
    run.run(1.0, distil=True)
    assert len(teachers) == 2
    assert all(same(teacher, undistilled) for teacher in teachers)
    assert not same(half[0], undistilled)
    assert run.step == 5


def test_plain_training_does_not_go_on_from_distilled_weights(trainer: Any) -> None:
    run = trainer()
    run.train_step()
    run.run(1e-6, distil=True)
    with pytest.raises(UVRError, match="--distil"):
        trainer(resume=True).run(1.0)


def test_the_loss_falls(trainer: Any) -> None:
    run = trainer(recipe=attrs.evolve(MICRO, batch_size=16))
    losses = [run.train_step(min(1.0, (i + 1) / 10)) for i in range(60)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_the_rate_scales_both_optimisers(trainer: Any) -> None:
    run = trainer()
    before = weights(run.model)
    run.train_step(0.0)
    assert same(weights(run.model), before), "a rate of 0 moves nothing"
    run.train_step(0.5)
    lr = MICRO.learning_rate
    assert [g["lr"] for o in run.optimisers for g in o.param_groups] == pytest.approx([0.5 * lr, 0.25 * lr])
    moved = {name for name, value in weights(run.model).items() if not torch.equal(value, before[name])}
    assert {"transformer_blocks.0.attn.to_q.weight", "x_embedder.weight", "proj_out.weight"} <= moved
    trained = [id(p) for o in run.optimisers for g in o.param_groups for p in g["params"]]
    assert sorted(trained) == sorted(id(p) for p in run.model.parameters())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_and_saves(trainer: Any, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    run = trainer()
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    stock = Trainer.train_step

    def step(self: Trainer, *args: Any) -> float:
        if self.step == 2:
            os.kill(os.getpid(), number)
        return stock(self, *args)

    monkeypatch.setattr(Trainer, "train_step", step)
    run.run(0.5)
    assert run.step == 3, "the step under way is finished, no other begun"
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    back = trainer(resume=True)
    assert back.step == 3
    assert back.seconds == run.seconds > 0
    assert same(weights(back.model), weights(run.model))


def test_a_run_logs_saves_and_adds_up_its_seconds(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "train_step", lambda self, *args: (setattr(self, "step", self.step + 1), 0.25)[1])
    run = trainer()
    run.run(0.005, fidelity=lambda ema: {"found": 1.0}, fidelity_every=1e-6)
    assert 0.2 < run.seconds < 5
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert any(line.get("loss") == 0.25 for line in lines if line["step"] == 100)
    assert any(line.get("fidelity") == {"found": 1.0} for line in lines)
    assert run.checkpoint.exists()
    assert not run.checkpoint.with_suffix(".tmp").exists()


def test_an_existing_checkpoint_is_not_overwritten_unasked(trainer: Any) -> None:
    run = trainer()
    run.save()
    data = run.checkpoint.read_bytes()
    with pytest.raises(FileExistsError, match="--resume"):
        trainer()
    assert run.checkpoint.read_bytes() == data


def test_a_crash_while_saving_keeps_the_old_checkpoint(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer()
    run.save()
    data = run.checkpoint.read_bytes()

    def crash(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", crash)
    run.train_step()
    with pytest.raises(OSError, match="disk full"):
        run.save()
    assert run.checkpoint.read_bytes() == data


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(trainer: Any) -> None:
    run = trainer()
    run.train_step(0.5)
    before = weights(run.model), weights(run.ema)
    run.data = {**run.data, "x": torch.full_like(run.data["x"], torch.nan)}
    with pytest.raises(FloatingPointError, match="step 1: the loss is nan"):
        run.run(1.0)
    back = trainer(resume=True)
    assert back.step == 1
    assert same(weights(back.model), before[0])
    assert same(weights(back.ema), before[1])


def test_packing_and_positions_are_flux_pipelines() -> None:
    latents = torch.randn(2, 4, 16, 12)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 4, 16, 12))
    assert torch.equal(image_ids(8, 6), FluxPipeline._prepare_latent_image_ids(2, 8, 6, "cpu", torch.float32))


def test_unpacking_undoes_packing() -> None:
    latents = torch.randn(2, 4, 16, 16)
    assert torch.equal(unpack(pack(latents)), latents)


def test_encoded_scenes_line_up(parts: SimpleNamespace, cache: Path) -> None:
    """Row i is scene i: latents, words and weights; objects' patches weigh 2."""
    pipe = blank(parts)
    data = encode_scenes(pipe, attrs.evolve(MICRO, scenes=70))
    assert {len(column) for name, column in data.items() if not name.startswith("empty.")} == {70}
    stored = torch.load(cache, weights_only=True)["columns"]
    assert all(torch.equal(stored[name], data[name][:64]) for name in data)
    scene = scenes.sample(69, objects=MICRO.objects, styles=MICRO.styles)
    _, masks = scenes.render(scene)
    covered = scenes.patch_mask(np.any(list(masks.values()), axis=0)).reshape(-1)
    assert torch.equal(data["weight"][69], torch.from_numpy(1 + covered).half())
    text = ARCHITECTURES["flux"].encode(pipe, [scene.caption], None)["text"][0]
    assert torch.allclose(data["text.text"][69].float(), text, atol=1e-2)


def test_stored_scenes_are_those_of_the_recipe_and_the_parts(
    parts: SimpleNamespace, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scenes.pt"
    path.write_bytes(cache.read_bytes())

    def encoded(recipe: Recipe = MICRO, parts: SimpleNamespace = parts) -> tuple[dict[str, torch.Tensor], bool]:
        pipe = assemble(recipe, FluxTransformer2DModel(**MICRO.transformer), parts)
        before = path.stat().st_mtime_ns, path.stat().st_ino
        return encode_scenes(pipe, recipe, path), (path.stat().st_mtime_ns, path.stat().st_ino) != before

    first, anew = encoded(attrs.evolve(MICRO, learning_rate=1.0, batch_size=1, seed=5))
    assert not anew
    other = copy.deepcopy(parts)
    with torch.no_grad():
        next(other.text_encoder_2.parameters()).mul_(2)
    changes = [
        {"parts": other},
        {"recipe": attrs.evolve(MICRO, styles=("flat",))},
        {"recipe": attrs.evolve(MICRO, objects=MICRO.objects[:5])},
    ]
    for change in changes:
        data, anew = encoded(**change)
        assert anew, change
        assert "made of something else" in capsys.readouterr().out
        assert not torch.equal(data["text.text"], first["text.text"])
        assert not encoded(**change)[1]
    torch.save(first, path)  # of an earlier version: no hash
    assert encoded()[1]


def test_the_flow_loss_is_the_weighted_velocity_error(trainer: Any) -> None:
    """Against a model that knows the answer (0), and one that is off by one everywhere (1)."""
    run = trainer()
    drawn: list[Any] = []
    draw = run._draw
    run._draw = lambda shift: drawn.append(draw(shift)) or drawn[-1]
    for off in (0.0, 1.0):
        answer = lambda *rest, off=off, **named: drawn[-1].noise - drawn[-1].x + off  # noqa: E731
        run.family = SimpleNamespace(predict=answer)
        assert float(run.flow_loss()) == pytest.approx(off, abs=1e-6)
    assert ((drawn[-1].sigma > 0) & (drawn[-1].sigma < 1)).all()


def test_the_distillation_target_is_guidance(trainer: Any) -> None:
    run = trainer()
    seen: list[torch.Tensor] = []

    def predict(
        model: object, x: torch.Tensor, sigma: object, condition: Any, reference: object, guidance: torch.Tensor
    ) -> torch.Tensor:
        if model == "teacher":
            empty = run.data["empty.text"][0].float()
            return torch.zeros_like(x) + (1.0 if torch.equal(condition["text"][0], empty) else 3.0)  # u = 1, c = 3
        seen.append(guidance)
        return 1.0 + guidance[:, None, None] * 2.0 + torch.zeros_like(x)

    run.family = SimpleNamespace(predict=predict)
    assert float(run.distillation_loss("teacher")) == pytest.approx(0, abs=1e-6)
    low, high = MICRO.guidance
    assert ((seen[0] >= low) & (seen[0] <= high)).all()
    assert seen[0].std() > 0
