"""Z-Image and FLUX.2: what training feeds the transformer is what the pipelines feed it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from uvr_core.errors import UVRError
from uvr_zoo.architectures import pack
from uvr_zoo.freeform import chat, train
from uvr_zoo.freeform.families import FAMILIES
from uvr_zoo.freeform.pipelines import family, names, pipeline, recipe
from uvr_zoo.freeform.pool import Mix
from uvr_zoo.freeform.words import read
from uvr_zoo.pipelines import DATA

TEXT, VAE = DATA / "freeform" / "text", DATA / "shared" / "vae"
PROMPTS = ["a dagger in the snow", "a cat"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained chat encoder beside the word table."""
    folder = tmp_path_factory.mktemp("text")
    words, table = read(TEXT / "words.safetensors")
    torch.manual_seed(0)
    chat.save(chat.Chat("qwen3", table, chat.tokenizer(words)), folder)
    (folder / "words.safetensors").symlink_to(TEXT / "words.safetensors")
    return folder


def pipe_of(name: str, text: Path) -> Any:
    torch.manual_seed(1)
    pipe = pipeline(name, text, VAE)
    for parameter in pipe.transformer.parameters():  # some begin at zero: nothing would come out
        torch.nn.init.normal_(parameter, std=0.05)
    return pipe


def draw(pipe: Any, name: str, **options: Any) -> torch.Tensor:
    noise = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
    call = {**recipe(name).sampling, "guidance_scale": 0.0 if name == "z-image" else 1.0, "num_inference_steps": 3}
    return pipe(
        prompt=list(PROMPTS), generator=noise, height=64, width=96, output_type="latent", **call, **options
    ).images


@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_with_what_training_predicts_is_the_pipelines(name: str, text: Path) -> None:
    pipe, kind = pipe_of(name, text), family(name)
    expected = draw(pipe, name)
    noise = [torch.randn(1, *_latent(name), generator=torch.Generator().manual_seed(i)) for i in range(len(PROMPTS))]
    x = torch.cat(noise)
    x = x.flatten(2).mT if name == "flux2" else pack(x)
    condition = {key: value.half().float() for key, value in kind.encode(pipe, list(PROMPTS), None).items()}
    levels = pipe.scheduler.sigmas
    with torch.no_grad():
        for high, low in itertools.pairwise(levels):
            velocity = kind.predict(
                pipe.transformer, x, high.expand(len(x)), condition, None, torch.ones(len(x)), grid=(8, 12)
            )
            x = x + (low - high) * velocity
    got = expected if name == "z-image" else _normalised(pipe, expected)
    assert torch.allclose(pack(got), x, atol=5e-3)


def _latent(name: str) -> tuple[int, int, int]:
    return (16, 8, 12) if name == "flux2" else (4, 16, 24)


def _normalised(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    statistics = pipe.vae.bn
    variance = statistics.running_var[0] + pipe.vae.config.batch_norm_eps
    return (latents - statistics.running_mean[0]) / variance.sqrt()


@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_come_back_through_the_pipelines_autoencoder(name: str, text: Path) -> None:
    pipe, kind = pipe_of(name, text), family(name)
    first = pipeline("flux", TEXT, VAE)
    pixels = torch.rand(1, 3, 64, 96) * 2 - 1
    assert torch.allclose(kind.latents(pipe, pixels), family("flux").latents(first, pixels), atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_trains(name: str, text: Path, tmp_path: Path) -> None:
    plan = train.Plan(Mix(("cat", "knife"), ("glossy",)), minutes=1, batch_size=2, fresh=1, pool=4, first=2)
    trainer = train.Trainer(plan, pipe_of(name, text), family(name), tmp_path)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    losses = [trainer.train_step(0.1) for _ in range(2)]
    assert all(loss > 0 for loss in losses)
    assert any(not torch.equal(value, before[key]) for key, value in trainer.model.state_dict().items())


def test_names_are_told() -> None:
    assert {"flux", "sd3", "flux-kontext", "qwen-image", "qwen-image-edit", "z-image", "flux2"} == set(names())
    with pytest.raises(UVRError, match="did you mean 'flux2'"):
        family("flux2x")
