"""Prompt files."""

from __future__ import annotations

import pytest

from uvr_core.cli.prompts import Prompt, read_prompts


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("p.txt", "", "no prompts"),
        ("p.txt", "# only a comment\n\n", "no prompts"),
        ("p.csv", "", "no prompts"),
        ("p.csv", "prompt,seed\n", "no prompts"),
        ("p.csv", "text\na cat\n", "no column 'prompt'"),
        ("p.csv", "prompt,seed\na cat,-1\n", "p.csv:2: seed"),
        ("p.jsonl", "", "no prompts"),
        ("p.jsonl", '{"prompt": "a cat"}\n{"prompt"\n', "p.jsonl:2: not JSON"),
        ("p.jsonl", '["a cat"]\n', "p.jsonl:1"),
        ("p.jsonl", '{"prompt": " "}\n', "p.jsonl:1"),
        ("p.png", "", ".txt, .csv or .jsonl"),
    ],
)
def test_bad_prompts_file(generate, tmp_path, name, text, hint):
    (tmp_path / name).write_text(text)
    line = generate("--prompts", tmp_path / name, prompt=False)
    assert hint in line
    assert name in line


def test_prompts_are_needed_once(generate, tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n")
    assert "not both" in generate("--prompts", tmp_path / "p.txt")
    assert "not both" in generate(prompt=False)
    assert "no such" in generate("--prompts", tmp_path / "missing.txt", prompt=False)


def test_prompts_files_agree(tmp_path):
    texts = {
        "p.txt": "# comment\na cat\n\n  a dog, red  \n",
        "p.csv": '\ufeffprompt,seed\na cat,3\n"a dog, red",\n',
        "p.jsonl": '{"prompt": "a cat", "seed": 3}\n\n{"prompt": "a dog, red"}\n',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, "utf-8")
        seed = None if name == "p.txt" else 3
        assert read_prompts(tmp_path / name) == [Prompt("a cat", seed), Prompt("a dog, red")]
