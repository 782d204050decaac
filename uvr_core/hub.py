"""Repositories of the Hugging Face Hub: one commit's files, checked and kept in its cache; its refusals in one line."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from .errors import UVRError
from .files import printable

COMMIT = re.compile(r"[0-9a-f]{40}")
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
BLOCK = 2**20


@attrs.frozen
class Repository:
    """A repository, `owner/name`; kind: "model" or "dataset". The user's token goes along if there is one.

    Every method raises UVRError in one line, which names repository and remedy and never the token: no network and
    not in the cache, no such repository, revision or file, private, gated, a token that is not taken.
    """

    name: str
    kind: str = "model"

    def commit(self, revision: str = "main") -> str:
        """The commit, 40 hexadecimal digits, that a revision names today; of a commit itself, without asking."""
        if COMMIT.fullmatch(revision):
            return revision
        with self._asking(revision):
            return str(self._api().repo_info(self.name, revision=revision, repo_type=self.kind).sha)

    def files(self, revision: str) -> list[str]:
        """Paths of all files at a revision."""
        with self._asking(revision):
            about = self._api().repo_info(self.name, revision=revision, repo_type=self.kind)
            return sorted(sibling.rfilename for sibling in about.siblings or ())

    def fetch(self, file: str, revision: str) -> Path:
        """Where a file lies in the cache; downloaded if it is not there, and held against its digest each time."""
        import huggingface_hub

        with self._asking(revision, file):
            path = huggingface_hub.hf_hub_download(self.name, file, revision=revision, repo_type=self.kind)
        check_blob(Path(path))
        return Path(path)

    def put(self, files: Mapping[str, bytes], message: str, *, private: bool = False) -> str:
        """Commit files to `main` and return the commit; the repository is made if there is none, private if asked."""
        from huggingface_hub import CommitOperationAdd

        api = self._api()
        with self._asking("main", writing=True):
            api.create_repo(self.name, repo_type=self.kind, private=private, exist_ok=True)
            operations = [CommitOperationAdd(path, content) for path, content in files.items()]
            commit = api.create_commit(self.name, operations, commit_message=message, repo_type=self.kind)
            return str(commit.oid)

    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi()

    @contextmanager
    def _asking(self, revision: str, file: str = "", *, writing: bool = False) -> Iterator[None]:
        """What the Hub refuses, as UVRError."""
        from huggingface_hub.errors import HfHubHTTPError

        # HfHubHTTPError's own base is the base of what its HTTP library raises without an answer.
        try:
            with _quiet():
                yield
        except (HfHubHTTPError, HfHubHTTPError.__bases__[0], OSError, ValueError) as error:
            raise UVRError(f"{self.name}: {self._reason(error, revision, file, writing)}") from error

    def _reason(self, error: BaseException, revision: str, file: str, writing: bool) -> str:
        from huggingface_hub import errors

        status = getattr(getattr(error, "response", None), "status_code", None)
        folder = "datasets/" if self.kind == "dataset" else ""
        if isinstance(error, errors.GatedRepoError):
            return f"gated: accept its terms at https://huggingface.co/{folder}{self.name}, then {LOGIN}"
        if isinstance(error, errors.RevisionNotFoundError):
            return f"no revision {revision!r}"
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return f"no file {file!r} at {revision}"
        if isinstance(error, errors.LocalTokenNotFoundError) or (writing and status == 401):
            return f"no token that the Hub takes: {LOGIN}, with one that may write"
        if isinstance(error, errors.RepositoryNotFoundError):
            return f"no such {self.kind} on the Hub, or a private one: {LOGIN} as someone who may see it"
        if status == 401:
            return f"the Hub does not take your token: {LOGIN}"
        if status == 403:
            return f"your token may not {'write' if writing else 'read'} there"
        if status is not None:
            return f"the Hub answered {status}; try again later"
        if isinstance(error, errors.HFValidationError):
            return "no name of a repository; expected owner/name"
        if isinstance(error, ValueError):
            return printable(" ".join(str(error).split()))[:300]
        return f"the Hub cannot be reached{'' if writing else ', and it is not in the cache'} ({type(error).__name__})"


@contextmanager
def _quiet() -> Iterator[None]:
    """The Hub's client warns at each of its tries; what comes of them is said once."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def check_blob(path: Path) -> None:
    """Raise UVRError unless a file of the Hub's cache has the digest that its blob is named by.

    That name is the ETag that the Hub gave: the sha256 of a large file, else git's sha1. Where the cache can make no
    links a file has its own name, and there is nothing to check.
    """
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        digest = hashlib.sha256()
    elif COMMIT.fullmatch(blob.name):
        digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    else:
        return
    with blob.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != blob.name:
        raise UVRError(
            f"{path}: damaged: its digest is not the one that the Hub gave; delete {blob} and fetch it again"
        )


def sha256_of(path: Path) -> str:
    """A file's sha256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
