"""Repositories of the Hub: what is refused, in one line and without the token; what is written."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in import TOKEN, TOKEN_THAT_READS, Hub, no_network, standing_in

from uvr_core import UVRError
from uvr_core.hub import Repository, check_blob, sha256_of

DATA = Repository("someone/set", "dataset")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with standing_in(monkeypatch, tmp_path / "cache") as hub:
        hub.dataset("someone/set", {"data/train.csv": b"prompt\na cat\n", "data/x.parquet": b"PAR1"})
        yield hub


def refusal(call, *arguments: object, **options: object) -> str:
    with pytest.raises(UVRError) as info:
        call(*arguments, **options)
    text = str(info.value)
    assert "\n" not in text
    assert "hf_of" not in text
    assert "hf_that" not in text
    assert "hf_wrong" not in text
    return text


def test_files_of_one_commit(hub: Hub) -> None:
    commit = DATA.commit()
    assert commit == hub.repos["dataset", "someone/set"].head
    assert DATA.files(commit) == ["data/train.csv", "data/x.parquet"]
    path = DATA.fetch("data/train.csv", commit)
    assert path.read_bytes() == b"prompt\na cat\n"
    hub.asked.clear()
    assert DATA.commit(commit) == commit
    assert DATA.fetch("data/train.csv", commit) == path
    assert hub.asked == []


@pytest.mark.parametrize("file", ["data/train.csv", "data/x.parquet"])  # kept by git's sha1, by sha256
def test_a_digest_that_is_not_the_hubs(hub: Hub, file: str) -> None:
    path = DATA.fetch(file, DATA.commit())
    check_blob(path)
    path.resolve().write_bytes(b"PAR2")
    assert "damaged" in refusal(DATA.fetch, file, DATA.commit())


def test_refusals_of_reading(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such dataset on the Hub, or a private one" in refusal(Repository("no/one", "dataset").commit)
    assert "no revision 'v9'" in refusal(DATA.commit, "v9")
    assert "no file 'y.csv'" in refusal(DATA.fetch, "y.csv", DATA.commit())
    assert "no name of a repository" in refusal(Repository("a/b/c", "dataset").commit)
    gated = hub.dataset("someone/gated", {"x.csv": b"prompt\n"}, gated=True)
    text = refusal(Repository("someone/gated", "dataset").fetch, "x.csv", gated.head)
    assert "accept its terms at https://huggingface.co/datasets/someone/gated, then log in" in text
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the Hub does not take your token" in refusal(DATA.commit)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert Repository("someone/gated", "dataset").fetch("x.csv", gated.head).read_bytes() == b"prompt\n"
    hub.failing = 503
    assert "the Hub answered 503" in refusal(DATA.commit)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    no_network(monkeypatch, tmp_path)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [caplog.handler])
    assert "someone/set: the Hub cannot be reached" in refusal(DATA.commit)
    assert "not in the cache" in refusal(DATA.fetch, "x.csv", "0" * 40)
    assert "the Hub cannot be reached (" in refusal(Repository("a/b").put, {"README.md": b"x"}, "message")
    assert not caplog.records  # nothing of its client's tries


def test_files_are_committed(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {"x.safetensors": b"tensors", "README.md": b"---\nlibrary_name: uvr\n---\n"}
    repository = Repository("me/new")
    assert "no token that the Hub takes" in refusal(repository.put, files, "Add x")
    monkeypatch.setenv("HF_TOKEN", TOKEN_THAT_READS)
    assert "your token may not write there" in refusal(repository.put, files, "Add x")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    commit = repository.put(files, "Add x", private=True)
    repo = hub.repos["model", "me/new"]
    assert (repo.head, repo.private) == (commit, True)
    assert {path: repo.at(commit)[1][path] for path in files} == files
    path = repository.fetch("x.safetensors", commit)
    assert sha256_of(path) == hashlib.sha256(b"tensors").hexdigest()
