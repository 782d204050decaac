"""Other text for a transformer is what the pipeline itself would hand it."""

from __future__ import annotations

import attrs
import pytest
import torch
from asked import request, stock

from uvr_plugins.baselines import extra_forward, words
from uvr_zoo.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", list(RECIPES))
def test_text_for_other_prompts_is_what_the_pipeline_would_hand_over(name: str) -> None:
    """Caught from a run without guidance; neither the call's generators nor the global one move."""
    asked = request(name, true_cfg_scale=1.0) if name != "sd3" else request(name, guidance_scale=1.0)
    adapter = extra_forward.adapter_of(asked.pipe)
    seen: list[extra_forward.Arguments] = []
    with extra_forward.watching(asked.pipe.transformer, before=seen.append):
        stock(attrs.evolve(asked, call={k: v for k, v in asked.call.items() if k != "negative_prompt"}))
    again = request(name)
    states, world = [g.get_state() for g in again.call["generator"]], torch.random.get_rng_state()
    text = words.text_for(again, again.call["prompt"], adapter)
    assert {"encoder_hidden_states"} <= set(text)
    assert "hidden_states" not in text
    for key, value in text.items():
        assert value is None or torch.equal(value, seen[0][key])
    moved = [g.get_state() for g in again.call["generator"]]
    assert all(torch.equal(a, b) for a, b in zip(states, moved, strict=True))
    assert torch.equal(world, torch.random.get_rng_state())


@pytest.mark.parametrize("name", list(RECIPES))
def test_word_tokens_tell_words_apart(name: str) -> None:
    """A token taken one place off would be an article, an end mark or padding: alike for every word."""
    asked = request(name)
    tokens = words.word_tokens(asked, extra_forward.adapter_of(asked.pipe), ("knife", "gun", "pistol"))
    assert [len(columns) for columns in tokens.columns] == [2 if name == "sd3" else 1] * 3
    states = tokens.text["encoder_hidden_states"]
    assert states.shape[:2] == (2, sum(map(len, tokens.columns)))
    knife, gun, pistol = (states[:, columns[-1]] for columns in tokens.columns)
    near, far = (torch.cosine_similarity(pistol, other).mean() for other in (gun, knife))
    assert near > far + 0.2  # gun is the world's synonym of pistol
