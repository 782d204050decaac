"""`uvr eval --suite` on stand-in sets, through the code that published ones take."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
from commands import ran, refused
from measuring import clip_model, vision_model
from runner import make_bank
from stand_in import no_network

from uvr_core import UVRError, load_concepts
from uvr_evaluation.published import published
from uvr_evaluation.suite import find_suite, texts_of


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The suite with the user's copies of two sets, and nobody to be asked for more."""
    no_network(monkeypatch, tmp_path / "cache")
    unsafe, benign = tmp_path / "nudity.csv", tmp_path / "coco.csv"
    unsafe.write_text("prompt,evaluation_seed\n" + "".join(f"a sculptor {i},{i}\n" for i in range(4)))
    benign.write_text("caption\n" + "".join(f"a dog {i}\n" for i in range(6)))
    concept = make_bank("nudity", threshold=-1e9).save(tmp_path / "nudity.safetensors")
    return [
        *("--suite", "nudity", "--sets", "unlearndiffatk,coco-30k", "--concept", concept),
        *("--copy", f"unlearndiffatk={unsafe}", "--copy", f"coco-30k={benign}"),
        *("--steps", 2, "--size", "64x64", "--device", "cpu", "--batch", 2, "--limit", 4),
    ]


def test_the_table_of_papers(checkpoint: Path, asked: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    measures = ("--fid", vision_model(tmp_path / "vit"), "--clip", clip_model(tmp_path / "clip"))
    options = (*asked, *measures, "--judge", "nudenet", "--baseline", "every-second", "--out", out)
    result = json.loads(ran("eval", checkpoint, *options, "--json").stdout)
    assert (result["judge"], result["threshold"]) == ("nudenet", 0.65)  # its own, since it was named
    assert {name: facts["tasks"] for name, facts in result["sets"].items()} == {"unlearndiffatk": 4, "coco-30k": 4}
    stock, policy, baseline = (result["arms"][name] for name in ("stock", "selective", "baseline every-second"))
    assert policy["sets"]["unlearndiffatk"]["safe_share"]["of"] == 4
    assert policy["sets"]["coco-30k"]["false_located"]["of"] == 4
    assert stock["fid"] is None
    assert policy["fid"]["of"] == [4, 4]
    assert policy["fid"]["value"] >= 0
    assert stock["clip"]["of"] == 4
    assert (baseline["withheld"], baseline["clip"]["of"]) == (2, 2)
    assert policy["seconds"] > 0
    text = ran("eval", checkpoint, *options).stdout  # drawn before: goes on
    assert text.startswith("**Nudity")
    assert "Counted by nudenet, threshold 0.65. Sets: unlearndiffatk (4), coco-30k (4)." in text
    assert "every-second: 2 benign pictures were withheld" in text
    assert text.strip() == (out / "suite.md").read_text().strip()
    assert ran("report", out / "suite.json").stdout.strip() == text.strip()


def test_the_suites_own_judge_and_threshold(checkpoint: Path, asked: list[object], tmp_path: Path) -> None:
    options = (*asked, "--fid", "none", "--clip", tmp_path / "none", "--out", tmp_path / "out", "--json")
    result = json.loads(ran("eval", checkpoint, *options).stdout)
    assert (result["judge"], result["threshold"]) == ("nudenet", find_suite("nudity").threshold)
    assert result["arms"]["selective"]["fid"] is None
    assert any("CLIP score cannot be measured here" in note for note in result["notes"])


def test_what_is_wrong_is_said_before_anything_is_drawn(checkpoint: Path, asked: list[object], tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    renamed = attrs.evolve(load_concepts(tmp_path / "nudity.safetensors"), name="nsfw").save(tmp_path / "x.safetensors")
    other = [renamed if word == tmp_path / "nudity.safetensors" else word for word in asked]
    assert "needs a concept called nudity, got nsfw; `uvr concept rename`" in refused("eval", checkpoint, *other, *out)
    gone = [word for word in asked if word != "unlearndiffatk,coco-30k"]
    gone.insert(gone.index("--sets") + 1, "i2p-sexual")
    assert "or pass your copy: hub:i2p-sexual=FILE" in refused("eval", checkpoint, *gone, *out)
    assert "no suite 'nudty'; did you mean" in refused("eval", checkpoint, "--suite", "nudty", *out)
    assert "--suite has its own prompts" in refused("eval", checkpoint, *asked, *out, "--prompts", "x.csv")
    assert "Missing option '--prompts'" in refused("eval", checkpoint, *out)
    assert "Missing option '--judge'" in refused("eval", checkpoint, *out, "--prompts", "x.csv")
    assert not (tmp_path / "out").exists()


def test_sets_and_copies_must_be_the_suites() -> None:
    suite = find_suite("nudity")
    assert set(suite.sets) <= set(published())
    assert all(published()[name].concept == suite.concept for name in suite.unsafe)
    assert published()[suite.benign].concept == ""
    assert list(texts_of(suite, [], {})) == list(suite.sets)
    with pytest.raises(UVRError, match="has no set 'i2p-sexul'; did you mean 'i2p-sexual'"):
        texts_of(suite, ["i2p-sexul"], {})
    with pytest.raises(UVRError, match="has no set 'weapons'"):
        texts_of(suite, [], {"weapons": "x.csv"})
