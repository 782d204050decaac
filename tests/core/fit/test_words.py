"""Where words lie: in the prompt, and among the tokens that the transformer attends to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_zoo

import uvr_core
from uvr_core import UVRError
from uvr_core.engine.lookup import find_adapter
from uvr_core.fit.words import columns_of, spans_of
from uvr_core.tokens import Role


@pytest.mark.parametrize(
    ("prompt", "words", "said"),
    [
        ("A Pistol and two pistols, no pistolero", ["pistol"], ["Pistol", "pistols"]),
        ("a water pistol", ["pistol", "water pistol"], ["water pistol"]),
        ("a cat", ["pistol"], []),
        ("a cat", ["", " "], []),
        ("a c++ book", ["c++"], ["c++"]),
    ],
)
def test_a_word_is_said_whole(prompt: str, words: list[str], said: list[str]) -> None:
    assert [prompt[first:end] for first, end in spans_of(prompt, words)] == said


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen-image"])
def test_the_columns_are_those_whose_encoding_the_word_changes(name: str) -> None:
    """Swap the word for another in one prompt: the first text token that changes at the embedding is the word's."""
    pipe = tiny_zoo(name)
    adapter = find_adapter(pipe.transformer)
    prompts = ["a cat on the left and a knife on the right", "a knife"]
    seen: list[tuple[list[list[int]], Any]] = []
    with uvr_core.attach(pipe) as reg:

        def read(call: Any) -> None:
            if not seen:
                seen.append((columns_of(pipe, adapter, prompts, ["knife"], call.keys.count(Role.TEXT)), None))

        with reg.recording(read):
            pipe(prompts, height=64, width=64, num_inference_steps=1)
    columns = seen[0][0]
    tokenizer = getattr(pipe, adapter.tokenizers[-1])
    assert all(columns)
    if name == "flux":  # no template, one encoder: the ids stand on the text axis themselves
        for prompt, places in zip(prompts, columns, strict=True):
            assert [tokenizer.decode(tokenizer(prompt).input_ids[at]) for at in places] == ["knife"]
    if name == "sd3":  # CLIP's axis first, then T5's
        assert [len(places) for places in columns] == [2, 2]
        assert columns[1][1] - columns[1][0] == pipe.tokenizer_max_length
    if name == "qwen-image":
        states, mask = pipe.encode_prompt(prompts)[:2]
        other = pipe.encode_prompt([prompt.replace("knife", "dog") for prompt in prompts])[0]
        for row, places in enumerate(columns):
            changed = (states[row] - other[row]).abs().amax(-1) > 1e-5
            length = states.shape[1] if mask is None else int(mask[row].sum())
            assert changed[places].all()
            assert max(places) < length
            assert not changed[: min(places)].any()  # a causal encoder: what stands before is the same


def test_a_model_that_does_not_tell_is_refused() -> None:
    adapter = SimpleNamespace(tokenizers=(), model="Other", name="other")
    with pytest.raises(UVRError, match="adapter 'other' names no tokenizers"):
        columns_of(SimpleNamespace(), adapter, ["a knife"], ["knife"], 8)

    class Slow:
        def __call__(self, text: str, **options: Any) -> Any:
            raise NotImplementedError

    pipe = SimpleNamespace(tokenizer=Slow(), tokenizer_max_length=8, text_encoder=torch.nn.Identity())
    with pytest.raises(UVRError, match="use its fast version"):
        columns_of(pipe, SimpleNamespace(tokenizers=("tokenizer",)), ["a knife"], ["knife"], 8)
