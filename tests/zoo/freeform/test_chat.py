"""Chat text encoders: lessons aim at the right tokens, a few steps learn, what is stored is what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from uvr_zoo.freeform import chat, chat_training
from uvr_zoo.freeform.edits import sample_edit
from uvr_zoo.freeform.parsing import draw_text
from uvr_zoo.freeform.reading import NOTHING
from uvr_zoo.freeform.scenes import CANVAS
from uvr_zoo.freeform.wordings import wordings
from uvr_zoo.freeform.words import read
from uvr_zoo.pipelines import DATA
from uvr_zoo.vision_text import processor
from uvr_zoo.vocabulary import OBJECTS

WORDS = DATA / "freeform" / "text" / "words.safetensors"
KINDS: tuple[chat.Kind, ...] = ("qwen3", "qwen-vl")


@pytest.fixture(scope="module")
def tok() -> Any:
    return chat.tokenizer(read(WORDS)[0])


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    return read(WORDS)[1]


def plain(text: str) -> str:
    """Without what tells words and their pieces apart."""
    return text.replace(" ", "").replace("##", "")


def lesson(tok: Any, kind: chat.Kind, edits: bool, seed: int = 3, size: int = 4) -> chat_training.Lesson:
    proc = processor(tok, CANVAS[0]) if kind == "qwen-vl" else None
    return chat_training.lesson(tok, proc, kind, seed, size, None, edits)


@pytest.mark.parametrize(("kind", "edits"), [("qwen3", False), ("qwen-vl", False), ("qwen-vl", True)])
def test_a_lesson_knows_where_its_text_stands(tok: Any, kind: chat.Kind, edits: bool) -> None:
    one = lesson(tok, kind, edits)
    for row in range(4):
        start, length = int(one.first[row]), int(one.length[row])
        ids = one.inputs["input_ids"][row, start : start + length]
        assert ids.tolist() == one.target["ids"][row, :length].tolist()
        text = sample_edit(12 + row).instruction if edits else draw_text(12 + row, None).text
        assert plain(tok.decode(ids)) == plain(text)
        behind = one.inputs["input_ids"][row, start + length : start + length + one.tail]
        assert tok.decode(behind[:1]) == "<|im_end|>"
        assert int(one.inputs["attention_mask"][row].sum()) == start + length + one.tail


def test_an_instruction_says_what_it_names_and_leads_to(tok: Any) -> None:
    for seed in range(40):
        edit = sample_edit(seed)
        text = chat_training.edit_text(edit)
        named = {OBJECTS[kind - 1] for kind, *_ in text.marks if kind}
        assert named <= {item.name for item in (*edit.source.items, *edit.target.items)}
        assert set(edit.new) | set(edit.removed) <= named
        cells = chat_training.cells_of(edit.source)
        assert {OBJECTS[cell - 1] for cell in cells if cell} <= {item.name for item in edit.source.items}


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_learn_and_come_back(kind: chat.Kind, tok: Any, table: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = chat.Chat(kind, table, tok)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    one = lesson(tok, kind, edits=kind == "qwen-vl")
    losses = []
    for _ in range(6):
        loss = chat_training.loss_of(model, one)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    chat.save(model, tmp_path)
    net, again, trained = chat.load(kind, tmp_path, WORDS)
    coded = again(["<|im_start|>user\na dagger<|im_end|>\n"], return_tensors="pt")
    states = net(**coded, output_hidden_states=True).hidden_states
    with torch.no_grad():
        kept = trained.net(**coded, output_hidden_states=True).hidden_states
        before = model.eval().net(**coded, output_hidden_states=True).hidden_states
    assert torch.equal(states[-1], kept[-1])
    assert torch.allclose(states[0], before[0], atol=0.15)  # of few bits
    assert not torch.equal(states[0], before[0])


def test_words_that_the_table_lacks_are_read_in_pieces_and_chats_have_their_tokens(tok: Any) -> None:
    assert plain(tok.decode(tok("zxqv")["input_ids"])) == "zxqv"
    text = tok.apply_chat_template([{"role": "user", "content": "a cat"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n"
    assert tok.convert_ids_to_tokens(tok(text)["input_ids"])[0] == "<|im_start|>"


def test_held_out_wordings_are_counted(tok: Any, table: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = chat.Chat("qwen3", table, tok).eval()
    with torch.no_grad():
        model.phrase.weight.zero_()
        model.phrase.bias.zero_()
        model.phrase.bias[OBJECTS.index("knife") + 1] = 1.0  # it says "knife" of everything
    figures = chat_training.measure(model, tok)
    for kind in ("name", "synonym", "description"):
        assert figures[kind] == [len(wordings("knife", kind, "heldout")), figures[kind][1]]
    assert figures["nothing"] == [0, len(NOTHING)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_shipped_encoder_reads_words_that_no_caption_showed(kind: chat.Kind) -> None:
    _, tok, model = chat.load(kind, WORDS.parent, WORDS)
    figures = chat_training.measure(model, tok)
    assert figures["name"][0] == figures["name"][1]
    assert figures["synonym"][0] >= 0.7 * figures["synonym"][1]
    assert figures["nothing"][0] >= 0.9 * figures["nothing"][1]
