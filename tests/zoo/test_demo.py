"""The measured demo: what is on disk when it is cut, and that its progress ends at its total."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uvr_zoo import demo
from uvr_zoo.experiment import Generated


def test_columns_that_were_finished_are_on_disk_when_the_demo_is_cut(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cut_after_one(*arguments: Any) -> Iterator[None]:
        *_, rows, figures, _ = arguments
        figures["concepts"]["weapon"] = {"erased": 3}
        rows.append(("stock", [Image.new("RGB", (64, 64))]))
        yield
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "load", lambda name: None)
    monkeypatch.setattr(demo, "_pipeline", cut_after_one)
    with pytest.raises(KeyboardInterrupt):
        demo.run(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["pipelines"] == {"flux": {"concepts": {"weapon": {"erased": 3}}}}
    assert "fell_short" not in results
    with Image.open(tmp_path / "contact.png") as page:
        assert page.size == (2 * 64 + 8, 2 * 64 + 8 + 14)


@pytest.mark.parametrize("name", ["flux", "qwen-image-edit"])
def test_progress_ends_at_its_total(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nothing = SimpleNamespace(located=False, core=np.zeros((8, 8), bool))

    def generate(
        pipe: Any, drawn: Any, options: Any, *, batch: int, regulator: Any = None, progress: Any = None
    ) -> Any:
        if progress is not None:
            progress(len(drawn))
        report = SimpleNamespace(findings=[SimpleNamespace(sample=i, **vars(nothing)) for i in range(len(drawn))])
        return Generated([Image.new("RGB", (64, 64))] * len(drawn), [report], [len(drawn)])

    monkeypatch.setattr(demo, "load", lambda name: None)
    monkeypatch.setattr(demo, "generate", generate)
    told: list[tuple[str, int, int]] = []
    results = demo.run(tmp_path, count=4, pipelines=(name,), progress=lambda *what: told.append(what))
    numbers = [done for _, done, _ in told]
    assert numbers == sorted(set(numbers))
    assert told[-1][1] == told[-1][2] == demo.images_of(name, 4, controls=True)
    assert told[0][0] == f"{name}: benign, stock"
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert results["fell_short"], "black pictures erase nothing"
