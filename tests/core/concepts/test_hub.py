"""Concepts from the Hub, against a stand-in of its HTTP answers on loopback."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from runner import Runner, make_bank

import uvr_core
from uvr_core import ConceptMismatch
from uvr_core.concepts import resolve
from uvr_core.concepts.hub import HubFile

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = f"someone/concepts:weapon.safetensors@{COMMIT}"


def at_loopback(monkeypatch: pytest.MonkeyPatch, port: int, cache: Path) -> None:
    """The Hub is at a port of this machine, and its cache empty."""
    from huggingface_hub import constants

    address = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A server that holds one file at one commit; gives the list of the requests it had."""
    content = make_bank().save(tmp_path / "weapon.safetensors").read_bytes()
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            known = self.path == f"/someone/concepts/resolve/{COMMIT}/weapon.safetensors"
            self.send_response(200 if known else 404)
            if known:
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(content)))
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
            self.end_headers()
            if body and known:
                self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    at_loopback(monkeypatch, server.server_port, tmp_path / "cache")
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_concept_of_the_hub_is_fetched_once_and_regulates(hub: list[str], runner: Runner) -> None:
    with uvr_core.attach(runner.pipe, concepts=NAME, threshold=0.0) as reg:
        assert reg.plan[0].name == make_bank().name
    assert any(request.startswith("GET") for request in hub)
    hub.clear()
    ((bank, _),) = resolve(NAME)
    assert bank.fingerprint == make_bank().fingerprint
    assert hub == []  # a commit never changes: the cache answers


def test_what_is_not_there_is_named(hub: list[str]) -> None:
    with pytest.raises(ConceptMismatch, match=r"someone/concepts:other\.safetensors@.*cannot be fetched from the Hub"):
        resolve(f"someone/concepts:other.safetensors@{COMMIT}")
    assert hub


def test_without_a_network_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_loopback(monkeypatch, 9, tmp_path)
    with pytest.raises(ConceptMismatch, match="without a network copy the file here"):
        resolve(NAME)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (NAME, HubFile("someone/concepts", "weapon.safetensors", COMMIT)),
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


def test_a_revision_must_be_named() -> None:
    with pytest.raises(ConceptMismatch, match="name the revision"):
        resolve("a/b:x.safetensors")
