"""Pools of encoded scenes, and a training run that stops and goes on as if it had never stopped."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from tiny import tiny_flux

from uvr_zoo.freeform import train
from uvr_zoo.freeform.pool import Mix, Pool, spoken
from uvr_zoo.freeform.scenes import sample
from uvr_zoo.pipelines import DATA

MIX = Mix(("cat", "knife", "apple"), ("glossy",))
PLAN = train.Plan(MIX, minutes=10, batch_size=2, fresh=1, pool=8, first=4)
MICRO = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}


@pytest.fixture(scope="module")
def vae() -> Any:
    return AutoencoderKL.from_pretrained(DATA / "shared" / "vae").float().eval()


@pytest.fixture
def pipe(vae: Any) -> Any:
    pipe = tiny_flux()
    torch.manual_seed(0)
    pipe.register_modules(vae=vae, transformer=FluxTransformer2DModel(**MICRO))
    return pipe


def test_a_pool_keeps_the_newest_scenes_and_knows_which_they_are(vae: Any) -> None:
    pool = Pool(MIX, (64, 64), size=4)
    pool.take(3, vae)
    assert len(pool) == 3
    third = pool.scene(2)
    pool.take(3, vae)  # the sixth; the first two are gone
    assert len(pool) == 4
    assert pool.taken == 6
    assert pool.scene(2) == third
    alone = Pool(MIX, (64, 64), size=8)
    alone.take(6, vae)
    assert torch.allclose(pool.x[1], alone.x[5], atol=2e-3)
    assert pool.scene(1) == alone.scene(5)


def test_small_objects_weigh_more(vae: Any) -> None:
    pool = Pool(MIX, (96, 96), size=64)
    pool.take(64, vae)
    heaviest = {item.size: [] for item in (i for slot in range(64) for i in pool.scene(slot).items)}
    for slot in range(64):
        scene = pool.scene(slot)
        if len(scene.items) == 1:
            heaviest[scene.items[0].size].append(float(pool.weight[slot].max()))
    assert min(heaviest["small"]) > max(heaviest["large"]) > 1


def test_canvases_of_a_pool_have_seeds_of_their_own(vae: Any) -> None:
    scenes = [Pool(MIX, canvas, 2).drawn(0) for canvas in train.CANVASES]
    assert len({scene.seed for scene in scenes}) == len(train.CANVASES)


def test_captions_are_cut_to_the_batch_by_plainer_words() -> None:
    scene = sample(11, count=4)
    assert max(len(spoken(scene, seed, 19).split()) for seed in range(100)) <= 22
    assert max(len(spoken(scene, seed, 38).split()) for seed in range(100)) > 25


def test_the_small_canvas_gives_way_to_the_full_one() -> None:
    first, last = PLAN.chances(0.0), PLAN.chances(1.0)
    assert first[0] == pytest.approx(0.8)
    assert last[0] == pytest.approx(0.08)
    assert float(first.sum()) == pytest.approx(1)
    assert float(last.sum()) == pytest.approx(1)


def test_a_stopped_run_goes_on_as_if_it_had_not(pipe: Any, tmp_path: Path) -> None:
    whole = train.Trainer(PLAN, copy.deepcopy(pipe), tmp_path / "whole")
    losses = [whole.train_step(0.1) for _ in range(4)]
    part = train.Trainer(PLAN, copy.deepcopy(pipe), tmp_path / "part")
    assert [part.train_step(0.1) for _ in range(2)] == losses[:2]
    part.save()
    rest = train.Trainer(PLAN, copy.deepcopy(pipe), tmp_path / "part")
    assert rest.step == 2
    assert [rest.train_step(0.1) for _ in range(2)] == losses[2:]
    for one, other in zip(whole.ema.parameters(), rest.ema.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_loss_that_is_not_finite_changes_nothing(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = train.Trainer(PLAN, pipe, tmp_path)
    before = copy.deepcopy(trainer.model.state_dict())
    stock = trainer.loss
    monkeypatch.setattr(trainer, "loss", lambda d: stock(d) * float("nan"))
    with pytest.raises(FloatingPointError, match="step 0"):
        trainer.train_step(0.1)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_a_run_ends_when_its_minutes_are_spent(pipe: Any, tmp_path: Path) -> None:
    trainer = train.Trainer(attrs.evolve(PLAN, minutes=0.03), pipe, tmp_path)
    trainer.run(log_every=1)
    assert trainer.step > 0
    assert trainer.seconds >= 1.8
    assert (tmp_path / "checkpoint.pt").exists()
    assert (tmp_path / "log.jsonl").read_text().count("loss") == trainer.step
    steps = trainer.step
    trainer.run()
    assert trainer.step == steps


def test_the_average_is_exported_for_diffusers(pipe: Any, tmp_path: Path) -> None:
    trainer = train.Trainer(PLAN, pipe, tmp_path / "run")
    trainer.export(tmp_path / "out")
    assert FluxTransformer2DModel.from_pretrained(tmp_path / "out").config.num_layers == 1
