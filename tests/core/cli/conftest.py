"""A tiny checkpoint, a concept of it, prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import FAST, PROBE, refused
from tiny import WIDTH, tiny_flux

from uvr_core.cli import progress
from uvr_core.concepts import ConceptBank, Fingerprint


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of progress, however slow the machine: tests compare what commands say."""
    monkeypatch.setattr(progress, "EVERY", 3600.0)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "flux"
    tiny_flux().save_pretrained(folder)
    return folder


@pytest.fixture
def bank() -> ConceptBank:
    """An uncalibrated concept of the tiny pipeline."""
    generator = torch.Generator().manual_seed(0)
    tensors = {f"anchors/{PROBE}": torch.randn(3, WIDTH, generator=generator), "sigma": torch.tensor([1.0, 0.5])}
    return ConceptBank("weapon", Fingerprint("FluxTransformer2DModel", 4, 2, 16), tensors)


@pytest.fixture
def concept(bank, tmp_path) -> Path:
    return bank.save(tmp_path / "weapon.safetensors")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "results" / "run"


@pytest.fixture
def generate(checkpoint, out):
    """Run `uvr generate` on the tiny checkpoint and expect bad input: nothing may be left."""

    def call(*arguments: object, prompt: bool = True, model: object = checkpoint) -> str:
        prompts = ("--prompt", "a cat") if prompt else ()
        line = refused("generate", model, *prompts, *FAST, *arguments, "--out", out)
        assert not out.parent.exists()
        return line

    return call


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("# three\na knife\n\na large knife\na tiny knife\n")
    return path
