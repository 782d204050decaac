"""Targets of captions, and the encoders: trained a little, stored, loaded into transformers' classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from uvr_zoo.freeform import encoders, parsing, reading, scenes, text, wordings, words
from uvr_zoo.freeform.captions import caption
from uvr_zoo.pipelines import DATA
from uvr_zoo.training import Run
from uvr_zoo.vocabulary import OBJECTS


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    letters = [chr(97 + i) for i in range(26)]
    rows = list(dict.fromkeys([*words.SPECIALS, *words.own_words(), *letters, *(f"##{x}" for x in letters)]))
    rng = np.random.default_rng(0)
    table = rng.integers(-127, 128, (len(rows), words.WIDTH)).astype(np.int8)
    scale = np.full((len(rows), 1), 0.01, np.float16)
    save_file({"table": table, "scale": scale}, folder / "words.safetensors", metadata={"words": json.dumps(rows)})
    likeness = np.full((3, len(OBJECTS)), 0.2, np.float16)
    likeness[0, OBJECTS.index("knife")] = 0.9
    vectors = rng.normal(size=(3, 128)).astype(np.float16)
    numbers = {"noun_vectors": vectors, "gloss_vectors": vectors, "noun_likeness": likeness, "gloss_likeness": likeness}
    texts = {"nouns": np.array(["sword", "ant", "lamp"]), "glosses": np.array(["what cuts", "an insect", "light"])}
    np.savez(folder / "nouns.npz", **texts, **numbers)
    return folder


def test_nouns_are_objects_by_likeness_or_none_of_these(files):
    nouns = parsing.Nouns.load(files / "nouns.npz")
    assert nouns.texts[:3] == ["a sword", "an ant", "a lamp"]
    assert np.allclose(nouns.chances.sum(1), 1)
    assert nouns.chances[0].argmax() == OBJECTS.index("knife") + 1
    assert nouns.chances[1].argmax() == parsing.OTHER
    assert set(nouns.near) == {0, 3}


def test_every_token_is_marked_with_what_its_phrase_speaks_of(files):
    tok = words.tokenizer(words.read(files / "words.safetensors")[0])
    scene = next(s for s in map(scenes.sample, range(999)) if len(s.items) == 2 and s.relation == "above")
    spoken = caption(scene, 1, place="relation", kind="name", plain=1.0)
    batch = parsing.targets([parsing.parsed(scene, spoken)], tok, None, 24)
    kinds = dict(zip(tok.convert_ids_to_tokens(batch["ids"][0]), batch["object"][0].argmax(-1).tolist(), strict=True))
    for item in scene.items:
        assert kinds[item.name] == OBJECTS.index(item.name) + 1
    assert kinds["<s>"] == kinds["</s>"] == kinds["<pad>"] == 0
    assert set(batch["role"][0].tolist()) == {0, 4, 5}
    assert batch["count"].item() == 2
    assert batch["present"].sum() == 2


def test_what_takes_an_objects_place_takes_its_marks_too(files):
    nouns = parsing.Nouns.load(files / "nouns.npz")
    tok = words.tokenizer(words.read(files / "words.safetensors")[0])
    texts = [parsing.draw_text(seed, nouns, share=1.0) for seed in range(60)]
    batch = parsing.targets(texts, tok, nouns, 48)
    replaced = [row for row, drawn in enumerate(texts) if drawn.nouns]
    assert len(replaced) > 30
    for row in replaced:
        has = batch["vector"][row].abs().sum(-1) > 0
        assert has.any()
        assert (batch["object"][row][has][:, 0] < 1e-6).all()
    assert (batch["object"][..., parsing.OTHER] > 0.5).any()


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run = Run(0.05, folder / "run")
    text.train(folder / "out", run, files / "words.safetensors", files / "nouns.npz", DATA / "shared", batch_size=4)
    return folder / "out"


def test_stored_encoders_load_into_plain_classes_and_say_the_same(trained):
    models = encoders.load_models(trained)
    t5, clip, tok = encoders.load(trained)
    ids = tok(["a cat and a knife at night"], padding="max_length", max_length=512, return_tensors="pt").input_ids
    assert torch.equal(t5(ids).last_hidden_state, models.hidden(ids))
    assert torch.equal(clip(ids).pooler_output, models.clip(ids).pooler_output)


def test_clip_pools_at_the_end_token(trained):
    _, clip, tok = encoders.load(trained)
    ids = tok(["a cat"], padding="max_length", max_length=48, return_tensors="pt").input_ids
    end = ids[0].tolist().index(words.SPECIALS.index("</s>"))
    assert torch.equal(clip(ids).pooler_output[0], clip(ids).last_hidden_state[0, end])


def test_the_stored_weights_are_small(trained):
    assert (trained / "encoders.safetensors").stat().st_size < 2_000_000


def test_the_reader_reads_any_text(trained):
    readings = reading.Reader(trained)(["a cat", "", "zzz 日本"])
    assert [len(each.pieces) for each in readings[:2]] == [2, 0]
    assert all(set(each.objects) <= set(OBJECTS) for each in readings)


def test_held_out_wordings_are_counted(trained):
    figures = reading.measure(reading.Reader(trained, cut=0.0), frames=("{}",))
    total = sum(len(wordings.wordings(name, "synonym", "heldout")) for name in OBJECTS)
    assert figures["synonym"]["of"] == total
    assert 0 <= figures["synonym"]["right"] <= figures["synonym"]["best"] <= total
    assert figures["nothing"]["of"] == len(reading.NOTHING)


def test_files_of_another_model_are_refused(trained, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(trained / "encoders.safetensors")
    state.pop("specials")
    (tmp_path / "words.safetensors").write_bytes((trained / "words.safetensors").read_bytes())
    save_file(state, tmp_path / "encoders.safetensors")
    with pytest.raises(ValueError, match="specials"):
        encoders.load_models(tmp_path)
