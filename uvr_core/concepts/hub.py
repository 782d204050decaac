"""Concept files on the Hugging Face Hub: `owner/repo:file.safetensors@revision`, fetched once and kept in its cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

import attrs

from ..errors import ConceptMismatch, UVRError
from ..hub import Repository, sha256_of
from .bank import ConceptBank
from .file import load_concepts

_REPO = r"(?P<repo>[\w-][\w.-]*/[\w.-]+)"
_FILE = r"(?P<file>[^@:\\]+\.safetensors)"
_REVISION = r"(?:@(?P<revision>[\w./-]+))?"
_PLACE = re.compile(f"{_REPO}:{_FILE}{_REVISION}")
_LOOSE = re.compile(f"{_REPO}(?::{_FILE})?{_REVISION}")
SUFFIX = ".safetensors"


@attrs.frozen
class HubFile:
    """A file of a repository at one revision; as text `owner/repo:file.safetensors@revision`."""

    repo: str
    file: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repo}:{self.file}@{self.revision}"

    @classmethod
    def parse(cls, text: str) -> HubFile | None:
        """From `owner/repo:file.safetensors@revision`; None: it is not of that form.

        Raises:
            ConceptMismatch: no revision. What a name without one means may change from one day to the next.
        """
        match = _PLACE.fullmatch(text)
        if match is None or ".." in match["file"].split("/"):
            return None
        if match["revision"] is None:
            raise ConceptMismatch(
                f"{text}: name the revision, {text}@COMMIT, so that what regulates today regulates tomorrow; "
                f"`uvr pull {text}` says which it is today"
            )
        return cls(match["repo"], match["file"], match["revision"])

    @classmethod
    def locate(cls, text: str) -> HubFile:
        """From `owner/repo[:file.safetensors][@revision]`: at a commit, whatever was left out.

        Raises:
            ConceptMismatch: not of that form, several concept files or none, or the Hub refuses.
        """
        match = _LOOSE.fullmatch(text)
        if match is None or ".." in (match["file"] or "").split("/"):
            raise ConceptMismatch(f"{text!r}: expected owner/repo[:file{SUFFIX}][@revision]")
        repository, file = Repository(match["repo"]), match["file"]
        try:
            commit = repository.commit(match["revision"] or "main")
            files = [file] if file else [name for name in repository.files(commit) if name.endswith(SUFFIX)]
        except UVRError as error:
            raise ConceptMismatch(f"{text}: cannot be fetched from the Hub: {error}") from error
        if len(files) != 1:
            listed = f"; name one of {', '.join(sorted(files)[:20])}" if files else ""
            raise ConceptMismatch(f"{text}: expected one {SUFFIX} file there, got {len(files)}{listed}")
        return cls(match["repo"], files[0], commit)

    def fetch(self) -> Path:
        """Where the file lies in the Hub's cache; downloaded if it is not there. Your token is used if you have one.

        Raises:
            ConceptMismatch: no network and not in the cache, no such repository, file or revision, no access, or
                not the digest that the Hub gave.
        """
        try:
            return Repository(self.repo).fetch(self.file, self.revision)
        except UVRError as error:
            raise ConceptMismatch(
                f"{self}: cannot be fetched from the Hub: {error}; without a network copy the file here and pass its "
                "path"
            ) from error


@attrs.frozen
class Pulled:
    """A concept of the Hub, fetched and read.

    Attributes:
        place: where it came from, at a commit: what `attach(concepts=str(place))` takes.
        path: in the Hub's cache. sha256: of the file.
    """

    place: HubFile
    path: Path
    sha256: str
    bank: ConceptBank


def pull(text: str | os.PathLike[str], *, sha256: str | None = None) -> Pulled:
    """Fetch a concept file `owner/repo[:file.safetensors][@revision]` of the Hub, once, and read it.

    Without a file the repository's only one is meant, without a revision `main`; what they are today stands in
    `place`. The bank's fingerprint is held against the model when it is attached.

    Args:
        sha256: the digest that the file must have, hexadecimal; None: any that the Hub vouches for.

    Raises:
        ConceptMismatch: the Hub refuses or cannot be reached, or the file is damaged, another one, or no concept.
    """
    place = HubFile.locate(os.fspath(text))
    path = place.fetch()
    digest = sha256_of(path)
    if sha256 is not None and digest != sha256.lower():
        raise ConceptMismatch(f"{place}: expected sha256 {sha256}, got {digest}")
    return Pulled(place, path, digest, load_concepts(path))
