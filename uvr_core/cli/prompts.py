"""Prompt files: .txt, .csv or .jsonl, each fault named by its line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from ..errors import UVRError
from ..files import csv_rows, jsonl_rows, text_of


@attrs.frozen
class Prompt:
    """A prompt, and its seed where the file gives one."""

    text: str
    seed: int | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a .txt (one a line, # comments), .csv or .jsonl file (a `prompt` column and, optionally, `seed`).

    Raises:
        UVRError: no file, no prompt in it, or a bad line, named.
    """
    readers = {".txt": _read_txt, ".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix.lower() not in readers:
        raise UVRError(f"{path}: a prompts file is .txt, .csv or .jsonl, this is {path.suffix or 'without a suffix'}")
    if not path.is_file():
        raise UVRError(f"{path}: no such prompts file")
    prompts = readers[path.suffix.lower()](path)
    if not prompts:
        raise UVRError(f"{path}: no prompts in this file; expected at least one")
    return prompts


def _read_txt(path: Path) -> list[Prompt]:
    lines = (line.strip() for line in text_of(path).splitlines())
    return [Prompt(line) for line in lines if line and not line.startswith("#")]


def _read_csv(path: Path) -> list[Prompt]:
    return [_prompt(row, where) for where, row in csv_rows(path, "prompt")]


def _read_jsonl(path: Path) -> list[Prompt]:
    return [_prompt(row, where) for where, row in jsonl_rows(path)]


def _prompt(row: Mapping[str, Any], where: str) -> Prompt:
    if "prompt" not in row:
        raise UVRError(f'{where}: expected an object with "prompt" (and, if wanted, "seed")')
    text, seed = row["prompt"], row.get("seed")
    if not isinstance(text, str) or not text.strip():
        raise UVRError(f"{where}: the prompt is empty or no text")
    if seed is None or seed == "":
        return Prompt(text.strip())
    if isinstance(seed, bool) or not re.fullmatch(r"\d{1,18}", str(seed)):
        raise UVRError(f"{where}: seed: expected a whole number from 0, got {seed!r}")
    return Prompt(text.strip(), int(seed))


def texts_of(path: Path, warn: Callable[[str], None]) -> list[str]:
    """The prompts of a file whose seeds, if any, are not used: said once."""
    prompts = read_prompts(path)
    if any(prompt.seed is not None for prompt in prompts):
        warn(f"note: seeds in {path} are not used here; image i is drawn with --seed + i")
    return [prompt.text for prompt in prompts]


def prompts_of(texts: Sequence[str], file: Path | None) -> list[Prompt]:
    """The prompts of --prompt TEXT, or those of --prompts FILE.

    Raises:
        click.UsageError: neither, or both. UVRError: an empty prompt, or as `read_prompts`.
    """
    if bool(texts) == (file is not None):
        raise click.UsageError("give --prompt TEXT, or --prompts FILE, and not both", click.get_current_context())
    if file is not None:
        return read_prompts(file)
    if not all(text.strip() for text in texts):
        raise UVRError("--prompt: the prompt is empty")
    return [Prompt(text) for text in texts]
