"""`uvr push` and `uvr pull` against a stand-in of the Hub on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from commands import ran, refused
from runner import make_bank
from stand_in import TOKEN, TOKEN_THAT_READS, Hub, standing_in

import uvr_core
from uvr_evaluation import push
from uvr_evaluation.publish import CARD

OPTIONS = ("--licence", "mit", "--base-model", "owner/flux")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with standing_in(monkeypatch, tmp_path / "cache") as hub:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_pushed_pulled_and_attached(hub: Hub, concept: Path, tmp_path: Path) -> None:
    pushed = json.loads(ran("push", concept, "me/weapons", *OPTIONS, "--private", "--json").stdout)
    repo = hub.repos["model", "me/weapons"]
    assert repo.private
    assert (pushed["commit"], pushed["card"]) == (repo.head, CARD)
    files = repo.commits[-1][1]
    assert set(files) == {".gitattributes", "weapon.safetensors", CARD}
    assert files["weapon.safetensors"] == concept.read_bytes()
    assert "me/weapons:weapon.safetensors@COMMIT" in files[CARD].decode()
    assert pushed["sha256"] in files[CARD].decode()
    folder = tmp_path / "concepts"
    folder.mkdir()
    text = ran("pull", "me/weapons", "--sha256", pushed["sha256"], "--out", folder).stdout
    assert f'attach(pipe, concepts="me/weapons:weapon.safetensors@{repo.head}")' in text
    assert uvr_core.load_concepts(folder / "weapon.safetensors").name == "weapon"
    facts = json.loads(ran("concept", "pull", pushed["place"], "--json").stdout)
    assert facts["fingerprint"]["model"] == "FluxTransformer2DModel"
    assert facts["adapters"] == ["flux"]


def test_a_card_written_by_hand_is_left_alone(hub: Hub, concept: Path) -> None:
    first = push(concept, "me/weapons", licence="mit", base_model="owner/flux")
    again = push(concept, "me/weapons", licence="cc-by-4.0", base_model="owner/flux")
    assert (first.card, again.card) == (CARD, CARD)
    repo = hub.repos["model", "me/weapons"]
    assert b"license: cc-by-4.0" in repo.commits[-1][1][CARD]
    other = push(concept, "me/weapons", licence="mit", base_model="owner/flux", name="knife.safetensors")
    assert other.card == "knife.md"  # README.md is the first file's
    repo.commit({CARD: b"# By hand"})
    assert push(concept, "me/weapons", licence="mit", base_model="owner/flux").card == "weapon.md"
    assert repo.commits[-1][1][CARD] == b"# By hand"


def test_the_base_model_is_what_the_file_says(hub: Hub, tmp_path: Path) -> None:
    bank = attrs.evolve(make_bank(), provenance={"model": "owner/flux", "mask_source": "masks of /home/me/masks"})
    pushed = push(bank.save(tmp_path / "x.safetensors"), "me/x", licence="mit")
    assert b"base_model: owner/flux" in hub.repos["model", "me/x"].commits[-1][1][CARD]
    assert pushed.paths == ("mask_source",)


def test_what_cannot_be_pushed(hub: Hub, concept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = attrs.evolve(make_bank(), calibration=None).save(tmp_path / "bare.safetensors")
    assert "not calibrated" in refused("push", bare, "me/x", *OPTIONS)
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x04pickle")
    assert "not a whole safetensors file" in refused("push", tmp_path / "x.safetensors", "me/x", *OPTIONS)
    assert "Missing option '--licence'" in refused("push", concept, "me/x")
    assert "no licence identifier" in refused("push", concept, "me/x", "--licence", "My own", "--base-model", "a/b")
    assert "the model that it was made on" in refused("push", concept, "me/x", "--licence", "mit")
    assert "expected owner/name" in refused("push", concept, "x", *OPTIONS)
    assert "no name for a concept file" in refused("push", concept, "me/x", *OPTIONS, "--name", "x.bin")
    assert hub.asked == []
    monkeypatch.setenv("HF_TOKEN", TOKEN_THAT_READS)
    assert "your token may not write there" in refused("push", concept, "me/x", *OPTIONS)
    monkeypatch.delenv("HF_TOKEN")
    assert "no token that the Hub takes" in refused("push", concept, "me/x", *OPTIONS)


def test_what_cannot_be_pulled(hub: Hub, tmp_path: Path) -> None:
    assert "no such model on the Hub" in refused("pull", "me/none")
    assert "expected owner/repo" in refused("pull", "weapon")
    hub.model("me/x", {"x.safetensors": make_bank().save(tmp_path / "x.safetensors").read_bytes()}, gated=True)
    assert "expected sha256 00" in refused("pull", "me/x", "--sha256", "00")
    assert "ends with .safetensors" in refused("pull", "me/x", "--out", tmp_path / "x.bin")
