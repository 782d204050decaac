"""Pools of encoded scenes, and a training run that stops and goes on as if it had never stopped."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from tiny import tiny_flux

from uvr_zoo import storage
from uvr_zoo.architectures import ARCHITECTURES
from uvr_zoo.freeform import train
from uvr_zoo.freeform.pool import Drawn, Mix, Pool, Supply, draw, example, spoken
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


EDITS = attrs.evolve(MIX, edits=True)
FLUX = ARCHITECTURES["flux"]


@pytest.fixture(scope="module")
def vae() -> Any:
    return AutoencoderKL.from_pretrained(DATA / "shared" / "vae").float().eval()


@pytest.fixture
def pipe(vae: Any) -> Any:
    pipe = tiny_flux()
    torch.manual_seed(0)
    pipe.register_modules(vae=vae, transformer=FluxTransformer2DModel(**MICRO))
    return pipe


def drawn(first: int, last: int, canvas: tuple[int, int] = (64, 64), mix: Mix = MIX) -> list[Drawn]:
    return [draw(mix, canvas, number) for number in range(first, last)]


def test_a_pool_keeps_the_newest_pictures(pipe: Any) -> None:
    pool, whole = Pool((64, 64), size=4), Pool((64, 64), size=8)
    pool.take(drawn(0, 3), pipe, FLUX)
    assert len(pool) == 3
    pool.take(drawn(3, 6), pipe, FLUX)  # the first two are gone
    whole.take(drawn(0, 6), pipe, FLUX)
    assert len(pool) == 4
    for slot, number in enumerate((4, 5, 2, 3)):
        for name, column in pool.columns.items():
            assert torch.allclose(column[slot], whole.columns[name][number], atol=2e-3), name


def test_a_pool_holds_what_the_pipeline_itself_encodes(pipe: Any) -> None:
    (one,) = drawn(7, 8)
    pool = Pool((64, 64), size=2)
    pool.take([one], pipe, FLUX)
    text, pooled, _ = pipe.encode_prompt(list(one.example.texts), list(one.example.texts))
    assert torch.allclose(pool.columns["text.text"][0].float(), text, atol=1e-2)
    assert torch.allclose(pool.columns["text.pooled"][0].float(), pooled, atol=1e-2)
    rows = pool.rows(8, torch.Generator().manual_seed(0))
    assert rows["x"].shape == (8, 64, 16)
    captions = pool.columns["text.text"][0].float()  # (captions, T, C)
    assert all(any(torch.equal(row, caption) for caption in captions) for row in rows["text.text"])
    assert len({row.sum().item() for row in rows["text.text"]}) > 1


def test_edits_bring_their_source(pipe: Any) -> None:
    pool = Pool((64, 64), size=4)
    pool.take(drawn(0, 4, mix=EDITS), pipe, FLUX)
    assert pool.columns["reference"].shape == pool.columns["x"].shape
    assert not torch.equal(pool.columns["reference"], pool.columns["x"])
    assert pool.columns["text.text"].shape[:2] == (4, 1)


def test_small_objects_weigh_more() -> None:
    heaviest: dict[str, list[float]] = {}
    for one in drawn(0, 64, (96, 96)):
        if len(one.example.target.items) == 1:
            heaviest.setdefault(one.example.target.items[0].size, []).append(float(one.weight.max()))
    assert min(heaviest["small"]) > max(heaviest["large"]) > 1


def test_canvases_have_seeds_of_their_own() -> None:
    assert len({example(MIX, canvas, 0).target.seed for canvas in train.CANVASES}) == len(train.CANVASES)


def test_captions_are_kept_short_by_plainer_words() -> None:
    scene = sample(11, count=4)
    assert max(len(spoken(scene, seed, 19).split()) for seed in range(100)) <= 22
    assert max(len(spoken(scene, seed, 38).split()) for seed in range(100)) > 25


def test_the_supply_goes_on_where_it_was() -> None:
    """The pools' contents and what comes next do not depend on where a run was stopped."""
    keys = list(itertools.islice(PLAN.supply(0), PLAN.fill(0) + 9))
    for step in (1, 5):
        again = list(itertools.islice(PLAN.supply(step), PLAN.fill(step) + 9 - step))
        assert again[PLAN.fill(step) :] == keys[PLAN.fill(0) + step :]
        held = {key for batch in again[: PLAN.fill(step)] for key in batch}
        for canvas in train.CANVASES:
            whole = [key for batch in keys[: PLAN.fill(0) + step] for key in batch if key[0] == canvas]
            assert {key for key in held if key[0] == canvas} == set(whole[-PLAN.pool :])


def test_workers_draw_the_same_in_the_same_order() -> None:
    batches = [[((64, 64), n), ((64, 64), n + 1)] for n in range(0, 6, 2)]
    here, elsewhere = ([one for batch in Supply(MIX).loader(batches, workers) for one in batch] for workers in (0, 2))
    assert len(here) == len(elsewhere) == 6
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(here, elsewhere, strict=True))


def test_the_small_canvas_gives_way_to_the_full_one() -> None:
    first, last = PLAN.chances(0.0), PLAN.chances(1.0)
    assert first[0] == pytest.approx(0.8)
    assert last[0] == pytest.approx(0.08)
    assert float(first.sum()) == pytest.approx(1)
    assert float(last.sum()) == pytest.approx(1)


def test_a_stopped_run_goes_on_as_if_it_had_not(pipe: Any, tmp_path: Path) -> None:
    whole = train.Trainer(PLAN, copy.deepcopy(pipe), FLUX, tmp_path / "whole")
    losses = [whole.train_step(0.1) for _ in range(4)]
    part = train.Trainer(PLAN, copy.deepcopy(pipe), FLUX, tmp_path / "part")
    assert [part.train_step(0.1) for _ in range(2)] == losses[:2]
    part.save()
    rest = train.Trainer(PLAN, copy.deepcopy(pipe), FLUX, tmp_path / "part")
    assert rest.step == 2
    assert [rest.train_step(0.1) for _ in range(2)] == losses[2:]
    for one, other in zip(whole.ema.parameters(), rest.ema.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_loss_that_is_not_finite_changes_nothing(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = train.Trainer(PLAN, pipe, FLUX, tmp_path)
    before = copy.deepcopy(trainer.model.state_dict())
    stock = trainer.loss
    monkeypatch.setattr(trainer, "loss", lambda d: stock(d) * float("nan"))
    with pytest.raises(FloatingPointError, match="step 0"):
        trainer.train_step(0.1)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_a_run_ends_when_its_minutes_are_spent(pipe: Any, tmp_path: Path) -> None:
    trainer = train.Trainer(attrs.evolve(PLAN, minutes=0.03), pipe, FLUX, tmp_path)
    trainer.run(log_every=1)
    assert trainer.step > 0
    assert trainer.seconds >= 1.8
    assert (tmp_path / "checkpoint.pt").exists()
    assert (tmp_path / "log.jsonl").read_text().count("loss") == trainer.step
    steps = trainer.step
    trainer.run()
    assert trainer.step == steps


def test_the_average_is_exported(pipe: Any, tmp_path: Path) -> None:
    trainer = train.Trainer(PLAN, pipe, FLUX, tmp_path / "run")
    trainer.export(tmp_path / "out")
    stored = storage.load(FluxTransformer2DModel, tmp_path / "out")
    for name, value in trainer.ema.state_dict().items():
        step = float(value.abs().max()) / (2 ** (storage.BITS - 1) - 1)
        assert torch.allclose(stored.state_dict()[name], value, atol=0.51 * step + 1e-3), name
