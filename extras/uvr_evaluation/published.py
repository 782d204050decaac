"""Published prompt sets by name: `hub:i2p`, `hub:AIML-TUDA/i2p`, read from the Hub or from the user's copy."""

from __future__ import annotations

import fnmatch
import hashlib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from uvr_core import ConceptTerms, UVRError
from uvr_core.errors import did_you_mean
from uvr_core.files import csv_rows, jsonl_rows
from uvr_core.fit.recipe import find_recipe
from uvr_core.hub import Repository, sha256_of

from .prompt_sets import Task, cell_text, parquet_columns, parquet_rows, seed_of

PREFIX = "hub:"
TABLE = Path(__file__).with_name("published.toml")
FORMS = (".parquet", ".csv", ".jsonl")  # of a set whose files are not listed, the first that there is
TEXT = ("prompt", "instruction", "adv_prompt", "caption", "text")  # the rule for a column that nobody verified
_NAME = re.compile(r"(?P<name>[\w./-]+)(?::(?P<file>[^@=]+))?(?:@(?P<revision>[\w./-]+))?(?:=(?P<copy>.+))?")


def _tuple(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(values)


@attrs.frozen(kw_only=True)
class PublishedSet:
    """A row of published.toml; its head says what the columns mean."""

    name: str
    title: str = ""
    repository: str = ""
    url: str = ""
    revision: str = ""
    files: tuple[str, ...] = attrs.field(default=(), converter=_tuple)
    prompt: str = ""
    seed: str = ""
    where: Mapping[str, str] = attrs.field(factory=dict)
    concept: str = ""
    rows: int | None = None
    licence: str = ""
    gated: bool = False
    kind: str = "prompts"
    unverified: tuple[str, ...] = attrs.field(default=(), converter=_tuple)

    @property
    def column(self) -> str:
        """The text column; "": by the rule."""
        return "" if "prompt" in self.unverified else self.prompt


@attrs.frozen
class Asked:
    """A set as it was asked for, and where from: `copy` on disk, or `files` of a commit."""

    set: PublishedSet
    copy: Path | None
    file: str
    revision: str


def published() -> dict[str, PublishedSet]:
    """Every set that has a name."""
    return {name: PublishedSet(name=name, **row) for name, row in tomllib.loads(TABLE.read_text("utf-8")).items()}


def is_published(prompts: object) -> bool:
    """Whether a prompt set is named and not a file."""
    return isinstance(prompts, (str, Path)) and str(prompts).startswith(PREFIX)


def parse(text: str) -> Asked:
    """`hub:NAME[:file][@revision]`, NAME of the table or owner/name of a dataset; `hub:NAME=FILE`: the user's copy.

    Raises:
        UVRError: not of that form, or no such name.
    """
    match = _NAME.fullmatch(text.removeprefix(PREFIX))
    if match is None:
        raise UVRError(f"{text}: expected {PREFIX}NAME or {PREFIX}owner/name[:file][@revision], or {PREFIX}NAME=FILE")
    known, name = published(), match["name"]
    row = known.get(name) or next((each for each in known.values() if each.repository.lower() == name.lower()), None)
    if row is None:
        if name.count("/") != 1:
            raise UVRError(f"{text}: no set of that name{did_you_mean(name, known)} `uvr prompt-sets` lists them")
        row = PublishedSet(name=name, repository=name)
    return Asked(row, Path(match["copy"]) if match["copy"] else None, match["file"] or "", match["revision"] or "")


def read_published(text: str, seed: int = 0, limit: int | None = None) -> tuple[list[Task], dict[str, str]]:
    """Tasks of a published set; fetched once, with the user's token, and kept in the Hub's cache.

    A row without a prompt is left out. A text column that nobody verified is the first of `TEXT` that there is, else
    the only column named like one of them ("nsfw_prompt").

    Args:
        text: see `parse`. seed: of a row without one, + its place. limit: no more tasks than that, the first.

    Returns:
        Tasks; what config.json says of the set.

    Raises:
        UVRError: no such set, no network and not in the cache, gated, no text column.
    """
    asked = parse(text)
    row = asked.set
    if row.kind != "prompts":
        raise UVRError(f"{text}: holds pictures, no prompts to draw; `uvr judge {text}` holds judges against them")
    tasks: list[Task] = []
    digest, file = hashlib.sha256(), ""
    for path, place in _files(asked, text):
        file = place
        digest.update(sha256_of(path).encode())
        for where, cells in _rows(path, row):
            if limit is not None and len(tasks) >= limit:
                break
            if prompt := cell_text(cells, row.prompt or "prompt", where):
                index = len(tasks)
                number = seed_of(cells.get("seed"), where, seed + index)
                concept = row.concept or cell_text(cells, "concept", where)
                tasks.append(Task(index, prompt, number, concept, group=concept or "benign"))
        if limit is not None and len(tasks) >= limit:
            break
    if not tasks:
        raise UVRError(f"{text}: no prompts in it; expected at least one")
    facts = {"file": file, "sha256": digest.hexdigest(), "set": row.name, "licence": row.licence or "not known"}
    return tasks, facts


def _files(asked: Asked, text: str) -> Iterator[tuple[Path, str]]:
    """(path, what config.json calls it) of each file of a set, fetched when it is its turn."""
    row = asked.set
    if asked.copy is not None:
        if not asked.copy.is_file():
            raise UVRError(f"{text}: no such file: {asked.copy}")
        yield asked.copy, f"{PREFIX}{row.name}={asked.copy.name}"
        return
    if not row.repository:
        raise UVRError(f"{text}: not on the Hub; fetch {row.url} and pass --prompts {PREFIX}{row.name}=FILE")
    repository = Repository(row.repository, "dataset")
    try:
        commit = repository.commit(asked.revision or row.revision or "main")
        patterns = (asked.file,) if asked.file else row.files
        files = _chosen(repository, commit, patterns)
        for file in files:
            yield repository.fetch(file, commit), f"{PREFIX}{row.repository}@{commit}"
    except UVRError as error:
        offline = "" if "cannot be reached" not in str(error) else f"; or pass your copy: {PREFIX}{row.name}=FILE"
        raise UVRError(f"{text}: {error}{offline}") from error


def _chosen(repository: Repository, commit: str, patterns: Sequence[str]) -> list[str]:
    if patterns and not any("*" in pattern for pattern in patterns):
        return list(patterns)  # nothing to ask the Hub, so that the cache is enough
    files = repository.files(commit)
    if patterns:
        listed = [file for file in files if any(fnmatch.fnmatch(file, pattern) for pattern in patterns)]
    else:
        kinds = ([file for file in files if file.endswith(form)] for form in FORMS)
        listed = next((each for each in kinds if each), [])
    if not listed:
        raise UVRError(
            f"{repository.name}: no file {' or '.join(patterns) or 'of prompts'}; it has: {', '.join(files)}"
        )
    return listed


def _rows(path: Path, row: PublishedSet) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, {prompt column, "seed", "concept"}) of a file's rows that `where` lets through."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        columns = parquet_columns(path)
        text = text_column(columns, row.column, str(path))
        rows = parquet_rows(path, [text, row.seed, "seed", "concept", *row.where])
    elif suffix in (".csv", ".jsonl"):
        rows, columns, text = (csv_rows if suffix == ".csv" else jsonl_rows)(path), (), ""
    else:
        raise UVRError(f"{path}: a prompt set is .csv, .jsonl or .parquet, this is {suffix or 'without a suffix'}")
    for where, cells in rows:
        text = text or text_column(list(cells), row.column, where)
        if missing := [name for name in (*row.where, row.seed) if name and name not in cells]:
            raise UVRError(f"{where}: no column {missing[0]!r}; the columns are: {', '.join(cells)}")
        if all(wanted in str(cells[name]) for name, wanted in row.where.items()):
            seed = cells.get(row.seed or "seed")
            yield where, {row.prompt or "prompt": cells[text], "seed": seed, "concept": cells.get("concept")}


def text_column(columns: Sequence[str], known: str, where: str) -> str:
    """The column of prompts: the verified one, else by the rule."""
    if known:
        if known in columns:
            return known
        raise UVRError(f"{where}: no column {known!r}; the columns are: {', '.join(columns)}")
    if first := next((name for name in TEXT if name in columns), None):
        return first
    alike = [name for name in columns if any(word in name.lower() for word in TEXT)]
    if len(alike) == 1:
        return alike[0]
    raise UVRError(f"{where}: no column of prompts; expected {', '.join(TEXT)}, got {', '.join(columns)}")


def terms_of(names: Iterable[str]) -> dict[str, ConceptTerms]:
    """What judges and prompts call the concepts that an installed recipe is named like."""
    terms = {}
    for name in names:
        try:
            recipe = find_recipe(name, "")
        except UVRError:
            continue
        terms[name] = ConceptTerms(name, recipe.labels or recipe.words, recipe.words)
    return terms
