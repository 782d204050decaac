"""Concepts from the Hub, against a stand-in of its HTTP answers on loopback."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from runner import Runner, make_bank
from stand_in import TOKEN, Hub, no_network, standing_in

import uvr_core
from uvr_core import ConceptMismatch
from uvr_core.concepts import resolve
from uvr_core.concepts.hub import HubFile

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/concepts"


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return make_bank().save(tmp_path / "weapon.safetensors").read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> Iterator[Hub]:
    """One repository with one concept file."""
    with standing_in(monkeypatch, tmp_path / "cache") as hub:
        hub.model(REPO, {"weapon.safetensors": content, "README.md": b"# weapon", "setup.py": b"raise SystemExit"})
        yield hub


def test_a_concept_of_the_hub_is_fetched_once_and_regulates(hub: Hub, runner: Runner) -> None:
    name = f"{REPO}:weapon.safetensors@{hub.repos['model', REPO].head}"
    with uvr_core.attach(runner.pipe, concepts=name, threshold=0.0) as reg:
        assert reg.plan[0].name == make_bank().name
    assert any(request.startswith("GET") for request in hub.asked)
    hub.asked.clear()
    ((bank, _),) = resolve(name)
    assert bank.fingerprint == make_bank().fingerprint
    assert hub.asked == []  # a commit never changes: the cache answers


@pytest.mark.parametrize("text", [REPO, f"{REPO}:weapon.safetensors", f"{REPO}@main"])
def test_what_is_left_out_is_pinned(hub: Hub, content: bytes, text: str) -> None:
    head = hub.repos["model", REPO].head
    pulled = uvr_core.pull(text)
    assert str(pulled.place) == f"{REPO}:weapon.safetensors@{head}"
    assert pulled.sha256 == hashlib.sha256(content).hexdigest()
    assert pulled.bank.fingerprint == make_bank().fingerprint
    fetched = {request.rsplit("/", 1)[1] for request in hub.asked if "/resolve/" in request}
    assert fetched == {"weapon.safetensors"}  # nothing else of the repository
    hub.repos["model", REPO].commit({"weapon.safetensors": b"another"})
    hub.asked.clear()
    assert uvr_core.pull(str(pulled.place)).sha256 == pulled.sha256
    assert hub.asked == []


def test_another_digest_is_refused(hub: Hub, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    assert uvr_core.pull(REPO, sha256=digest.upper()).sha256 == digest
    with pytest.raises(ConceptMismatch, match=f"expected sha256 {'0' * 64}, got {digest}"):
        uvr_core.pull(REPO, sha256="0" * 64)


def test_a_cache_that_was_tampered_with_is_refused(hub: Hub) -> None:
    pulled = uvr_core.pull(REPO)
    other = make_bank("another")
    other.save(pulled.path.resolve())
    with pytest.raises(ConceptMismatch, match="its digest is not the one that the Hub gave"):
        resolve(str(pulled.place))


def test_several_files_must_be_told_apart(hub: Hub, content: bytes) -> None:
    hub.repos["model", REPO].commit({"blood.safetensors": content})
    with pytest.raises(ConceptMismatch, match=r"got 2; name one of blood\.safetensors, weapon\.safetensors"):
        uvr_core.pull(REPO)
    hub.model("someone/empty", {"model.bin": b"pickle"})
    with pytest.raises(ConceptMismatch, match=r"expected one \.safetensors file there, got 0"):
        uvr_core.pull("someone/empty")


def test_a_file_that_is_no_concept_is_refused(hub: Hub) -> None:
    hub.repos["model", REPO].commit({"weapon.safetensors": b"\x80\x04pickle"})
    with pytest.raises(ConceptMismatch, match="not a whole safetensors file"):
        uvr_core.pull(REPO)


def test_what_is_private_needs_a_token(hub: Hub, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.model("someone/secret", {"weapon.safetensors": content}, private=True)
    with pytest.raises(ConceptMismatch, match="no such model on the Hub, or a private one: log in"):
        uvr_core.pull("someone/secret")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert uvr_core.pull("someone/secret").place.file == "weapon.safetensors"


def test_what_is_not_there_is_named(hub: Hub) -> None:
    head = hub.repos["model", REPO].head
    with pytest.raises(ConceptMismatch, match=r"concepts:other\.safetensors@.*cannot be fetched from the Hub.*no file"):
        resolve(f"{REPO}:other.safetensors@{head}")
    with pytest.raises(ConceptMismatch, match="no revision"):
        resolve(f"{REPO}:weapon.safetensors@{COMMIT}")


def test_without_a_network_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_network(monkeypatch, tmp_path)
    with pytest.raises(ConceptMismatch, match="without a network copy the file here"):
        resolve(f"{REPO}:weapon.safetensors@{COMMIT}")
    with pytest.raises(ConceptMismatch, match="the Hub cannot be reached"):
        uvr_core.pull(REPO)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (f"{REPO}:weapon.safetensors@{COMMIT}", HubFile(REPO, "weapon.safetensors", COMMIT)),
        ("a/b:folder/x.safetensors@v1.0", HubFile("a/b", "folder/x.safetensors", "v1.0")),
        ("weapon", None),
        ("folder/weapon.safetensors", None),
        ("a/b:../x.safetensors@main", None),
        ("a/b:x.bin@main", None),
        ("a/b/c:x.safetensors@main", None),
    ],
)
def test_what_names_a_file_of_the_hub(text: str, place: HubFile | None) -> None:
    assert HubFile.parse(text) == place


@pytest.mark.parametrize("text", ["weapon", "a/b:x.bin", "a/b:../x.safetensors", "https://a/b/c"])
def test_only_names_of_the_hub_can_be_pulled(text: str) -> None:
    with pytest.raises(ConceptMismatch, match="expected owner/repo"):
        uvr_core.pull(text)


def test_a_revision_must_be_named() -> None:
    with pytest.raises(ConceptMismatch, match="name the revision"):
        resolve("a/b:x.safetensors")
