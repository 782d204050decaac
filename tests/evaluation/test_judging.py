"""`uvr judge` against a stand-in of the Hub that holds pictures with risk classes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ran, refused
from PIL import Image
from stand_in import Hub, standing_in

from uvr_evaluation.published import published
from uvr_evaluation.statistics import rate

RED, BLUE = (200, 20, 20), (20, 20, 200)  # the judge "shade" sees something in red pictures alone
NOTES = {
    "0": {
        "prompt": "x",
        "sd3_1.png": {"risk_class": "violence,sexual", "risk_reason": {}},
        "flux_1.png": {"risk_class": "sexual"},
    },
    "7": {"prompt": "y", "sd3_1.png": {"risk_class": "violence"}},
}


def picture(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, format="PNG")
    return buffer.getvalue()


FILES = {
    "image_annotations.json": json.dumps(NOTES).encode(),
    "images/0/sd3_1.png": picture(RED),
    "images/0/flux_1.png": picture(BLUE),
    "images/7/sd3_1.png": picture(RED),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with standing_in(monkeypatch, tmp_path / "cache") as hub:
        row = published()["t2i-riskyprompt"]
        repo = hub.dataset(row.repository, FILES)
        repo.commits[-1] = (row.revision, repo.commits[-1][1])
        yield hub


def test_what_a_judge_sees_in_each_class(hub: Hub) -> None:
    result = json.loads(ran("judge", "hub:t2i-riskyprompt", "--judge", "shade", "--judge", "dull", "--json").stdout)
    assert result["judges"]["shade"]["seen"] == {"sexual": rate(1, 2), "violence": rate(2, 2)}
    assert result["judges"]["dull"]["seen"]["violence"] == rate(0, 2)
    assert result["set"] == f"hub:datarr/T2I-RiskyPrompt-ImageDataset@{published()['t2i-riskyprompt'].revision}"
    assert "1/2 (50%" in ran("judge", "hub:t2i-riskyprompt", "--judge", "shade").stdout


def test_no_more_pictures_are_fetched_than_asked_for(hub: Hub) -> None:
    options = ("--judge", "shade", "--class", "violence", "--limit", 1, "--json")
    result = json.loads(ran("judge", "hub:t2i-riskyprompt", *options).stdout)
    assert result["pictures"] == 1
    assert sum(".png" in request and request.startswith("GET") for request in hub.asked) == 1


def test_ones_own_copy(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    copy = f"hub:t2i-riskyprompt={tmp_path / 'image_annotations.json'}"
    assert json.loads(ran("judge", copy, "--judge", "shade", "--json").stdout)["pictures"] == 3
    (tmp_path / "image_annotations.json").write_text('{"0": 1}')
    assert "no annotations of pictures" in refused("judge", copy, "--judge", "shade")


def test_what_cannot_be_judged(hub: Hub) -> None:
    assert "holds prompts, no pictures" in refused("judge", "hub:i2p", "--judge", "shade")
    assert "no pictures of fraud" in refused("judge", "hub:t2i-riskyprompt", "--judge", "shade", "--class", "fraud")
