"""calibrate_text: what it learns is what the engine tells, and it says what it cannot learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from fitting import BENIGN, OPTIONS, UNSAFE, drawn_masks
from rig import Rig

import uvr_core
from uvr_core import UVRError, calibrate_text, load_concepts
from uvr_core.fit import carriers
from uvr_core.protocols import CallInfo, Located
from uvr_plugins.detectors import Oracle

PROMPTS = [*UNSAFE, "a bomb and a cat", "one pistol"]


def learned(pipe: Any, bank: uvr_core.ConceptBank, **options: Any) -> uvr_core.ConceptBank:
    options = {"masks": drawn_masks(len(PROMPTS)), "generate": OPTIONS, "batch_size": 3, **options}
    return calibrate_text(pipe, bank, PROMPTS, BENIGN, **options)


class Shown:
    """A policy that keeps what it is told of the text and changes nothing."""

    name = "shown"

    def __init__(self) -> None:
        self.told: list[tuple[str, torch.Tensor | None]] = []

    def edit(self, located: Located, call: CallInfo) -> None:
        self.told.append((call.path, call.carriers(0.0)))


def test_the_engine_tells_what_was_learned_in_every_block_and_step(
    pipe: Any, bank: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carriers, "FEEDS", 1.0)  # a random model's contrasts lie about 1
    progress: list[int] = []
    text = learned(pipe, bank, progress=progress.append)
    assert sum(progress) == len(PROMPTS) + len(BENIGN)
    how = text.text
    assert how is not None
    with uvr_core.attach(pipe) as reg:
        assert how.probe == reg.taps[0]
    carrying, others, prompts = (how.measured[name] for name in ("carrying", "others", "prompts"))
    assert 0 < carrying[1] < carrying[1] + others[1]
    assert carrying[0] / carrying[1] >= others[0] / others[1]
    assert prompts[1] == len(PROMPTS) // carriers.HELD_OUT
    assert how.asks is not None
    assert how.asks >= how.threshold
    assert how.measured["benign"] == [0, len(BENIGN) // carriers.HELD_OUT]
    bank = load_concepts(text.save(tmp_path / "x.safetensors"))
    shown, batches = Shown(), (PROMPTS[:3], PROMPTS[3:])
    everything = np.ones((3, 8, 8), bool)
    for batch in batches:
        shown.told.clear()
        with uvr_core.attach(pipe, concepts=bank, detector=Oracle(everything), policy=shown) as reg:
            pipe(batch, **OPTIONS)
            taps = reg.taps
        paths, tokens = zip(*shown.told, strict=True)
        assert len(paths) >= len(taps)
        assert all(torch.equal(each, tokens[0]) for each in tokens)
        assert tokens[0].any(1).all()


def test_a_token_carries_the_concept_if_it_feeds_it_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contrasts of four steps: the first two do not count."""
    late = carriers._Late(drawn_masks(2), "a")
    late._values = torch.zeros(2, 3, 4)
    steps = ([9.0, 1.0, 1.0], [9.0, 1.0, 1.0], [1.0, 4.0, 2.0], [1.0, 4.0, 2.9])
    late._contrasts = {i: [torch.tensor([row, [1.0, 1.0, 1.0]])] for i, row in enumerate(steps)}
    assert [carry.tolist() for _, carry in late.tokens()] == [[False, True, False], [False] * 3]


def test_of_the_tokens_that_carry_nothing_a_bounded_number_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carriers, "_MOST", 10)
    tokens = carriers.Tokens()
    for number in range(30):
        tokens.add(torch.full((4, 2), float(number)), torch.tensor([True, False, False, False]))
    carrying, others = tokens.rows
    assert carrying[:, 0].tolist() == list(range(30))
    assert (len(others), tokens.count) == (10, 90)


def test_words_and_other_models_and_sets_without_the_concept(pipe: Any, bank: Any) -> None:
    with pytest.raises(UVRError, match="none of the 6 generated images shows the concept beside"):
        learned(pipe, bank, masks=np.zeros((len(PROMPTS), 8, 8), bool))
    with pytest.raises(UVRError, match="benign_prompts: no prompts"):
        calibrate_text(pipe, bank, PROMPTS, [" "], masks=drawn_masks(len(PROMPTS)))
    other = Rig("sd3")
    with pytest.raises(uvr_core.ConceptMismatch, match="made for another model"):
        learned(other.pipe, bank)


def test_no_token_that_feeds_it_is_an_error(pipe: Any, bank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carriers, "FEEDS", 1e9)
    with pytest.raises(UVRError, match="no token of the 6 prompts feeds"):
        learned(pipe, bank)


@pytest.mark.parametrize(("budget", "asks", "benign"), [(0.0, 9.0, 0), (0.3, 6.0, 3), (0.95, 2.0, 8)])
def test_a_prompt_asks_for_it_above_the_best_of_the_benign_but_for_the_budget(
    bank: Any, budget: float, asks: float, benign: int
) -> None:
    tensors = {**bank.tensors, "text/a": torch.tensor([[1.0, 0.0]]), "text_offset/a": torch.tensor([0.0])}
    told = attrs.evolve(bank, tensors=tensors, text=uvr_core.TextCarriers("a", 2.0))
    apart = [torch.tensor([[float(number), 5.0], [-3.0, 5.0]]) for number in range(10)]
    held = carriers.Tokens(carrying=[torch.tensor([[8.5, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0]])])
    how = carriers._asking(told, held, apart, budget).text
    assert how is not None
    assert how.asks == pytest.approx(asks)
    assert how.measured["benign"] == [benign, 10]
    assert how.measured["asking"] == [int(asks < 8.5), 2]
    assert carriers._asking(told, held, [], budget).text == told.text


def test_a_budget_that_is_no_share_is_refused(pipe: Any, bank: Any) -> None:
    with pytest.raises(UVRError, match=r"max_false_positive: expected a number in \[0, 1\), got 1"):
        learned(pipe, bank, max_false_positive=1)
