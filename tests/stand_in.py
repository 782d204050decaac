"""A stand-in of the Hub on loopback: real HTTP answers to huggingface_hub, from repositories in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_ofTheTests"
TOKEN_THAT_READS = "hf_thatReadsAlone"
LARGE = (".safetensors", ".parquet")  # what the real one keeps by sha256


class Repo:
    """Commits, the newest last: (sha, {path: content})."""

    def __init__(self, files: Mapping[str, bytes], private: bool = False, gated: bool = False) -> None:
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.private, self.gated = private, gated
        self.commit(files)

    def commit(self, files: Mapping[str, bytes]) -> str:
        before = self.commits[-1][1] if self.commits else {}
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits.append((sha, {**before, **files}))
        return sha

    @property
    def head(self) -> str:
        return self.commits[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        named = {sha: (sha, files) for sha, files in self.commits}
        return {**named, "main": self.commits[-1]}.get(revision)


class Hub:
    """Repositories by (kind, owner/name), and the requests so far as "METHOD path"."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.asked: list[str] = []
        self.uploads: dict[str, bytes] = {}
        self.failing = 0  # a status that every request is answered with

    def model(self, name: str, files: Mapping[str, bytes], **options: bool) -> Repo:
        return self.repos.setdefault(("model", name), Repo(files, **options))

    def dataset(self, name: str, files: Mapping[str, bytes], **options: bool) -> Repo:
        return self.repos.setdefault(("dataset", name), Repo(files, **options))


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.route()

    do_GET = do_POST = do_PUT = do_HEAD

    def log_message(self, *args: Any) -> None:
        pass

    def send(self, status: int, content: bytes | Mapping[str, Any] = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.hub.failing:
            return self.send(self.hub.failing)
        if self.token and self.token not in (TOKEN, TOKEN_THAT_READS):
            return self.send(401, {"error": "Invalid credentials in Authorization header"})
        writing = self.command in ("POST", "PUT") and path != "/api/validate-yaml"
        if writing and not path.startswith("/uploads/") and self.token != TOKEN:
            return self.send(403 if self.token else 401, {"error": "Forbidden"})
        if path == "/api/validate-yaml":
            return self.send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(self.body))
        if path.startswith("/uploads/"):
            self.hub.uploads[path.rsplit("/", 1)[1]] = self.body
            return self.send(200)
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            kind, name, rest = parts[1].removesuffix("s"), "/".join(parts[2:4]), parts[4:]
        elif parts[0] == "datasets":
            kind, name, rest = "dataset", "/".join(parts[1:3]), parts[3:]
        else:
            kind, name, rest = "model", "/".join(parts[:2]).removesuffix(".git"), parts[2:]
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and not self.token):
            return self.send(404 if self.token else 401, X_Error_Code="RepoNotFound")
        if rest[:1] == ["resolve"]:
            return self.resolve(repo, rest[1], "/".join(rest[2:]))
        if self.command == "POST":
            return self.write(repo, name, rest)
        return self.info(repo, name, rest[1] if rest[:1] == ["revision"] else "main")

    def resolve(self, repo: Repo, revision: str, file: str) -> None:
        if repo.gated and not self.token:
            return self.send(401, X_Error_Code="GatedRepo")
        at = repo.at(revision)
        if at is None:
            return self.send(404, X_Error_Code="RevisionNotFound")
        if file not in at[1]:
            return self.send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=at[0])
        content = at[1][file]
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        etag = hashlib.sha256(content).hexdigest() if file.endswith(LARGE) else git
        self.send(200, content, X_Repo_Commit=at[0], ETag=f'"{etag}"')

    def info(self, repo: Repo, name: str, revision: str) -> None:
        at = repo.at(revision)
        if at is None:
            return self.send(404, X_Error_Code="RevisionNotFound")
        self.send(200, {"id": name, "sha": at[0], "siblings": [{"rfilename": path} for path in at[1]]})

    def create(self, asked: Mapping[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        key = (asked.get("type", "model"), name)
        if key in self.hub.repos:
            return self.send(409, {"error": "exists", "url": f"/{name}"})
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repos[key] = Repo({".gitattributes": b"*.safetensors filter=lfs\n"}, private=bool(private))
        self.send(200, {"url": f"http://{self.headers['Host']}/{name}"})

    def write(self, repo: Repo, name: str, rest: list[str]) -> None:
        if rest[0] == "preupload":
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(self.body)["files"]
            ]
            return self.send(200, {"files": files})
        if rest[:1] == ["info"]:  # /OWNER/NAME.git/info/lfs/objects/batch
            href = f"http://{self.headers['Host']}/uploads/"
            objects = [
                {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": href + o["oid"]}}}
                for o in json.loads(self.body)["objects"]
            ]
            return self.send(200, {"transfer": "basic", "objects": objects})
        files = {}
        for line in self.body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self.hub.uploads[entry["value"]["oid"]]
        sha = repo.commit(files)
        self.send(200, {"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{sha}", "commitOid": sha})


def point_at(monkeypatch: pytest.MonkeyPatch, port: int, cache: Path) -> None:
    """The Hub is at a port of this machine, its cache empty, and nobody is logged in."""
    from huggingface_hub import constants

    address = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def standing_in(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A stand-in that huggingface_hub talks to for the length of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("ThisHandler", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    point_at(monkeypatch, server.server_port, cache)
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def no_network(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Nobody answers, and huggingface_hub does not wait between the times that it asks."""
    point_at(monkeypatch, 9, cache)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
