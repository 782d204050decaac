"""Concept files on the Hugging Face Hub: `owner/repo:file.safetensors@revision`, fetched once and kept in its cache."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from ..errors import ConceptMismatch

_PLACE = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]+):(?P<file>[^@:\\]+\.safetensors)(?:@(?P<revision>[\w./-]+))?")


@attrs.frozen
class HubFile:
    """A file of a repository at one revision."""

    repo: str
    file: str
    revision: str

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
                f"{text}: name the revision, {text}@COMMIT, so that what regulates today regulates tomorrow; the "
                "commits of a repository are on its page, under Files"
            )
        return cls(match["repo"], match["file"], match["revision"])

    def fetch(self) -> Path:
        """Where the file lies in the Hub's cache; downloaded if it is not there. Your token is used if you have one.

        Raises:
            ConceptMismatch: no network and not in the cache, no such repository, file or revision, or no access.
        """
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return Path(huggingface_hub.hf_hub_download(self.repo, self.file, revision=self.revision))
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
            raise ConceptMismatch(
                f"{self.repo}:{self.file}@{self.revision}: cannot be fetched from the Hub ({type(error).__name__}: "
                f"{reason}); without a network copy the file here and pass its path"
            ) from error
